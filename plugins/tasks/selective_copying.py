"""Selective copying: repeat in order the tokens between blanks, which are at random positions.

Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv:2312.00752, section 4.1.1,
after Jing et al. 2019; as in Poli et al. 2024 (MAD), arXiv:2403.17844, section 3.1: the tokens are at random positions
of the first part, and a second part of as many markers asks for them. Markers and blanks are not copied.
"""

from __future__ import annotations

import numpy as np

from archbench import IGNORED, Examples, Task, hookimpl

TOKENS = 16
BLANK, MARKER = TOKENS, TOKENS + 1
COPIED = 8
READ = 48
"""Positions of the first part."""


def draw(random: np.random.Generator, count: int) -> Examples:
    """inputs (B, 56): 48 positions with 8 tokens among blanks, then 8 markers that ask for the tokens."""
    tokens = random.integers(TOKENS, size=(count, COPIED))
    places = np.sort(random.permuted(np.tile(np.arange(READ), (count, 1)), axis=1)[:, :COPIED], axis=1)
    inputs = np.concatenate([np.full((count, READ), BLANK), np.full((count, COPIED), MARKER)], axis=1)
    targets = np.full(inputs.shape, IGNORED)
    np.put_along_axis(inputs, places, tokens, axis=1)
    targets[:, READ:] = tokens
    return Examples(inputs, targets)


@hookimpl
def tasks() -> list[Task]:
    return [
        Task(
            name="selective-copying",
            summary="Repeat the tokens between the blanks, in order",
            source="Gu & Dao 2023, Mamba, arXiv:2312.00752, section 4.1.1",
            vocab_size=TOKENS + 2,
            context_length=READ + COPIED,
            train=draw,
            tests={f"{COPIED} tokens": draw},
            chance={f"{COPIED} tokens": 1 / TOKENS},
            updates=600,
        )
    ]
