"""Memorisation: facts that no example contains must be learned.

Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures" (MAD), arXiv:2403.17844, section 3.1: one
dictionary for all examples; the input is a key and a token that asks, and the value is never shown. Sequences of keys
in tests are not in training; the facts are, because they are to be known.
"""

from __future__ import annotations

import numpy as np

from archbench import IGNORED, Examples, Task, hookimpl

FACTS = 1024
ASK = 2 * FACTS
QUESTIONS = 16

VALUE_OF = FACTS + np.random.default_rng(2024).permutation(FACTS)
"""(FACTS,): the dictionary, the same for all examples and seeds; no two keys share a value."""


def draw(random: np.random.Generator, count: int) -> Examples:
    """inputs (B, 32): sixteen keys, each followed by a token that asks for its value."""
    keys = random.integers(FACTS, size=(count, QUESTIONS))
    inputs = np.full((count, 2 * QUESTIONS), ASK)
    targets = np.full((count, 2 * QUESTIONS), IGNORED)
    inputs[:, ::2] = keys
    targets[:, 1::2] = VALUE_OF[keys]
    return Examples(inputs, targets)


@hookimpl
def tasks() -> list[Task]:
    return [
        Task(
            name="memorisation",
            summary=f"Know {FACTS:,} facts by heart",
            source="Poli et al. 2024, MAD, arXiv:2403.17844, section 3.1",
            vocab_size=2 * FACTS + 1,
            context_length=2 * QUESTIONS,
            train=draw,
            tests={f"{FACTS} facts": draw},
            chance={f"{FACTS} facts": 1 / FACTS},
            updates=200,
        )
    ]
