"""What is known of text files that were read before: their checksum and splits, so that later phases read no text."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from archbench.data.cache import content_key, write_atomically
from archbench.data.documents import Corpus
from archbench.data.local_text import FileDocument
from archbench.errors import DataError
from archbench.files.loader import read_model
from archbench.files.seal import sealed

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


class TextIndex:
    """One corpus of files, found again as long as every file has the same path, size, times and inode.

    Args:
        cache: the cache folder.
        files: all files of the corpus, read or not.
    """

    def __init__(self, cache: Path, files: Sequence[FileDocument], validation_fraction: float) -> None:
        self._files = files
        self._listed = time.time_ns()
        parts = json.dumps([[file.name, file.path, *file.stamp] for file in files])
        self.path = cache / "texts" / f"{content_key('text', _FORMAT, parts, repr(validation_fraction))}.json"

    def read(self) -> Corpus | None:
        """The corpus, without its name and source; None if it was not read before."""
        if not self.path.exists():
            return None
        try:
            entry = read_model(_Entry, self.path, error=DataError, next_step="It is made again", sealing="required")
            splits = {
                split: tuple(replace(self._files[number], start=start, end=end) for number, start, end in parts)
                for split, parts in entry.splits.items()
            }
            parts_fit = all(0 <= one.start < one.end <= one.stamp[0] for parts in splits.values() for one in parts)
            if not parts_fit or splits.keys() != {"train", "validation"}:
                raise DataError(str(self.path), "it names splits that the files do not have", "It is made again")
        except (DataError, IndexError) as error:
            _log.warning("what is known of a text is damaged, and it is read again: %s", error)
            return None
        return Corpus("", splits, entry.corpus_sha256, "unknown", "", entry.held_out)

    def write(self, corpus: Corpus) -> None:
        """Keep what was found, except of a file that changed a moment ago: another change might leave the same times.

        Raises:
            StorageError: the cache folder cannot be written.
        """
        if any(self._listed - max(file.stamp[1:3]) < _SETTLED for file in self._files):
            return
        numbers = {file.path: number for number, file in enumerate(self._files)}
        splits = {
            split: [(numbers[one.path], one.start, one.end) for one in documents if isinstance(one, FileDocument)]
            for split, documents in corpus.splits.items()
        }
        entry = {"corpus_sha256": corpus.sha256, "held_out": corpus.held_out, "splits": splits}
        write_atomically(self.path, lambda file: file.write(sealed(entry, indent=None).encode()))
