"""What trackers read of training: a line of JSON a step, in a file of the run's folder.

A file and not a pipe, so that training never waits for a slow tracker, and a resumed run continues the same one. It is
no result, and only trackers read it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Self

from pydantic import BaseModel

from archbench.errors import ArchbenchWarning, StorageError
from archbench.files.loader import open_regular, validated_line

FEED = "training.jsonl"

_LONGEST = 1 << 20
"""Bytes of a line."""


class _Line(BaseModel):
    step: int
    tokens: int
    values: dict[str, float]


class Feed:
    """The end that training writes to. No file is made before there is something to write.

    If the file cannot be written, a warning says so, and trackers get no more of this training.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FEED
        self._file: IO[bytes] | None = None
        self._given_up = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def log(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        """A step's values, as :meth:`archbench.trackers.tracker.Tracker.log` gets them, without the ``train/``."""
        if self._given_up:
            return
        named = {f"train/{name}": value for name, value in values.items()}
        line = json.dumps({"step": step, "tokens": tokens, "values": named}) + "\n"
        try:
            self._file = self._file or self._opened()
            left = line.encode()
            while left:  # a disk that fills up takes a part of it first
                left = left[self._file.write(left) :]
        except OSError as error:
            self._given_up = True
            message = (
                f"{self._path}: it cannot be written ({error.strerror}). The trackers see no more of this training"
            )
            warnings.warn(f"{message}; its results are not affected.", ArchbenchWarning, stacklevel=2)

    def _opened(self) -> IO[bytes]:
        whole = 0
        if self._path.exists():
            with open_regular(self._path) as written:
                start = max(0, written.seek(0, os.SEEK_END) - _LONGEST)
                written.seek(start)
                whole = start + written.read(_LONGEST).rfind(b"\n") + 1
        file = self._path.open("ab", buffering=0)
        file.truncate(whole)  # a process that was killed may leave half a line
        return file


class FeedReader:
    """The end that a tracker reads from.

    Args:
        folder: the run's.
        position: bytes that an earlier reader has read.
    """

    def __init__(self, folder: Path, position: int = 0) -> None:
        self.position = 0
        self._path = folder / FEED
        self._last_step: dict[str, int] = {}
        for line in self._lines(0, position):
            self._last_step |= dict.fromkeys(line.values, line.step)

    def read(self) -> Iterator[tuple[int, int, dict[str, float]]]:
        """Step, tokens and values that are new; steps that a resumed run repeats from a checkpoint are left out."""
        for line in self._lines(self.position, None):
            step = line.step
            new = {name: value for name, value in line.values.items() if step > self._last_step.get(name, -1)}
            self._last_step |= dict.fromkeys(new, step)
            if new:
                yield step, line.tokens, new

    def _lines(self, start: int, end: int | None) -> Iterator[_Line]:
        """Complete lines from ``start`` to ``end``; each advances the position."""
        if not self._path.exists():
            return
        self.position = start
        with open_regular(self._path) as file:
            file.seek(start)
            while end is None or self.position < end:
                line = file.readline(_LONGEST)
                if len(line) < _LONGEST and not line.endswith(b"\n"):
                    return  # it is the end, or being written
                self.position += len(line)
                step = "Delete it; the trackers then see only what follows"
                yield validated_line(_Line, line, error=StorageError, culprit=str(self._path), next_step=step)
