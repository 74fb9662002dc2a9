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
import platform
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np
import numpy.typing as npt

from archbench.data.cache import cache_folder, content_key, write_atomically
from archbench.data.dataset import Dataset
from archbench.errors import DataError, StorageError
from archbench.files.loader import read_model
from archbench.files.seal import sealed

MOST_COUNTED = 32 * 2**20
"""Most bytes of training text that the n-grams count, from its start: more would take minutes and tens of gigabytes."""

AT_ONCE = 2**20
"""Bytes of text whose probabilities are in memory at once, each in about ten arrays of eight bytes."""
COUNTED_AT_ONCE = 4 * 2**20
"""Bytes of training text whose n-grams are sorted at once."""

_ORDERS = {1: "unigram", 2: "bigram", 5: "fivegram"}


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


COMPRESSORS: Mapping[str, Callable[[], _Compressor]] = {
    "zlib": lambda: zlib.compressobj(9),
    "bz2": lambda: bz2.BZ2Compressor(9),
    "xz": lambda: lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME),
}
"""At their strongest: zlib-9, bz2-9, xz-9e."""


def floors(train: bytes | None, validation: Iterable[bytes]) -> dict[str, float]:
    """Bits per byte of ``validation``: ``unigram``, ``bigram`` and ``fivegram`` from ``train`` (at most its first
    :data:`MOST_COUNTED` bytes), if there is any; ``zlib``, ``bz2`` and ``xz`` from itself alone.

    Args:
        validation: the text in parts of any size; it is never held as a whole.

    Raises:
        DataError: one of the texts is empty.
    """
    order = max(_ORDERS)
    counts = None if train is None else [_count(train[:MOST_COUNTED], n) for n in range(1, order + 1)]
    compressors = {name: begin() for name, begin in COMPRESSORS.items()}
    compressed = dict.fromkeys(COMPRESSORS, 0)
    bits: dict[str, list[tuple[float, int]]] = {name: [] for name in _ORDERS.values()}  # a part's mean and its bytes
    n_bytes, before = 0, b""
    for text in _of_size(validation, AT_ONCE):
        for name, compressor in compressors.items():
            compressed[name] += len(compressor.compress(text))
        if counts is not None:
            for n, values in enumerate(_probabilities(counts, before + text)):
                if n in _ORDERS:
                    bits[_ORDERS[n]].append((float(-np.log2(values[len(before) :]).mean()), len(text)))
        n_bytes += len(text)
        before = text[1 - order :]  # is only read as histories
    if train == b"" or not n_bytes:
        raise DataError("corpus", "a split is empty", "Give a corpus with text to train and to validate on")
    ngrams = {name: sum(mean * (size / n_bytes) for mean, size in parts) for name, parts in bits.items() if parts}
    sizes = {name: compressed[name] + len(compressor.flush()) for name, compressor in compressors.items()}
    return ngrams | {name: 8 * size / n_bytes for name, size in sizes.items()}


def floors_of(data: Dataset, *, counting: bool) -> dict[str, float]:
    """:func:`floors` of a data set's validation text, kept in the cache: every run on the same text has the same.

    Args:
        counting: whether n-grams are counted in its training text.
    """
    versions = platform.python_version(), zlib.ZLIB_RUNTIME_VERSION
    key = content_key("floors", "1", data.corpus.sha256, data.tokenizer.fingerprint, str(counting), *versions)
    path = cache_folder() / "texts" / f"{key}.json"
    with suppress(DataError):  # it is missing, or damaged
        return read_model(dict[str, float], path, error=DataError, next_step="It is made again", sealing="required")
    train = data.corpus.to_bytes("train", MOST_COUNTED) if counting else None
    found = floors(train, data.corpus.blocks("validation"))
    with suppress(StorageError):  # then it is made again the next time
        write_atomically(path, lambda file: file.write(sealed(found, indent=None).encode()))
    return found


def _of_size(parts: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The bytes of ``parts`` in blocks of ``size``, and one of what is left."""
    held = bytearray()
    for part in parts:
        held += part
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def compressed_bits_per_byte(data: bytes, compressor: str) -> float:
    """Bits per byte of ``data`` compressed alone, the format's headers included."""
    return floors(None, [data])[compressor]


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
    grams = counts = np.zeros(0, dtype=np.int64)
    for start in range(0, len(seen) - n + 1, COUNTED_AT_ONCE):
        part = np.unique(_grams(seen[start : start + COUNTED_AT_ONCE + n - 1], n), return_counts=True)
        grams, counts = part if not start else _added((grams, counts), part)
    histories, first = np.unique(grams >> 8, return_index=True)
    return grams, counts, histories, np.add.reduceat(counts, first), np.diff(first, append=len(grams))


_Counted = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _added(one: _Counted, other: _Counted) -> _Counted:
    """The n-grams of both in order, and the sums of their counts."""
    grams = np.concatenate([one[0], other[0]])
    order = np.argsort(grams, kind="stable")
    grams = grams[order]
    first = np.flatnonzero(np.diff(grams, prepend=-1))
    return grams[first], np.add.reduceat(np.concatenate([one[1], other[1]])[order], first)


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
