"""From a corpus and a tokenizer to tokens on disk: memory-mapped, cached by the hash of their sources."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from archbench.config import DataConfig
from archbench.data.byte_tokenizer import Tokenizer
from archbench.data.cache import alone, cache_folder
from archbench.data.corpora import load_corpus
from archbench.data.documents import Corpus
from archbench.data.shards import are_shards, load_shards
from archbench.data.token_file import Record, TokenFile
from archbench.data.token_stream import TokenArray, Tokens
from archbench.data.tokenizers import load_tokenizer
from archbench.data.watched_encoding import encode_apart
from archbench.errors import DataError


@dataclass(frozen=True)
class EncodedDocument:
    """A document as tokens, shape (N,), and the number of bytes of its text; None if nobody knows that."""

    name: str
    tokens: TokenArray
    n_bytes: int | None


@dataclass(frozen=True)
class Dataset:
    """Text as tokens, ready for training and scoring.

    Attributes:
        train: tokens, shape (N,), memory-mapped, uint16 or uint32; each document begins with the separator.
        validation: the held-out documents, each on its own, without separators.
        lossless: whether the tokens spell the text's bytes; checked for each document of a text. None of shards whose
            text is not known.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    train: Tokens
    validation: tuple[EncodedDocument, ...]
    lossless: bool | None

    @property
    def validation_bytes(self) -> int | None:
        """Bytes of the held-out text; None if they are not known."""
        return total_bytes(document.n_bytes for document in self.validation)


def total_bytes(sizes: Iterable[int | None]) -> int | None:
    """The sum, or None if one is not known."""
    known = list(sizes)
    return None if None in known else sum(size for size in known if size is not None)


def prepare(data: DataConfig, *, cache: Path | None = None, sha256: str | None = None) -> Dataset:
    """Load the corpus and the tokenizer, and encode the text, read the tokens from the cache, or map shards.

    Text is read, hashed, encoded and written block by block. Files that were prepared before, and have not changed
    since, are not read. Of several processes that prepare the same data, one does, and the others wait for it. Cached
    tokens with a wrong checksum are encoded again, and a warning is logged.

    Args:
        cache: folder of trained tokenizers and tokens; None for :func:`archbench.data.cache.cache_folder`.
        sha256: of the corpus that a run began with; None if it begins now.

    Raises:
        DataError: the corpus or tokenizer cannot be used (see :func:`load_corpus` and :func:`load_tokenizer`), or the
            corpus is not the one that the run began with.
        StorageError: the cache folder cannot be written, or has no room.
    """
    cache = cache or cache_folder()
    if are_shards(data.corpus):
        return _of_shards(data, cache, sha256)
    corpus = load_corpus(data.corpus, validation_fraction=data.validation_fraction, cache=cache)
    _require_same(corpus, sha256)
    tokenizer = load_tokenizer(data.tokenizer, corpus=corpus, cache=cache)
    file = TokenFile(cache, corpus, tokenizer)
    cached = file.read()
    if cached is None:
        with alone(file.path):
            cached = file.read() or _encoded(file, data, tokenizer, cache)
    if cached is None:
        raise DataError(f"file {str(file.path)!r}", "it differs from what was just written", "Check the disk")
    tokens, record = cached
    starts = [record.train_tokens, *record.ends[:-1]]
    validation = tuple(
        EncodedDocument(document.name, tokens[start:end], document.n_bytes)
        for document, start, end in zip(corpus.splits["validation"], starts, record.ends, strict=True)
    )
    return Dataset(corpus, tokenizer, tokens[: record.train_tokens], validation, record.lossless)


def _of_shards(data: DataConfig, cache: Path, sha256: str | None) -> Dataset:
    if data.tokenizer.startswith("bpe:"):
        cause = f"{data.tokenizer} is trained on text, and shards hold tokens"
        step = "Name the tokenizer that they were made with (file:tokenizer.json, hf:NAME), or its number of ids: ids:V"
        raise DataError(f"corpus {data.corpus!r}", cause, step)
    tokenizer = load_tokenizer(data.tokenizer, cache=cache)
    shards = load_shards(data.corpus, tokenizer, data.validation_fraction, cache)
    _require_same(shards.corpus, sha256)
    validation = tuple(EncodedDocument(*document) for document in shards.validation)
    lossless = None if tokenizer.token_bytes() is None else tokenizer.lossless
    return Dataset(shards.corpus, tokenizer, shards.train, validation, lossless)


def _require_same(corpus: Corpus, sha256: str | None) -> None:
    if sha256 not in (None, corpus.sha256):
        step = "Restore the text, or begin a new run"
        raise DataError(f"corpus {corpus.name!r}", "its text is not the one that the run began with", step)


def _encoded(file: TokenFile, data: DataConfig, tokenizer: Tokenizer, cache: Path) -> tuple[TokenArray, Record] | None:
    if tokenizer.is_linear:
        file.write()
    else:
        encode_apart(data, tokenizer.name, cache)
    return file.read()
