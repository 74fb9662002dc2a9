"""Diagnostic tasks: generated sequences with tokens to predict.

A task is a plugin (hook ``tasks``). It draws examples only from the generator that it is given, so that the same seed
gives the same bits. This module separates examples for training, validation and testing.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from archbench.data.batches import Batch
from archbench.errors import HookResultError

IGNORED = -100
"""The target of positions without a question, as in ``F.cross_entropy``."""

MOST_REDRAWS = 100

_TRAIN, _VALIDATION, _TEST = 0, 1, 2
"""First number of a generator's seed: the purpose of the examples."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Sequences, and the answers expected along them.

    Attributes:
        inputs: token ids (B, T) int64.
        targets: (B, T) int64; ``targets[b, t]`` is the answer after reading ``inputs[b, : t + 1]``, or
            :data:`IGNORED`.
    """

    inputs: Integers
    targets: Integers


Draw = Callable[[np.random.Generator, int], Examples]
"""``draw(random, B)``: B examples, drawn only from that generator."""


@dataclass(frozen=True)
class Task:
    """A diagnostic task.

    Attributes:
        name: lower case, as in ``recall``.
        summary: one line.
        source: where it is published: authors, year, title or arXiv number, section.
        vocab_size: V; every token and every answer is below it.
        context_length: T of the longest example.
        train: draws examples to learn from.
        tests: condition, such as ``8 pairs`` -> draws examples to score.
        chance: condition -> accuracy of the best guess without memory, in [0, 1).
        updates: most optimizer updates.
        batch_size: B of an update.
        learning_rates: peak learning rates to try.
    """

    name: str
    summary: str
    source: str
    vocab_size: int
    context_length: int
    train: Draw
    tests: Mapping[str, Draw]
    chance: Mapping[str, float]
    updates: int
    batch_size: int = 32
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)

    def validation(self, condition: str, count: int, test: Examples) -> Examples:
        """Examples for choosing a learning rate; fixed for a given ``test``, and none of them in it."""
        return distinct(self.tests[condition], self._random(_VALIDATION, condition), count, _rows(test))

    def test(self, condition: str, count: int) -> Examples:
        """Examples to score; the same for every seed of a run."""
        return self.tests[condition](self._random(_TEST, condition), count)

    def _random(self, purpose: int, condition: str) -> np.random.Generator:
        return np.random.default_rng([purpose, zlib.crc32(self.name.encode()), zlib.crc32(condition.encode())])


class TaskSampler:
    """Training batches of a task, by number: an :class:`archbench.training.state.Sampler`.

    Args:
        seed: of the run; two seeds have different examples.
        held_out: validation and test examples, which are never trained on.
    """

    def __init__(self, task: Task, seed: int, held_out: Iterable[Examples]) -> None:
        self._task, self._seed = task, seed
        self.batch_size = task.batch_size
        self._held_out = frozenset(row for examples in held_out for row in _rows(examples))

    def batch(self, step: int, rows: npt.NDArray[np.int64] | None = None) -> Batch:
        """The batch of update ``step``, which counts from 0, or these of its rows; all are drawn."""
        random = np.random.default_rng([_TRAIN, zlib.crc32(self._task.name.encode()), self._seed, step])
        examples = distinct(self._task.train, random, self._task.batch_size, self._held_out)
        wanted = slice(None) if rows is None else rows
        return Batch(torch.from_numpy(examples.inputs[wanted]), torch.from_numpy(examples.targets[wanted]))


def distinct(draw: Draw, random: np.random.Generator, count: int, unwanted: frozenset[bytes]) -> Examples:
    """``count`` examples whose inputs are not in ``unwanted``; others are drawn again.

    Raises:
        HookResultError: the task has so few examples that almost all are unwanted.
    """
    examples = draw(random, count)
    for _ in range(MOST_REDRAWS):
        again = [number for number, row in enumerate(examples.inputs) if row.tobytes() in unwanted]
        if not again:
            return examples
        fresh = draw(random, len(again))
        inputs, targets = examples.inputs.copy(), examples.targets.copy()
        inputs[again], targets[again] = fresh.inputs, fresh.targets
        examples = Examples(inputs, targets)
    raise HookResultError(
        "a task's generator",
        f"after {MOST_REDRAWS} draws it still gives examples held out for testing",
        "Make the space of its examples larger",
    )


def _rows(examples: Examples) -> frozenset[bytes]:
    return frozenset(row.tobytes() for row in examples.inputs)


def check_task(task: object, culprit: str) -> Task:
    """``task``, if it is valid; draws a few examples from it.

    Raises:
        HookResultError: it is not a Task, or a part of it is invalid.
    """

    def refuse(cause: str, step: str) -> HookResultError:
        return HookResultError(culprit, f"its tasks hook returned {cause}", step)

    if not isinstance(task, Task):
        raise refuse(f"a {type(task).__name__}", "Return a list of archbench.Task")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", task.name):
        raise refuse(f"the name {task.name!r}", "Use lower-case letters, digits, '-', '_' and '.'")
    named = f"the task {task.name!r}"
    for name in ("vocab_size", "context_length", "updates", "batch_size"):
        if getattr(task, name) < 1:
            raise refuse(f"{named} with {name} {getattr(task, name)}", "Give a positive number")
    if not task.tests or set(task.tests) != set(task.chance):
        raise refuse(f"{named} whose tests and chance name different conditions", "Give each condition both")
    if not all(0 <= chance < 1 for chance in task.chance.values()):
        raise refuse(f"{named} with a chance outside [0, 1)", "Give the accuracy of a guess")
    if not task.learning_rates or min(task.learning_rates) <= 0:
        raise refuse(f"{named} without positive learning rates", "Give at least one")
    for what, draw in {"training": task.train, **task.tests}.items():
        try:
            first, second = (draw(np.random.default_rng(0), 4) for _ in range(2))
        except Exception as error:
            raise refuse(f"{named} whose {what} examples raise {error!r}", "Correct the generator") from error
        if (fault := _fault(task, first)) is not None:
            raise refuse(f"{named} whose {what} examples {fault}", "Correct the generator")
        if not (np.array_equal(first.inputs, second.inputs) and np.array_equal(first.targets, second.targets)):
            cause = f"{named} whose {what} examples differ for the same generator"
            raise refuse(cause, "Draw only from the generator that is given")
    return task


def _fault(task: Task, examples: object) -> str | None:
    """The fault of four examples, as the end of a sentence."""
    if not isinstance(examples, Examples):
        return f"are a {type(examples).__name__}, not archbench.Examples"
    inputs, targets = examples.inputs, examples.targets
    if inputs.dtype != np.int64 or targets.dtype != np.int64:
        return f"have the dtypes {inputs.dtype} and {targets.dtype}, not int64"
    if inputs.shape != targets.shape or inputs.ndim != 2 or len(inputs) != 4:
        return f"have the shapes {inputs.shape} and {targets.shape}, not (4, T) both"
    if inputs.shape[1] > task.context_length:
        return f"are longer than its context_length: {inputs.shape[1]} of {task.context_length}"
    asked = targets != IGNORED
    answers = targets[asked]
    if inputs.min() < 0 or inputs.max() >= task.vocab_size or answers.min(initial=0) < 0:
        return "have token ids outside its vocabulary"
    if answers.max(initial=0) >= task.vocab_size:
        return "have answers outside its vocabulary"
    return None if asked.any(axis=1).all() else "ask for nothing"
