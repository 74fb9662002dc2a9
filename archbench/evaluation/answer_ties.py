"""Multiple choice without luck: where choices tie, the answer is worth what a random one among them would be.

lm-evaluation-harness takes the first of the likeliest choices (``numpy.argmax``), so that a model that knows nothing,
such as one with constant logits, gets every question right whose answer is listed first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

TIED = 1e-6
"""Log-likelihoods closer than this share of the larger are equal: float32 tells them apart by rounding alone."""


class FairChoices:
    """The scoring of one of the harness's multiple-choice tasks, with ties as random choices.

    Attributes:
        first: metric -> its value in each question if the first of tied choices is the answer, as the harness says.
        ties: metric -> questions in which choices tied.
    """

    def __init__(self, task: Any) -> None:
        self._task, self._score = task, task.process_results
        self.first: dict[str, list[float]] = defaultdict(list)
        self.ties: dict[str, int] = defaultdict(int)
        task.process_results = self

    def __call__(self, doc: Any, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
        scores: dict[str, Any] = self._score(doc, results)
        right = self._right(doc)
        for metric, values in self._values(doc, [nats for nats, _ in results]).items():
            if metric in scores:
                self.first[metric].append(scores[metric])
                tied = best(values)
                self.ties[metric] += len(tied) > 1
                scores[metric] = len(right & tied) / len(tied) if tied else float("nan")
        return scores

    def differing(self) -> dict[str, float]:
        """Metric -> the harness's own figure, of those in which choices tied."""
        return {metric: float(np.mean(self.first[metric])) for metric, count in self.ties.items() if count}

    def _right(self, doc: Any) -> set[int]:
        choices = self._task.doc_to_choice(doc)
        gold = self._task.doc_to_text(doc) if self._task.multiple_input else self._task.doc_to_target(doc)
        if isinstance(gold, str):
            gold = choices.index(gold) if gold in choices else -1
        return set(gold) if isinstance(gold, Iterable) else {gold}

    def _values(self, doc: Any, nats: Sequence[float]) -> Mapping[str, Sequence[float]]:
        """What each metric compares; the definitions are those of ``ConfigurableTask.process_results``."""
        choices = self._task.doc_to_choice(doc)
        own, alone = nats[: len(choices)], nats[len(choices) :]
        values = {
            "acc": own,
            "acc_norm": [one / max(1, len(text)) for one, text in zip(own, choices, strict=True)],
            "acc_bytes": [one / max(1, len(text.encode())) for one, text in zip(own, choices, strict=True)],
        }
        if alone:
            values["acc_mutual_info"] = [one - prior for one, prior in zip(own, alone, strict=True)]
        return values


def best(values: Sequence[float]) -> set[int]:
    """The places of the largest value; none if one is no number."""
    largest = max(values)
    if any(one != one for one in values):
        return set()
    near = TIED * max(1.0, abs(largest)) if np.isfinite(largest) else 0.0
    return {place for place, one in enumerate(values) if one == largest or largest - one <= near}
