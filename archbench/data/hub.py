"""Data sets from the Hugging Face hub, with the optional extra ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archbench.data.documents import Document, TextDocument
from archbench.errors import DataError, one_line

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_TEXT_COLUMNS = ("text", "content")

MOST_ROWS = 5_000_000
"""Rows with text; each of them is a document, and takes about a hundred bytes of memory."""
_ROWS_AT_ONCE = 1000


class _Column:
    """The texts of a column; only the rows around the last one read are in memory."""

    def __init__(self, rows: Any, name: str) -> None:
        self._rows, self._name = rows, name
        self._first, self._texts = -1, list[str | None]()

    def __len__(self) -> int:
        return len(self._rows)

    def text(self, row: int) -> str | None:
        first = row - row % _ROWS_AT_ONCE
        if first != self._first:
            self._texts = list(self._rows[first : first + _ROWS_AT_ONCE][self._name])
            self._first = first
        return self._texts[row - first]


@dataclass(frozen=True, slots=True)
class HubDocument:
    """A row of a data set, whose text stays on disk."""

    split: str
    column: _Column
    row: int
    n_bytes: int

    @property
    def name(self) -> str:
        return f"{self.split}/{self.row}"

    @property
    def text(self) -> str:
        return self.column.text(self.row) or ""

    def read(self, start: int, end: int) -> bytes:
        return TextDocument(self.name, self.text).read(start, end)

    def part(self, start: int, end: int) -> TextDocument:
        return TextDocument(self.name, self.text).part(start, end)

    def blocks(self) -> Iterator[bytes]:
        return TextDocument(self.name, self.text).blocks()


def read_hub(spec: str) -> dict[str, Sequence[Document]]:
    """The data set ``NAME[:CONFIG]``: one document per row, in order; empty rows are skipped.

    Returns:
        Splits by archbench's names; ``train`` always exists.

    Raises:
        DataError: ``datasets`` is not installed, or the data set cannot be loaded, has no text column
            or too many rows.
    """
    culprit = f"corpus {'hf:' + spec!r}"
    try:
        import datasets
    except ImportError:
        raise DataError(culprit, "it needs the package datasets", "Run: pip install 'archbench[datasets]'") from None
    name, _, config = spec.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # the hub's errors (network, name, configuration, script) have no common base
        cause = f"it cannot be loaded ({one_line(error)})"
        raise DataError(culprit, cause, "Check the name and configuration on the hub, and the network") from error
    return _splits(loaded, culprit)


def _splits(loaded: Mapping[str, Any], culprit: str) -> dict[str, Sequence[Document]]:
    found: dict[str, Sequence[Document]] = {}
    for split, spellings in _SPLITS.items():
        given = next((name for name in spellings if name in loaded), None)
        if given is not None:
            found[split] = _documents(loaded[given], given, culprit)
    if "train" not in found:
        if len(loaded) != 1:
            names = ", ".join(loaded)
            raise DataError(culprit, f"none of its splits ({names}) is for training", "Choose another configuration")
        found = {"train": _documents(next(iter(loaded.values())), next(iter(loaded)), culprit)}
    return found


def _documents(rows: Any, split: str, culprit: str) -> list[HubDocument]:
    texts = [name for name, feature in rows.features.items() if getattr(feature, "dtype", "").endswith("string")]
    column = next((name for name in _TEXT_COLUMNS if name in texts), texts[0] if len(texts) == 1 else None)
    if column is None:
        columns = ", ".join(rows.features)
        cause = f"it is not clear which of its columns ({columns}) is the text"
        raise DataError(culprit, cause, "Use a data set with a column named text")
    texts_of = _Column(rows, column)
    found = []
    for row in range(len(texts_of)):
        if text := texts_of.text(row):
            found.append(HubDocument(split, texts_of, row, TextDocument(f"{split}/{row}", text).n_bytes))
            if len(found) > MOST_ROWS:
                cause = f"its split {split} has more than {MOST_ROWS:,} rows with text"
                raise DataError(culprit, cause, "Write the part that you need into text files, and give their folder")
    return found
