"""Documents and corpora: text before it becomes tokens. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from archbench.errors import DataError


@dataclass(frozen=True)
class Document:
    """A self-contained text: a play, a file, a row of a data set."""

    name: str
    text: str

    def to_bytes(self) -> bytes:
        """The document's raw bytes, by which bits per byte divides.

        Raises:
            DataError: the text holds a lone surrogate, which has no bytes.
        """
        return utf8(self.text, f"document {self.name!r}")


@dataclass(frozen=True)
class Corpus:
    """Documents in disjoint splits: ``train``, ``validation`` and, in some corpora, ``test``.

    Attributes:
        sha256: hex digest of every split's documents, in order; it depends on boundaries, not on names.
        licence: SPDX identifier or words; ``"unknown"`` for the user's own text.
        source: where the text comes from.
        held_out: which part of it the validation split is, in words.
    """

    name: str
    splits: Mapping[str, tuple[Document, ...]]
    sha256: str
    licence: str
    source: str
    held_out: str = "the validation split"

    def to_bytes(self, split: str) -> bytes:
        """The documents of ``split``, concatenated, as raw bytes."""
        return b"".join(document.to_bytes() for document in self.splits[split])


def make_corpus(
    name: str,
    splits: Mapping[str, tuple[Document, ...]],
    *,
    licence: str,
    source: str,
    held_out: str = "the validation split",
) -> Corpus:
    """A corpus with its checksum.

    Raises:
        DataError: a lone surrogate, or no text to train or validate on.
    """
    digest = hashlib.sha256()
    for split, documents in sorted(splits.items()):
        digest.update(f"{split}:{len(documents)};".encode())
        for document in documents:
            data = document.to_bytes()
            digest.update(f"{len(data)};".encode())
            digest.update(data)
    for split in ("train", "validation"):
        if not any(document.text for document in splits[split]):
            raise DataError(f"corpus {name!r}", f"its {split} split is empty", "Give a corpus with text in every split")
    return Corpus(name, splits, digest.hexdigest(), licence, source, held_out)


def utf8(text: str, culprit: str) -> bytes:
    """``text`` as UTF-8.

    Raises:
        DataError: the text holds a lone surrogate; says where.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise DataError(
            culprit,
            f"character {error.start} is the lone surrogate {code}, which no UTF-8 text can hold",
            "Remove it, or decode the original bytes again without errors='surrogateescape' or 'surrogatepass'",
        ) from None
