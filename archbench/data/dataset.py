"""From a corpus and a tokenizer to tokens on disk: memory-mapped, cached by the hash of their sources."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from archbench.config import DataConfig
from archbench.data.byte_tokenizer import Tokenizer
from archbench.data.cache import cache_folder, content_key, write_atomically
from archbench.data.corpora import load_corpus
from archbench.data.documents import Corpus, Document
from archbench.data.tokenizers import load_tokenizer
from archbench.errors import DataError

_log = logging.getLogger(__name__)

_FORMAT = "1"
"""Part of every cache key: increased if the layout on disk changes."""

Tokens = npt.NDArray[np.integer]


@dataclass(frozen=True)
class EncodedDocument:
    """A document as tokens, shape (N,), and the number of bytes of its text."""

    name: str
    tokens: Tokens
    n_bytes: int


@dataclass(frozen=True)
class Dataset:
    """Text as tokens, ready for training and scoring.

    Attributes:
        train: tokens, shape (N,), memory-mapped, uint16 or uint32; each document begins with the separator.
        validation: the held-out documents, each on its own, without separators.
        lossless: whether the tokens spell the text's bytes; checked for each document.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    train: Tokens
    validation: tuple[EncodedDocument, ...]
    lossless: bool


def prepare(data: DataConfig, *, cache: Path | None = None) -> Dataset:
    """Load the corpus and the tokenizer, and encode the text, or read the tokens from the cache.

    Several processes may prepare the same data at once. Cached tokens with a wrong checksum are encoded again, and a
    warning is logged.

    Args:
        cache: folder of trained tokenizers and tokens; None for :func:`archbench.data.cache.cache_folder`.

    Raises:
        DataError: the corpus or tokenizer cannot be used (see :func:`load_corpus` and :func:`load_tokenizer`).
        StorageError: the cache folder cannot be written.
    """
    cache = cache or cache_folder()
    corpus = load_corpus(data.corpus, validation_fraction=data.validation_fraction)
    tokenizer = load_tokenizer(data.tokenizer, corpus=corpus, cache=cache)
    key = content_key("tokens", _FORMAT, corpus.sha256, tokenizer.fingerprint)
    path = cache / "tokens" / f"{key}.npy"
    cached = _read(path)
    if cached is None:
        _write(path, corpus, tokenizer)
        cached = _read(path)
    if cached is None:
        raise DataError(f"file {str(path)!r}", "it differs from what was just written", "Check the disk")
    tokens, record = cached
    ends = record["ends"]
    documents = corpus.splits["validation"]
    starts = [record["train_tokens"], *ends[:-1]]
    validation = tuple(
        EncodedDocument(document.name, tokens[start:end], len(document.to_bytes()))
        for document, start, end in zip(documents, starts, ends, strict=True)
    )
    return Dataset(corpus, tokenizer, tokens[: record["train_tokens"]], validation, record["lossless"])


def _write(path: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    """One array, the training stream followed by the validation documents, and a record of its parts."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    table = tokenizer.token_bytes()
    lossless = table is not None
    separator = np.array([tokenizer.separator], dtype=dtype)

    def encode(documents: Sequence[Document]) -> list[Tokens]:
        nonlocal lossless
        encoded: list[Tokens] = []
        for document in documents:
            ids = tokenizer.encode(document.text)
            lossless = lossless and _spells(ids, table, document)
            encoded.append(ids.astype(dtype))
        return encoded

    train = [part for ids in encode(corpus.splits["train"]) for part in (separator, ids)]
    validation = encode(corpus.splits["validation"])
    if tokenizer.lossless and not lossless:
        cause = "it should keep every byte, but its tokens do not spell this corpus"
        raise DataError(f"tokenizer {tokenizer.name!r}", cause, "Report this: it is a fault in archbench")
    tokens = np.concatenate([*train, *validation])
    train_tokens = sum(len(part) for part in train)
    ends = (train_tokens + np.cumsum([len(ids) for ids in validation])).tolist()
    write_atomically(path, lambda file: np.save(file, tokens))
    record = {"train_tokens": train_tokens, "ends": ends, "lossless": lossless, "sha256": _sha256(path)}
    write_atomically(path.with_suffix(".json"), lambda file: file.write(json.dumps(record).encode()))


def _spells(ids: Tokens, table: Sequence[bytes] | None, document: Document) -> bool:
    return table is not None and b"".join(map(table.__getitem__, ids.tolist())) == document.to_bytes()


def _read(path: Path) -> tuple[Tokens, dict[str, Any]] | None:
    """Memory-mapped tokens and their record; None if they are missing or damaged."""
    record_path = path.with_suffix(".json")
    # The record is written last: if it is missing, another process is writing or was interrupted.
    if not (record_path.exists() and path.exists()):
        return None
    try:
        record = json.loads(record_path.read_bytes())
        if _sha256(path) != record["sha256"]:
            raise ValueError("wrong checksum")
        tokens = np.load(path, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("cached tokens %s are damaged (%s) and are encoded again", path, error)
        return None
    return tokens, record


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
