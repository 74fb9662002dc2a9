"""Data sets from the Hugging Face hub, with the optional extra ``datasets``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archbench.data.documents import Document
from archbench.errors import DataError, one_line

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_TEXT_COLUMNS = ("text", "content")


def read_hub(spec: str) -> dict[str, tuple[Document, ...]]:
    """The data set ``NAME[:CONFIG]``: one document per row, in order; empty rows are skipped.

    Returns:
        Splits by archbench's names; ``train`` always exists.

    Raises:
        DataError: ``datasets`` is not installed, or the data set cannot be loaded or has no text column.
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


def _splits(loaded: Mapping[str, Any], culprit: str) -> dict[str, tuple[Document, ...]]:
    found = {}
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


def _documents(rows: Any, split: str, culprit: str) -> tuple[Document, ...]:
    texts = [name for name, feature in rows.features.items() if getattr(feature, "dtype", "").endswith("string")]
    column = next((name for name in _TEXT_COLUMNS if name in texts), texts[0] if len(texts) == 1 else None)
    if column is None:
        columns = ", ".join(rows.features)
        cause = f"it is not clear which of its columns ({columns}) is the text"
        raise DataError(culprit, cause, "Use a data set with a column named text")
    return tuple(Document(f"{split}/{i}", text) for i, text in enumerate(rows[column]) if text)
