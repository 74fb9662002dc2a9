"""A corpus of tokens in shards: files in a folder or by a pattern, listed, checked once, and mapped."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from archbench.data.byte_tokenizer import Tokenizer
from archbench.data.documents import Corpus, TextDocument
from archbench.data.local_text import FileDocument, listed
from archbench.data.shard_file import SUFFIXES, ShardFile, open_shard
from archbench.data.spelling import Spelling
from archbench.data.text_index import FileIndex
from archbench.data.token_stream import ShardedTokens, TokenArray, Tokens
from archbench.errors import DataError

MOST_DOCUMENTS = 1_000_000
"""Validation documents; each takes about three hundred bytes of memory."""

_SPLIT = re.compile(r"(?:^|[^a-z])(train|val|valid|validation|test)(?:[^a-z]|$)")
_TOKENS = 1 << 14


@dataclass(frozen=True)
class TokenDocument:
    """Tokens whose text is what they spell; it is nowhere else."""

    name: str
    tokens: Tokens
    spelling: Spelling

    @property
    def n_bytes(self) -> int:
        return sum(map(len, self.blocks()))

    @property
    def text(self) -> str:
        return b"".join(self.blocks()).decode("utf-8", "replace")

    def read(self, start: int, end: int) -> bytes:
        return b"".join(self.blocks())[start:end]

    def part(self, start: int, end: int) -> TextDocument:
        return TextDocument(self.name, self.read(start, end).decode("utf-8", "replace"))

    def blocks(self) -> Iterator[bytes]:
        for start in range(0, len(self.tokens), _TOKENS):
            yield self.spelling(self.tokens[start : start + _TOKENS])


@dataclass(frozen=True)
class Shards:
    """What shards hold.

    Attributes:
        corpus: its documents are what the tokens spell; without any if nobody knows that.
        train: shape (N,).
        validation: name, tokens, and bytes (None if they are not known) of each held-out document.
    """

    corpus: Corpus
    train: Tokens
    validation: tuple[tuple[str, TokenArray, int | None], ...]


@dataclass(frozen=True)
class _Entry:
    """``documents``: number of the file, first token, the one after the last, and bytes, of each held-out document."""

    corpus_sha256: str
    held_out: str
    train_tokens: int
    documents: list[tuple[int, int, int, int | None]]


def are_shards(spec: str) -> bool:
    """Whether a corpus of this name is shards: a ``.bin`` or ``.npy``, a folder with some for training or validation,
    or a pattern of names of such files."""
    if os.path.isdir(spec):
        return any(_split(name) for name in os.listdir(spec) if name.lower().endswith(SUFFIXES))
    return spec.lower().endswith(SUFFIXES) and (os.path.exists(spec) or glob.has_magic(spec))


def load_shards(spec: str, tokenizer: Tokenizer, validation_fraction: float, cache: Path) -> Shards:
    """Map the shards; all of their content is read once, and again when a file has changed.

    Args:
        spec: as :func:`are_shards`.
        tokenizer: that the tokens were made with; its separator is what stands between documents.
        validation_fraction: share of the tokens held out, at the end, if no file is for validation.

    Raises:
        DataError: a shard is damaged, holds an id that the tokenizer does not have, or is of another width than the
            others; there is none to train on or to validate on.
        StorageError: the cache folder cannot be written.
    """
    files = _listed(spec)
    shards = {split: [open_shard(file) for file in found] for split, found in files.items()}
    every = [shard for found in shards.values() for shard in found]
    if len({shard.dtype for shard in every}) > 1:
        one, other = (next(s.file.path for s in every if s.dtype.itemsize == width) for width in (2, 4))
        cause = f"its shards have tokens of two widths: 16 bits in {one!r}, 32 in {other!r}"
        raise DataError(f"corpus {spec!r}", cause, "Give shards of one tokenizer, in folders of their own")
    key = ("shards", "1", tokenizer.fingerprint, str(tokenizer.vocab_size), repr(validation_fraction))
    index = FileIndex(cache, [shard.file for shard in every], *key)
    table = tokenizer.token_bytes()
    spelling = None if table is None else Spelling(table)
    entry = index.read(_Entry)
    if entry is None or not _fits(entry, every):
        entry = _examined(spec, shards, tokenizer, spelling, validation_fraction)
        index.write(entry)
    mapped = [shard.tokens() for shard in every]
    train = _joined(mapped, entry.train_tokens)
    held = tuple(
        (f"{every[number].file.name}:{start}", mapped[number][start:end], n_bytes)
        for number, start, end, n_bytes in entry.documents
    )
    texts = {} if spelling is None else {
        "train": [TokenDocument("train", train, spelling)],
        "validation": [TokenDocument(name, tokens, spelling) for name, tokens, _ in held],
    }  # fmt: skip
    source = f"shards of tokens, {spec}"
    return Shards(Corpus(spec, texts, entry.corpus_sha256, "unknown", source, entry.held_out), train, held)


def _listed(spec: str) -> dict[str, list[FileDocument]]:
    """Files for training and, if there are any, for validation, sorted by name."""
    if os.path.isdir(spec):
        names = [os.path.join(spec, name) for name in os.listdir(spec) if name.lower().endswith(SUFFIXES)]
        names = [name for name in names if _split(os.path.basename(name))]
    else:
        names = [spec] if os.path.exists(spec) else glob.glob(spec)
    found: dict[str, list[FileDocument]] = {}
    for path in sorted(names):
        split = _split(os.path.basename(path)) or "train"
        found.setdefault(split, []).append(listed(path, os.path.basename(path)))
    if "train" not in found:
        cause = f"none of its files ({len(names)}) is for training"
        step = "Name them as llm.c does: NAME_train_000001.bin, NAME_val_000000.bin"
        raise DataError(f"corpus {spec!r}", cause, step)
    return {split: found[split] for split in ("train", "validation") if split in found}


def _split(name: str) -> str | None:
    found = _SPLIT.search(name.lower())
    return None if found is None else {"train": "train", "test": "test"}.get(found[1], "validation")


def _fits(entry: _Entry, every: Sequence[ShardFile]) -> bool:
    """Whether an entry names only tokens that are there."""
    return 0 < entry.train_tokens <= sum(shard.n_tokens for shard in every) and all(
        0 <= number < len(every) and 0 <= start < end <= every[number].n_tokens
        for number, start, end, _ in entry.documents
    )


def _examined(
    spec: str,
    shards: dict[str, list[ShardFile]],
    tokenizer: Tokenizer,
    spelling: Spelling | None,
    validation_fraction: float,
) -> _Entry:
    """Read all shards once: checksum, ids, and where the validation documents begin and end."""
    total = sum(shard.n_tokens for shard in shards["train"])
    first, held_out = total, "the validation shards"
    if "validation" not in shards and validation_fraction == 1:
        first, held_out = 0, "all shards"
    elif "validation" not in shards:
        first = _cut(shards["train"], total, validation_fraction, tokenizer)
        held_out = f"the last {1 - first / total:.1%} of the tokens"
    digest, documents = hashlib.sha256(), list[tuple[int, int, int, int | None]]()
    number = position = 0
    for split, found in shards.items():
        digest.update(f"{split}:{len(found)};".encode())
        for shard in found:
            digest.update(f"{shard.n_tokens};{shard.dtype.itemsize};".encode())
            begin = max(0, first - position) if split == "train" else 0
            cutter = _Documents(tokenizer.separator, spelling, begin)
            for tokens in shard.read(tokenizer.vocab_size):
                digest.update(tokens.data)
                documents += ((number, *one) for one in cutter.of(tokens))
            documents += ((number, *one) for one in cutter.rest())
            if len(documents) > MOST_DOCUMENTS:
                cause = f"its validation part has more than {MOST_DOCUMENTS:,} documents"
                raise DataError(f"corpus {spec!r}", cause, "Hold out fewer shards, or a smaller validation_fraction")
            number += 1
            position += shard.n_tokens
    if not documents or (validation_fraction < 1 and not first):
        cause = "there is no token to train on or none to validate on"
        raise DataError(f"corpus {spec!r}", cause, "Give more shards, or another validation_fraction")
    return _Entry(digest.hexdigest(), held_out, first or total, documents)


def _cut(shards: Sequence[ShardFile], total: int, validation_fraction: float, tokenizer: Tokenizer) -> int:
    """The first token of the validation part: a separator if one is near, as between documents of a text."""
    wanted = int(total * (1 - validation_fraction))
    most = min(wanted, int(0.1 * validation_fraction * total), 1 << 22)
    near = _joined([shard.tokens() for shard in shards], total)[wanted - most : wanted + 1]
    ends = np.flatnonzero(near == tokenizer.separator)
    return wanted - most + int(ends[-1]) if len(ends) else wanted


class _Documents:
    """The documents between the separators of one shard, whose tokens are given in parts.

    Args:
        begin: tokens before it are of no document.
    """

    def __init__(self, separator: int, spelling: Spelling | None, begin: int) -> None:
        self._separator, self._lengths = separator, None if spelling is None else spelling.lengths
        self._begin = self._start = begin
        self._done = self._bytes = 0

    def of(self, tokens: TokenArray) -> Iterator[tuple[int, int, int | None]]:
        """First token, the one after the last, and bytes of each document that ends in this part."""
        skipped = min(max(0, self._begin - self._done), len(tokens))
        done, tokens = self._done + skipped, tokens[skipped:]
        self._done = done + len(tokens)
        sums = None if self._lengths is None else np.cumsum(self._lengths[tokens])
        before = -self._bytes
        for end in np.flatnonzero(tokens == self._separator).tolist():
            so_far = 0 if sums is None else int(sums[end])
            if done + end > self._start:
                yield self._start, done + end, None if sums is None else so_far - before
            self._start, before = done + end + 1, so_far
        self._bytes = (0 if sums is None or not len(sums) else int(sums[-1])) - before

    def rest(self) -> Iterator[tuple[int, int, int | None]]:
        """The document that the shard ends with."""
        if self._done > self._start:
            yield self._start, self._done, None if self._lengths is None else self._bytes


def _joined(parts: Sequence[TokenArray], length: int) -> Tokens:
    """The first ``length`` tokens of the arrays together."""
    kept = list[TokenArray]()
    for part in parts:
        if length > 0:
            kept.append(part[:length])
        length -= len(part)
    return kept[0] if len(kept) == 1 else ShardedTokens(kept)
