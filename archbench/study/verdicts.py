"""Which architecture is better than the baseline, and is the difference more than noise? One rule, fixed in advance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from archbench.study.statistics import (
    MOST_SEEDS,
    Estimate,
    combined,
    holm,
    mean,
    paired_bootstrap,
    seed_part,
    seeds_needed,
)

MARGIN = 0.0025
"""Relative difference of bits per byte; smaller ones are ignored."""

CONFIDENCE = 0.95

FEWEST_SEEDS = 3
"""Finished seeds that each side needs for a verdict."""

Verdict = Literal["baseline", "better", "worse", "equivalent", "below margin", "inconclusive", "no verdict"]

MEANING: dict[Verdict, str] = {
    "baseline": "the others are compared with it",
    "better": "significantly fewer bits per byte than the baseline, by the margin or more",
    "worse": "significantly more bits per byte than the baseline, by the margin or more",
    "equivalent": "not significant, and the 90 % interval of the difference lies within the margin on both sides",
    "below margin": "a significant difference that is smaller than the margin",
    "inconclusive": "neither significant nor equivalent, or a best learning rate at the edge of its search",
    "no verdict": "a side has fewer than three finished seeds, or a diverged one",
}
"""Every verdict. Significant: p, adjusted by Holm for all comparisons with the baseline, is below 1 - confidence."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one architecture's seeds.

    Attributes:
        bits_per_byte: (seeds,) of finished seeds; NaN or infinity if that seed diverged.
        unit_nats: (seeds, units) float64, nats of each document or block of text, in the order of ``bits_per_byte``.
        unit_bytes: (units,) their raw bytes, the same for all architectures.
        diverged: further seeds that diverged.
        lost: seeds that failed otherwise (out of memory, time limit, killed); they only reduce n.
        flagged: whether the best learning rate lies at the edge of its extended search.
    """

    architecture: str
    bits_per_byte: Sequence[float]
    unit_nats: npt.NDArray[np.float64]
    unit_bytes: npt.NDArray[np.float64] | npt.NDArray[np.int64]
    diverged: int = 0
    lost: int = 0
    flagged: bool = False


@dataclass(frozen=True)
class QualityRow:
    """The verdict on one architecture, as in ``comparison.json``.

    Differences are relative to the baseline's mean; negative is better. They are None for the baseline, and with too
    few seeds.

    Attributes:
        seeds: number of finished ones; the others are ``diverged`` or ``lost``.
        bits_per_byte, sd: mean and standard deviation over finished seeds.
        low, high: Student's interval of the mean.
        seed_low, seed_high: interval of the difference from seeds alone.
        document_low, document_high: from the text alone.
        combined_low, combined_high: from both; this one decides.
        p: from both, unadjusted; ``p_holm`` is adjusted.
        reason: a clause, where the numbers do not explain the verdict.
        seeds_needed: of each architecture, to decide an inconclusive result; None if no number does.
    """

    architecture: str
    seeds: int
    diverged: int
    lost: int
    bits_per_byte: float | None
    sd: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    seed_low: float | None = None
    seed_high: float | None = None
    document_low: float | None = None
    document_high: float | None = None
    combined_low: float | None = None
    combined_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    verdict: Verdict = "no verdict"
    reason: str | None = None
    seeds_needed: int | None = None


def judge(
    baseline: Scores, others: Sequence[Scores], *, margin: float = MARGIN, confidence: float = CONFIDENCE
) -> list[QualityRow]:
    """The verdict on each of ``others``, after the baseline's own row.

    The primary metric is bits per byte. The difference is the log of the ratio of means; its standard error combines
    seeds and text (:func:`archbench.study.statistics.combined`). Holm's adjustment covers the comparisons that get a
    verdict. Equivalence takes two one-sided tests at 1 - confidence each (Schuirmann 1987, A comparison of the two
    one-sided tests procedure and the power approach), hence the 90 % interval.

    If the best learning rate lies at the edge of the search, the architecture may be better than measured, so "worse",
    "equivalent" and "below margin" do not follow. "Better" would, but a winner must be found by the same search as all
    others. So a flag on either side makes the result inconclusive. The reason says if another rate could only widen the
    difference.

    Args:
        margin: smallest relative difference that counts, fixed before the runs.
        confidence: of all intervals except the one for equivalence.

    Returns:
        The baseline's row, then the row of each of ``others`` in their order.
    """
    baseline, *others = (_diverged_apart(scores) for scores in (baseline, *others))
    pairs = [_Pair.of(baseline, other) for other in others]
    p = [pair.both.p for pair in pairs if pair.obstacle is None]
    adjusted = iter(holm(p))
    first = replace(_described(baseline, confidence), verdict="baseline", reason=_joined(_notes(baseline)))
    rows = [first]
    for pair in pairs:
        row = _measured(pair, confidence)
        if pair.obstacle is None:
            tests = sum(other >= pair.both.p for other in p)
            row = _decided(replace(row, p=pair.both.p, p_holm=next(adjusted)), pair, tests, margin, confidence)
        rows.append(row)
    return rows


def _diverged_apart(scores: Scores) -> Scores:
    """Count the seeds whose score is not finite as diverged."""
    bits = np.asarray(scores.bits_per_byte, dtype=np.float64)
    nats = np.asarray(scores.unit_nats, dtype=np.float64).reshape(len(bits), len(scores.unit_bytes))
    finite = np.isfinite(bits) & np.isfinite(nats).all(axis=1)
    diverged = scores.diverged + int((~finite).sum())
    return replace(scores, bits_per_byte=bits[finite].tolist(), unit_nats=nats[finite], diverged=diverged)


_LARGEST = 700.0
"""Logarithm of the largest ratio that a float can represent."""

_UNKNOWN = Estimate(math.nan, math.inf, 1.0)


@dataclass(frozen=True)
class _Pair:
    """One comparison with the baseline.

    Attributes:
        obstacle: why there is no verdict; None if there is one.
        seeds, documents, both: of log(other / baseline); unknown if a seed diverged, because the others would mislead.
    """

    baseline: Scores
    other: Scores
    obstacle: str | None
    seeds: Estimate = _UNKNOWN
    documents: Estimate = _UNKNOWN
    both: Estimate = _UNKNOWN

    @classmethod
    def of(cls, baseline: Scores, other: Scores) -> _Pair:
        obstacle = _obstacle(baseline, other)
        if any(side.diverged or not any(side.bits_per_byte) for side in (baseline, other)):
            return cls(baseline, other, obstacle)
        assert np.array_equal(baseline.unit_bytes, other.unit_bytes), f"{other.architecture} was scored on other text"
        seeds = seed_part(other.bits_per_byte, baseline.bits_per_byte)
        documents = paired_bootstrap(other.unit_nats.mean(axis=0), baseline.unit_nats.mean(axis=0))
        return cls(baseline, other, obstacle, seeds, documents, combined(seeds, documents))


def _obstacle(baseline: Scores, other: Scores) -> str | None:
    clauses = []
    for side in (other, baseline):
        if side.diverged:
            clauses.append(f"{_seeds(side.diverged)} of {side.architecture} diverged, and the rest would flatter it")
        if len(side.bits_per_byte) < FEWEST_SEEDS:
            finished = _seeds(len(side.bits_per_byte))
            clauses.append(
                f"{side.architecture} has {finished} finished, and a verdict takes {FEWEST_SEEDS} on either side"
            )
        elif not any(side.bits_per_byte):
            clauses.append(f"{side.architecture} needs no bits at all, so there is no ratio")
        elif np.count_nonzero(side.unit_nats.any(axis=0)) < 2:
            clauses.append("the text is a single unit, which says nothing about other text")
    return _joined(clauses)


def _described(scores: Scores, confidence: float) -> QualityRow:
    """The fields that depend on one architecture's own seeds."""
    n = len(scores.bits_per_byte)
    row = QualityRow(scores.architecture, n, scores.diverged, scores.lost, None, None, None, None)
    if not n:
        return row
    own = mean(scores.bits_per_byte)
    if n == 1:
        return replace(row, bits_per_byte=own.value)
    low, high = own.interval(confidence)
    sd = float(np.std(scores.bits_per_byte, ddof=1))
    return replace(row, bits_per_byte=own.value, sd=sd, low=low, high=high)


def _measured(pair: _Pair, confidence: float) -> QualityRow:
    """The other side's row without the verdict."""
    seed_low, seed_high = _bounds(pair.seeds, confidence)
    document_low, document_high = _bounds(pair.documents, confidence)
    combined_low, combined_high = _bounds(pair.both, confidence)
    return replace(
        _described(pair.other, confidence),
        difference=None if pair.seeds is _UNKNOWN else math.expm1(pair.seeds.value),
        seed_low=seed_low,
        seed_high=seed_high,
        document_low=document_low,
        document_high=document_high,
        combined_low=combined_low,
        combined_high=combined_high,
        reason=_joined([pair.obstacle, *_notes(pair.other), *_notes(pair.baseline)]),
    )


def _bounds(estimate: Estimate, confidence: float) -> tuple[float, float] | tuple[None, None]:
    """Interval of the relative difference; None if it is infinite, or too large for a float."""
    low, high = estimate.interval(confidence)
    if high > _LARGEST:
        return None, None
    return math.expm1(low), math.expm1(high)


def _decided(row: QualityRow, pair: _Pair, tests: int, margin: float, confidence: float) -> QualityRow:
    """The row with the verdict; ``tests`` hypotheses are not yet rejected when Holm's procedure reaches this one."""
    assert row.difference is not None
    assert row.p_holm is not None
    significant = row.p_holm < 1 - confidence
    low, high = _bounds(pair.both, 2 * confidence - 1)
    flagged = [side for side in (pair.other, pair.baseline) if side.flagged]
    if flagged:
        winner = pair.other if row.difference < 0 else pair.baseline
        lead = f"the lead of {winner.architecture} could only grow with a better rate"
        return replace(
            row,
            verdict="inconclusive",
            reason=_joined([row.reason, lead if significant and flagged == [winner] else None]),
        )
    if significant and abs(row.difference) >= margin:
        return replace(row, verdict="better" if row.difference < 0 else "worse")
    if significant:
        return replace(row, verdict="below margin")
    if low is not None and high is not None and -margin < low and high < margin:
        return replace(row, verdict="equivalent")
    needed = _seeds_needed(pair, tests, margin, confidence)
    cause = f"not significant, and the {100 * (2 * confidence - 1):.0f} % interval of the difference, "
    width = "unbounded" if low is None or high is None else f"{100 * low:+.2f} to {100 * high:+.2f} %"
    cause += f"{width}, reaches beyond ±{100 * margin:g} %"
    hopeless = None if needed else f"not even {MOST_SEEDS:,} seeds each would decide it on this text"
    return replace(row, verdict="inconclusive", reason=_joined([cause, hopeless, row.reason]), seeds_needed=needed)


def _seeds_needed(pair: _Pair, tests: int, margin: float, confidence: float) -> int | None:
    sides = [np.asarray(side.bits_per_byte) for side in (pair.other, pair.baseline)]
    a, b = (float(side.std(ddof=1) / side.mean()) for side in sides)
    return seeds_needed(
        pair.both.value,
        (a, b),
        pair.documents,
        present=max(map(len, sides)),
        margin=margin,
        confidence=confidence,
        tests=tests,
    )


def _notes(scores: Scores) -> list[str]:
    """What a reader has to know about one side, whatever the verdict is."""
    clauses = []
    if scores.lost:
        left = f"which leaves {len(scores.bits_per_byte)}"
        clauses.append(
            f"{_seeds(scores.lost)} of {scores.architecture} lost (out of memory, time limit or killed), {left}"
        )
    if scores.flagged:
        edge = "lies at the edge of its search, so how good it can be is not known"
        clauses.append(f"the best learning rate of {scores.architecture} {edge}")
    return clauses


def _seeds(n: int) -> str:
    return f"{n} seed{'' if n == 1 else 's'}"


def _joined(clauses: Sequence[str | None]) -> str | None:
    """The clauses, each once."""
    return "; ".join(clause for clause in dict.fromkeys(clauses) if clause) or None
