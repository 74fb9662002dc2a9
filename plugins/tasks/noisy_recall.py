"""Recall amid noise: pairs of key and value repeat, with meaningless tokens between them.

Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures" (MAD), arXiv:2403.17844, section 3.1, noisy
in-context recall: noise has its own vocabulary and never separates a key from its value. Here each key of an example
occurs once before any is repeated, so that a guess is right once in as many times as there are keys. Noise is not
scored: in the reference generator it is, and most of a score is of what cannot be known.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from archbench import IGNORED, Examples, Task, hookimpl

KEYS = 8
NOISE = 16
FIRST_VALUE, FIRST_NOISE = KEYS, 2 * KEYS
T = 64
PAIRS = (4, 8)
EASIEST = 2
"""Pairs of the easiest examples, in training only."""

NOISE_SHARE = 0.2
"""Probability that a token of noise follows, instead of a pair."""


def draw(random: np.random.Generator, count: int, pairs: int) -> Examples:
    """inputs (B, 64): pairs and noise; every repeated key asks for its value."""
    return _laid_out(random, np.full(count, pairs))


def mixed(random: np.random.Generator, count: int) -> Examples:
    """Examples of 2, 4 and 8 pairs, equally many on average."""
    return _laid_out(random, random.choice((EASIEST, *PAIRS), size=count))


def _laid_out(random: np.random.Generator, pairs: np.ndarray) -> Examples:
    """One example for each of ``pairs`` (B,), its number of distinct keys."""
    count = len(pairs)
    value_of = FIRST_VALUE + random.permuted(np.tile(np.arange(KEYS), (count, 1)), axis=1)  # (B, KEYS)
    known = random.permuted(np.tile(np.arange(KEYS), (count, 1)), axis=1)  # (B, KEYS); the first of them are used
    again = (random.random((count, T)) * pairs[:, None]).astype(np.int64)  # (B, T)
    order = np.where(np.arange(T) < pairs[:, None], np.minimum(np.arange(T), KEYS - 1), again)
    keys = np.take_along_axis(known, order, axis=1)  # (B, T): the n-th pair's
    is_noise = random.random((count, T)) < NOISE_SHARE  # (B, T): of the n-th thing
    noise = FIRST_NOISE + random.integers(NOISE, size=(count, T))
    start = np.cumsum(np.where(is_noise, 1, 2), axis=1) - np.where(is_noise, 1, 2)  # (B, T): where it begins
    number_of = np.cumsum(~is_noise, axis=1) - 1  # (B, T): how many pairs are before it

    inputs = np.full((count, T + 2), FIRST_NOISE)
    targets = np.full((count, T + 2), IGNORED)
    row, thing = np.nonzero(start < T)
    place, loud = start[row, thing], is_noise[row, thing]
    number = np.maximum(number_of[row, thing], 0)
    key = keys[row, number]
    inputs[row, place] = np.where(loud, noise[row, thing], key)
    row, place, key, number = row[~loud], place[~loud], key[~loud], number[~loud]
    inputs[row, place + 1] = value_of[row, key]
    known_before = number >= pairs[row]
    row, place, key = row[known_before], place[known_before], key[known_before]
    targets[row, place] = value_of[row, key]
    return Examples(inputs[:, :T].copy(), targets[:, :T].copy())


@hookimpl
def tasks() -> list[Task]:
    return [
        Task(
            name="noisy-recall",
            summary="Which value follows this key? With noise between the pairs",
            source="Poli et al. 2024, MAD, arXiv:2403.17844, section 3.1",
            vocab_size=2 * KEYS + NOISE,
            context_length=T,
            train=mixed,
            tests={f"{pairs} pairs": partial(draw, pairs=pairs) for pairs in PAIRS},
            chance={f"{pairs} pairs": 1 / pairs for pairs in PAIRS},
            updates=500,
        )
    ]
