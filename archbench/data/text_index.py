"""What is known of files that were read before: their checksum and splits, so that later phases read no text."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from archbench.data.cache import content_key, write_atomically
from archbench.data.documents import Corpus
from archbench.data.local_text import FileDocument
from archbench.errors import DataError
from archbench.files.loader import read_model
from archbench.files.seal import sealed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

M = TypeVar("M")

_log = logging.getLogger(__name__)

_FORMAT = "1"
_SETTLED = 2_000_000_000
"""Nanoseconds after which a file's times tell one change from the next, on any file system."""


@dataclass(frozen=True)
class _Entry:
    """``splits``: split -> (number of the file, its first byte, the byte after its last) of each document."""

    corpus_sha256: str
    held_out: str
    splits: dict[str, list[tuple[int, int, int]]]


class FileIndex:
    """What was found in files, known again as long as every file has the same path, size, times and inode.

    Args:
        cache: the cache folder.
        files: all of them, read or not.
        kind: what else the finding depends on.
    """

    def __init__(self, cache: Path, files: Sequence[FileDocument], *kind: str) -> None:
        self._files = files
        self._listed = time.time_ns()
        parts = json.dumps([[file.name, file.path, *file.stamp] for file in files])
        self.path = cache / "texts" / f"{content_key(*kind, parts)}.json"

    def read(self, kind: type[M]) -> M | None:
        """What was found; None if nothing is kept, or it is damaged."""
        if not self.path.exists():
            return None
        try:
            return read_model(kind, self.path, error=DataError, next_step="It is made again", sealing="required")
        except DataError as error:
            _log.warning("what is known of a text is damaged, and it is read again: %s", error)
            return None

    def write(self, entry: DataclassInstance) -> None:
        """Keep what was found, except in a file that changed a moment ago: another change might leave the same times.

        Raises:
            StorageError: the cache folder cannot be written.
        """
        if any(self._listed - max(file.stamp[1:3]) < _SETTLED for file in self._files):
            return
        content = sealed(asdict(entry), indent=None).encode()
        write_atomically(self.path, lambda file: file.write(content))


class TextIndex:
    """One corpus of text files; takes what :class:`FileIndex` takes."""

    def __init__(self, cache: Path, files: Sequence[FileDocument], validation_fraction: float) -> None:
        self._files = files
        self._index = FileIndex(cache, files, "text", _FORMAT, repr(validation_fraction))

    def read(self) -> Corpus | None:
        """The corpus, without its name and source; None if it was not read before."""
        entry = self._index.read(_Entry)
        if entry is None:
            return None
        try:
            splits = {
                split: tuple(replace(self._files[number], start=start, end=end) for number, start, end in parts)
                for split, parts in entry.splits.items()
            }
            parts_fit = all(0 <= one.start < one.end <= one.stamp[0] for parts in splits.values() for one in parts)
        except IndexError:
            parts_fit = False
        if not parts_fit or splits.keys() != {"train", "validation"}:
            _log.warning(
                "%s is damaged, it names splits that the files do not have, and is made again", self._index.path
            )
            return None
        return Corpus("", splits, entry.corpus_sha256, "unknown", "", entry.held_out)

    def write(self, corpus: Corpus) -> None:
        """Keep what was found.

        Raises:
            StorageError: the cache folder cannot be written.
        """
        numbers = {file.path: number for number, file in enumerate(self._files)}
        splits = {
            split: [(numbers[one.path], one.start, one.end) for one in documents if isinstance(one, FileDocument)]
            for split, documents in corpus.splits.items()
        }
        self._index.write(_Entry(corpus.sha256, corpus.held_out, splits))
