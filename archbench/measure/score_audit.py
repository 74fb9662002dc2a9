"""The audit of a score: sampled batches are scored again, with other neighbours and another continuation, or alone.

A score is believed only if it depends on what a position has read and on nothing else: not on what follows, on the
other windows, on their number, or on what was scored before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from archbench.training.step_audit import Finding

BATCHES = 3
"""Sampled of a whole split: the first, the last, and one between."""

NEAR = 16
"""Positions before a cut that are compared: what a model sees of the future is nearly always near."""

_Integers = npt.NDArray[np.int64]
_Nats = npt.NDArray[np.float64]

Scorer = Callable[[_Integers, _Integers, int], _Nats]
"""Inputs (B, T), targets (B, T), S -> nats of the last S targets, (B, S)."""


def tolerance(dtype: torch.dtype) -> float:
    """Largest mean difference in nats/token that is rounding: other batch sizes sum in another order.

    On a CPU the built-in architectures stay below 1e-5 in float32 and in bfloat16. On GPUs it is not measured: they
    choose other kernels for other shapes, and then each logit is rounded anew.
    """
    exact = dtype == torch.float32 and not (torch.cuda.is_available() and torch.backends.cuda.matmul.allow_tf32)
    return 1e-3 if exact else 0.05


Read = Callable[[], tuple[_Integers, _Integers]]
"""Reads a batch: inputs (B, T), targets (B, T)."""


@dataclass(frozen=True)
class _Sample:
    number: int
    inputs: _Integers  # (B, T)
    targets: _Integers  # (B, T)
    nats: _Nats  # (B, S), of the last S targets


class ScoreAudit:
    """Keeps sampled batches of one split while it is scored, and scores them again afterwards.

    Args:
        seed: of what is sampled and replaced; torch's generators are left alone.
        dtype: that the model is scored in.

    Attributes:
        findings: ``audit_rescoring``, ``audit_suffix`` and ``audit_batch``, in nats/token.
    """

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.tolerance = tolerance(dtype)
        self._random = np.random.default_rng([seed, 17])
        self._kept: list[tuple[int, Read, _Nats]] = []
        self._seen = 0
        self.findings: list[Finding] = []

    def keep(self, read: Read, nats: _Nats) -> None:
        """Keep a scored batch: the first, the newest, and one drawn of those between (reservoir sampling).

        Args:
            nats: (B, S), of the last S targets.
        """
        sample = (self._seen, read, nats)
        if len(self._kept) < BATCHES:
            self._kept.append(sample)
        else:
            if self._random.integers(self._seen - 1) == 0:
                self._kept[1] = self._kept[2]
            self._kept[2] = sample
        self._seen += 1

    def rescore(self, score: Scorer) -> None:
        """Score the kept batches again, the last first.

        Of each batch, in another order, a quarter of the windows are as they were and the others continue with other
        text after a cut: half of the cuts at random, half after a token that was predicted well, as one that is seen
        in advance is. Then one window is scored alone.
        """
        again: list[_Nats] = []
        before_cut: list[float] = []
        alone: list[float] = []
        samples = [_Sample(number, *read(), nats) for number, read, nats in self._kept]
        text = np.concatenate([sample.inputs.ravel() for sample in samples])
        for sample in reversed(samples):
            B, S = sample.nats.shape
            order = self._random.permutation(B)
            inputs, cuts = self._with_other_suffixes(sample, text)
            found = score(inputs[order], sample.targets[order], S)[np.argsort(order)]  # (B, S)
            difference = _difference(found, sample.nats)  # (B, S)
            for row, cut in enumerate(cuts):
                if cut is None:
                    again.append(difference[row])
                else:
                    before_cut.append(float(difference[row, max(0, cut - NEAR) : cut].mean()))
            if B > 1:
                row = int(self._random.integers(B))
                own = score(sample.inputs[row : row + 1], sample.targets[row : row + 1], S)
                alone.append(float(_difference(own, sample.nats[row : row + 1]).mean()))
        B, T = samples[0].inputs.shape
        where = f"at B = {B}, T = {T} on the validation text"
        self.findings = [
            Finding(
                "audit_rescoring", float(np.mean(np.concatenate(again))), self.tolerance,
                f"windows scored a second time {where} cost other nats: the model remembers what it has scored, or its "
                "score depends on chance",
            ),
            Finding(
                "audit_suffix", float(np.mean(before_cut)) if before_cut else None, self.tolerance,
                f"tokens cost other nats when the text after them is another {where}: the model sees what it has to "
                "predict",
            ),
            Finding(
                "audit_batch", float(np.mean(alone)) if alone else None, self.tolerance,
                f"windows cost other nats alone than beside others {where}: the score depends on the batch",
            ),
        ]  # fmt: skip

    def _with_other_suffixes(self, sample: _Sample, text: _Integers) -> tuple[_Integers, list[int | None]]:
        """Inputs (B, T) with other text from a cut on, and each row's cut, counted in the scored columns.

        None: the row is as it was. The score at the last column before a cut is of the token that the cut replaces.
        """
        inputs = sample.inputs.copy()
        B, T = inputs.shape
        S = sample.nats.shape[1]
        cuts: list[int | None] = [None] * B
        kept = max(1, B // 4) if B > 1 else 1 - sample.number % 2
        if S < 2 or np.all(text == text[0]):
            return inputs, cuts
        for number, row in enumerate(self._random.permutation(B)[: B - kept]):
            if number % 2:
                nats = sample.nats[row, :-1]
                lowest = np.argsort(nats, kind="stable")[: max(1, len(nats) // 10)]
                cut = 1 + int(self._random.choice(lowest))
            else:
                cut = int(self._random.integers(1, S))
            first = T - S + cut
            start = int(self._random.integers(len(text)))
            other = np.flatnonzero(np.roll(text, -start) != inputs[row, first])[0]  # the token that follows changes
            inputs[row, first:] = text.take(np.arange(start + other, start + other + T - first), mode="wrap")
            cuts[row] = cut
        return inputs, cuts


def greedy_finding(
    model: nn.Module, prompt: Tensor, tokens: Sequence[Tensor], context_length: int, allowed: float
) -> Finding:
    """Whether ``tokens``, (B,) each, decoded greedily after ``prompt`` (B, P), are the likeliest by a full pass.

    The last sequence is read whole, and alone. The value is the mean of how far the logit of a decoded token lies below
    the largest; None where the model gives no logits, or the tokens share one tensor.
    """
    B, P = prompt.shape
    meaning = f"tokens decoded at B = {B} after {P} are not those that a full pass over the same text prefers"
    unjudged = Finding("audit_decode", None, allowed, meaning)
    if len({token.data_ptr() for token in tokens}) < len(tokens):
        return unjudged
    new = torch.stack([token[-1] for token in tokens])  # (n,)
    read = torch.cat([prompt[-1], new[:-1]])[:context_length]  # later, the window slides
    try:
        with torch.no_grad():
            logits = model(read[None])[0, P - 1 :].float()  # (n, V)
        gaps = logits.amax(1) - logits.gather(1, new[: len(logits), None])[:, 0]
    except Exception:  # noqa: BLE001  an unchecked model may raise anything; its own decoding worked
        return unjudged
    return Finding("audit_decode", float(gaps.mean()), allowed, meaning)


def _difference(found: _Nats, expected: _Nats) -> _Nats:
    """Absolute; 0 where both are NaN or the same infinity."""
    with np.errstate(invalid="ignore"):
        return np.where((found == expected) | (np.isnan(found) & np.isnan(expected)), 0.0, np.abs(found - expected))
