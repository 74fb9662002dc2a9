"""Copying strings, including longer ones than in training.

Jelassi et al. 2024, "Repeat After Me: Transformers are Better than State Space Models at Copying", arXiv:2402.01032,
section 3.1: a string of random letters between a first token and a copy token, to be repeated token by token. Lengths
are 1 to 16 in training, all equally likely, and 16, 32 and 64 in tests.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from archbench import IGNORED, Examples, Task, hookimpl

LETTERS = 26
FIRST, COPY = LETTERS, LETTERS + 1
PADDING = LETTERS + 2
LONGEST_TRAINED = 16
LENGTHS = (16, 32, 64)


def draw(random: np.random.Generator, count: int, length: int) -> Examples:
    """inputs (B, 2 length + 1): first token, string, copy token, string without its last letter."""
    return _laid_out(random.integers(LETTERS, size=(count, length)), np.full(count, length))


def shorter(random: np.random.Generator, count: int) -> Examples:
    """Strings of 1 to 16 letters, followed by padding without questions."""
    lengths = random.integers(1, LONGEST_TRAINED + 1, size=count)
    return _laid_out(random.integers(LETTERS, size=(count, LONGEST_TRAINED)), lengths)


def _laid_out(letters: np.ndarray, lengths: np.ndarray) -> Examples:
    """Examples of strings (B, longest), of which the first ``lengths`` (B,) letters are used."""
    count, longest = letters.shape
    inputs = np.full((count, 2 * longest + 1), PADDING)
    targets = np.full(inputs.shape, IGNORED)
    inputs[:, 0] = FIRST
    rows, place = np.arange(count)[:, None], np.arange(longest)  # (B, 1), (longest,)
    inside = place < lengths[:, None]  # (B, longest)
    inputs[:, 1 : longest + 1] = np.where(inside, letters, PADDING)
    start = lengths[:, None] + 1  # (B, 1), of the copy token
    inputs[rows, start] = COPY
    row, letter = np.nonzero(inside)
    targets[row, start[row, 0] + letter] = letters[row, letter]
    fed = letter + 1 < lengths[row]  # the last letter is a target and not an input
    inputs[row[fed], start[row[fed], 0] + 1 + letter[fed]] = letters[row[fed], letter[fed]]
    return Examples(inputs, targets)


@hookimpl
def tasks() -> list[Task]:
    return [
        Task(
            name="copying",
            summary="Repeat a string of letters; trained on up to 16 of them",
            source="Jelassi et al. 2024, Repeat After Me, arXiv:2402.01032, section 3.1",
            vocab_size=LETTERS + 3,
            context_length=2 * max(LENGTHS) + 1,
            train=shorter,
            tests={f"length {length}": partial(draw, length=length) for length in LENGTHS},
            chance={f"length {length}": 1 / LETTERS for length in LENGTHS},
            updates=500,
        )
    ]
