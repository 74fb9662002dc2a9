"""Tokens in mapped files: one array or several after each other, of which little is in memory however long they are."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.integer[Any]]

MOST_RESIDENT = 64 << 20
"""Bytes of mapped pages after which they are given back: they count as a process's memory, and would be all of a text
in the end. The system keeps them in its cache, from which they are mapped again."""
_AROUND = 2 << 20
"""Bytes that Linux may map at a place that is read, if they are in its cache: a huge page."""


class ShardedTokens:
    """Arrays of tokens, read as one.

    Args:
        parts: of one dtype; none is empty.
    """

    def __init__(self, parts: Sequence[TokenArray]) -> None:
        self.parts = tuple(parts)
        self.dtype = self.parts[0].dtype
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, span: slice) -> TokenArray:
        """A copy of some tokens that follow each other."""
        start, end, step = span.indices(len(self))
        assert step == 1, "tokens are read in order"
        return self.take(np.arange(start, end))

    def take(self, places: npt.NDArray[np.int64], mode: str = "wrap") -> TokenArray:
        """The tokens at ``places``, of any shape; they form a ring."""
        assert mode == "wrap", "tokens are read as a ring"
        places = places % len(self)
        owners = np.searchsorted(self._ends, places, side="right")
        found = np.empty(places.shape, self.dtype)
        for owner in np.unique(owners):
            here, part = owners == owner, self.parts[owner]
            found[here] = part[places[here] - (self._ends[owner] - len(part))]
        return found


Tokens = TokenArray | ShardedTokens


class Reading:
    """Counts what is read of mapped tokens, and gives their pages back before there are many."""

    def __init__(self, *tokens: Tokens) -> None:
        maps = {id(file): file for file in _maps(tokens)} if hasattr(mmap, "MADV_DONTNEED") else {}
        self._maps = maps if sum(map(len, maps.values())) > MOST_RESIDENT else {}
        self._read = 0

    def parts(self, places: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """``places`` (n, …), so few at a time that what is mapped for them stays in bounds; counts them."""
        size = max(1, MOST_RESIDENT // _AROUND) if self._maps else len(places)
        for start in range(0, len(places), size):
            yield (some := places[start : start + size])
            self.count(8 * some[0].size, len(some))

    def count(self, n_bytes: int, places: int = 1) -> None:
        """``n_bytes`` were read at each of so many ``places``."""
        self._read += places * (n_bytes + _AROUND)
        if self._read > MOST_RESIDENT:
            for file in self._maps.values():
                file.madvise(mmap.MADV_DONTNEED)
            self._read = 0


def blocks(tokens: TokenArray) -> Iterator[TokenArray]:
    """The array in parts that may all be read while few are in memory."""
    reading, size = Reading(tokens), MOST_RESIDENT // 8 // tokens.itemsize
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]
        reading.count(size * tokens.itemsize)


def _maps(tokens: Sequence[Tokens]) -> Iterator[mmap.mmap]:
    for one in tokens:
        for part in one.parts if isinstance(one, ShardedTokens) else (one,):
            base: Any = part
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap):
                yield base
