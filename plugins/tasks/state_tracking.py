"""State tracking: the word problems of S3, the permutations of three items, and of parity.

Merrill et al. 2024, "The Illusion of State in State-Space Models", arXiv:2404.08819, section 4: read elements of a
group, and after each predict the product so far. Parity is the same for the group of two elements (Hahn 2020,
arXiv:1906.06755; Grazzi et al. 2024, arXiv:2411.12537, section 5.1). Training asks for the product of every prefix up
to 32 elements; tests ask for that of exactly 32, 64 and 128 elements.
"""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np

from archbench import IGNORED, Examples, Task, hookimpl

LONGEST_TRAINED = 32
LENGTHS = (32, 64, 128)

PERMUTATIONS = list(itertools.permutations(range(3)))
S3 = np.array([[PERMUTATIONS.index(tuple(a[b[i]] for i in range(3))) for b in PERMUTATIONS] for a in PERMUTATIONS])
"""Multiplication table (6, 6): ``S3[a, b]`` is a after b. Not commutative; element 0 is the identity."""

PARITY = np.array([[0, 1], [1, 0]])
"""Multiplication table of the group of two elements: addition modulo 2."""


def draw(random: np.random.Generator, count: int, table: np.ndarray, length: int, *, every: bool) -> Examples:
    """inputs (B, length): elements; the target is the product so far, at every position or only at the last."""
    elements = random.integers(len(table), size=(count, length))
    products = np.empty_like(elements)
    product = np.zeros(count, dtype=np.int64)
    for place in range(length):
        product = table[product, elements[:, place]]
        products[:, place] = product
    if not every:
        products[:, :-1] = IGNORED
    return Examples(elements, products)


def _task(name: str, summary: str, source: str, table: np.ndarray) -> Task:
    return Task(
        name=name,
        summary=summary,
        source=source,
        vocab_size=len(table),
        context_length=max(LENGTHS),
        train=partial(draw, table=table, length=LONGEST_TRAINED, every=True),
        tests={f"length {length}": partial(draw, table=table, length=length, every=False) for length in LENGTHS},
        chance={f"length {length}": 1 / len(table) for length in LENGTHS},
        updates=400,
    )


@hookimpl
def tasks() -> list[Task]:
    return [
        _task(
            "state-parity",
            "Is the number of ones so far odd? Trained on up to 32 bits",
            "Grazzi et al. 2024, arXiv:2411.12537, section 5.1",
            PARITY,
        ),
        _task(
            "state-s3",
            "Follow permutations of three things; trained on up to 32 of them",
            "Merrill et al. 2024, The Illusion of State, arXiv:2404.08819, section 4",
            S3,
        ),
    ]
