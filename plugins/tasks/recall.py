"""Multi-query associative recall: pairs of key and value, then the keys again, at various distances.

Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models", arXiv:2312.04927, section 3
and appendix; the reference generator is ``multiquery_ar`` of HazyResearch/zoology. As there, keys and values of an
example are distinct, each key is asked for once, and the gap before it follows a power law: most gaps are short.
The rest is filled with one token that is neither key nor value: drawn from the whole vocabulary, as in the reference's
default, a filler would sometimes be a key without a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from archbench import IGNORED, Examples, Task, hookimpl

KEYS = 16
VALUES = 16
FILLER = KEYS + VALUES
T = 64
PAIRS = (4, 8, 16)
EASIEST = 2
"""Pairs of the easiest examples, in training only: without them attention takes longer to start learning."""

POWER = 0.01
"""a: a gap of g slots has a probability proportional to a (g + 1)^(a - 1)."""


def draw(random: np.random.Generator, count: int, pairs: int, n_keys: int = KEYS) -> Examples:
    """inputs (B, 64): ``pairs`` times key and value, then the keys in slots of two, where they ask for their values.

    Ids are the ``n_keys`` keys, the values, and the filler, in this order.
    """
    keys = random.permuted(np.tile(np.arange(n_keys), (count, 1)), axis=1)[:, :pairs]
    values = n_keys + random.permuted(np.tile(np.arange(VALUES), (count, 1)), axis=1)[:, :pairs]
    slots = (T - 2 * pairs) // 2
    likelihood = (POWER - 1) * np.log(np.arange(1, slots + 1))
    # The largest of log p + Gumbel noise are a draw without replacement (Kool et al. 2019, arXiv:1903.06059).
    order = np.argsort(-(likelihood + random.gumbel(size=(count, slots))), axis=1)[:, :pairs]
    places = 2 * pairs + 2 * order  # (B, pairs)

    inputs = np.full((count, T), n_keys + VALUES)
    targets = np.full((count, T), IGNORED)
    inputs[:, 0 : 2 * pairs : 2] = keys
    inputs[:, 1 : 2 * pairs : 2] = values
    np.put_along_axis(inputs, places, keys, axis=1)
    np.put_along_axis(targets, places, values, axis=1)
    return Examples(inputs, targets)


def mixed(random: np.random.Generator, count: int, numbers: Sequence[int] = (EASIEST, *PAIRS)) -> Examples:
    """Examples of each number of pairs, equally many on average."""
    drawn = [draw(random, count, pairs) for pairs in numbers]
    chosen, rows = random.integers(len(numbers), size=count), np.arange(count)
    inputs, targets = (np.stack([getattr(part, name) for part in drawn]) for name in ("inputs", "targets"))
    return Examples(inputs[chosen, rows], targets[chosen, rows])


@hookimpl
def tasks() -> list[Task]:
    return [
        Task(
            name="recall",
            summary="Which value stood beside this key? Every key is asked for once",
            source="Arora et al. 2023, Zoology (multi-query associative recall), arXiv:2312.04927",
            vocab_size=FILLER + 1,
            context_length=T,
            train=mixed,
            tests={f"{pairs} pairs": partial(draw, pairs=pairs) for pairs in PAIRS},
            chance={f"{pairs} pairs": 1 / pairs for pairs in PAIRS},
            updates=700,
        )
    ]
