"""Floors of bits per byte: what byte counts and general compressors reach on the same text as a model.

The n-grams are interpolated Witten-Bell models over bytes (Bell, Cleary & Witten 1990, Text Compression, escape
method C; Chen & Goodman 1998, An Empirical Study of Smoothing Techniques for Language Modeling, section 2.5):

    P_n(b | h) = (c(h b) + T(h) P_{n-1}(b | h')) / (c(h) + T(h)),    P_0(b) = 1/256

where c counts in the training bytes, T(h) is how many different bytes follow h there, and h' is h without its
first byte. For a history never seen (T = 0) P_n is P_{n-1}.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from archbench.errors import DataError

MOST_COUNTED = 32 * 2**20
"""Most bytes of training text that the n-grams count, from its start: more would take minutes and tens of gigabytes."""

AT_ONCE = 8 * 2**20
"""Bytes of text whose probabilities are in memory at once, each in about ten arrays of eight bytes."""

_ORDERS = {1: "unigram", 2: "bigram", 5: "fivegram"}

COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "zlib": lambda data: zlib.compress(data, 9),
    "bz2": lambda data: bz2.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}
"""At their strongest: zlib-9, bz2-9, xz-9e."""


def floors(train: bytes | None, validation: bytes) -> dict[str, float]:
    """Bits per byte of ``validation``: ``unigram``, ``bigram`` and ``fivegram`` from ``train`` (at most its first
    :data:`MOST_COUNTED` bytes), if there is any; ``zlib``, ``bz2`` and ``xz`` from itself alone.

    Raises:
        DataError: one of the texts is empty.
    """
    if train == b"" or not validation:
        raise DataError("corpus", "a split is empty", "Give a corpus with text to train and to validate on")
    compressed = {name: compressed_bits_per_byte(validation, name) for name in COMPRESSORS}
    if train is None:
        return compressed
    order = max(_ORDERS)
    counts = [_count(train[:MOST_COUNTED], n) for n in range(1, order + 1)]
    bits = dict.fromkeys(_ORDERS, 0.0)
    for start in range(0, len(validation), AT_ONCE):
        before = min(start, order - 1)  # bytes that are only read as histories
        text = validation[start - before : start + AT_ONCE]
        for n, values in enumerate(_probabilities(counts, text)):
            if n in _ORDERS:
                bits[n] += float(-np.log2(values[before:]).mean()) * ((len(text) - before) / len(validation))
    return {name: bits[n] for n, name in _ORDERS.items()} | compressed


def compressed_bits_per_byte(data: bytes, compressor: str) -> float:
    """Bits per byte of ``data`` compressed alone, the format's headers included."""
    return 8 * len(COMPRESSORS[compressor](data)) / len(data)


def byte_ngrams(train: bytes, text: bytes, *, order: int) -> Iterator[npt.NDArray[np.float64]]:
    """For n = 0 … order, the probability of each byte of ``text`` given the n - 1 bytes before it; shape (len(text),).

    The first bytes of ``text``, which have fewer bytes before them, keep the probability of a lower order.
    """
    return _probabilities([_count(train, n) for n in range(1, order + 1)], text)


_Counts = tuple[npt.NDArray[np.int64], ...]


def _count(train: bytes, n: int) -> _Counts | None:
    """The n-grams in order and their counts; the histories in order, their counts and how many bytes follow each."""
    seen = np.frombuffer(train, dtype=np.uint8)
    if len(seen) < n:
        return None
    grams, counts = np.unique(_grams(seen, n), return_counts=True)
    histories, first = np.unique(grams >> 8, return_index=True)
    return grams, counts, histories, np.add.reduceat(counts, first), np.diff(first, append=len(grams))


def _probabilities(counted: Sequence[_Counts | None], text: bytes) -> Iterator[npt.NDArray[np.float64]]:
    """As :func:`byte_ngrams`, of what was counted for n = 1, 2 …"""
    asked = np.frombuffer(text, dtype=np.uint8)
    probability = np.full(len(asked), 1 / 256)
    yield probability
    for n, found in enumerate(counted, start=1):
        if found is None or len(asked) < n:
            yield probability
            continue
        grams, counts, histories, totals, kinds = found
        wanted = _grams(asked, n)
        count = _look_up(grams, counts, wanted)
        total, T = _look_up(histories, totals, wanted >> 8), _look_up(histories, kinds, wanted >> 8)
        lower = probability[n - 1 :]
        probability = probability.copy()
        probability[n - 1 :] = np.where(T > 0, (count + T * lower) / np.maximum(total + T, 1), lower)
        yield probability


def _grams(data: npt.NDArray[np.uint8], n: int) -> npt.NDArray[np.int64]:
    """The n-grams of ``data``, each as one number, the last byte lowest; shape (len(data) - n + 1,)."""
    grams = np.zeros(len(data) - n + 1, dtype=np.int64)
    for k in range(n):
        grams = grams << 8 | data[k : len(data) - n + 1 + k]
    return grams


def _look_up(
    keys: npt.NDArray[np.int64], values: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """``values`` of the ``wanted`` among the sorted ``keys``; 0 for those not there."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
