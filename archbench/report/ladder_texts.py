"""What a scaling study shows and does not show, in sentences, for the page and the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from archbench.presentation.quantities import digits, percent, short
from archbench.report.conclusions import Conclusions
from archbench.study.findings import Finding, HeldOut
from archbench.study.law import Fit
from archbench.study.outcome import Interval
from archbench.study.scale_outcome import ScaleOutcome

_GREEK = {"alpha": "α", "beta": "β"}


def law_sentences(ladder: ScaleOutcome) -> list[str]:
    """The law of each architecture, its test on the largest size, and the comparison of exponents."""
    return [*(sentence for finding in ladder.findings for sentence in _law(finding)), *_comparisons(ladder)]


def _comparisons(ladder: ScaleOutcome) -> list[str]:
    sentences = []
    for one in ladder.ranking:
        how = {
            "larger": "loss falls faster",
            "smaller": "loss falls more slowly",
            "not told apart": "which is not distinguishable from none",
        }
        name, first = _GREEK[one.exponent], ladder.names[0]
        bounds = f"{one.low:+.3f} to {one.high:+.3f}"
        sentences.append(
            f"{one.architecture}: {name} differs from {first}'s by {one.difference:+.3f} ({bounds} at 95 %, "
            f"corrected for {len(ladder.ranking)} comparisons): {how[one.verdict]}."
        )
    if ladder.unranked is not None:
        sentences.append(f"{ladder.unranked[:1].upper()}{ladder.unranked[1:]}.")
    return sentences


def notes(ladder: ScaleOutcome) -> list[str]:
    """Caveats."""
    sentences = [
        f"{rung.architecture} of {short(rung.size)} took no part: {rung.reason}."
        for rung in ladder.rungs
        if rung.reason is not None
    ]
    flagged = [
        f"{rung.architecture} of {short(rung.size)}"
        for rung in ladder.rungs
        if rung.tuning is not None and rung.tuning.flagged
    ]
    if flagged:
        sentences.append(
            f"The best learning rate lies at the edge of the search for {', '.join(flagged)}: losses may be too high."
        )
    ended = [cell for cell in ladder.cells if cell.outcome != "ok"]
    if ended:
        sentences.append(f"{len(ended)} of {len(ladder.cells)} trainings diverged or failed; scale.json says why.")
    repeated = sorted({point.D for finding in ladder.findings for point in finding.points if point.epochs > 1.001})
    if repeated:
        sentences.append(
            f"The training text has {ladder.plan.train_tokens:,} tokens: budgets of {', '.join(map(short, repeated))} "
            "repeat it, but the law assumes fresh tokens."
        )
    return sentences


def conclusions(ladder: ScaleOutcome) -> Conclusions:
    """The same for the page, without the laws, which are in its first table."""
    tests = [f"{one.architecture}: {_test(one.held_out)}." for one in ladder.findings if one.held_out is not None]
    return Conclusions(
        headline=_headline(ladder),
        details=" ".join([*tests, *_comparisons(ladder)]),
        matched=tuple(_matched(ladder)),
        limits=tuple(_limits(ladder)),
        meanings=(),
    )


def _law(finding: Finding) -> Iterable[str]:
    name = finding.architecture
    if finding.fitted is None:
        yield f"{name}: no law: {finding.reason}."
        return
    yield f"{name}: {formula(finding.fitted)}, from {finding.fitted.points} points; {intervals(finding)}."
    if finding.fitted.law.floorless:
        floor = finding.intervals.get("E")
        below = "" if floor is None or floor.high is None else f", but the resamples allow one up to {floor.high:.3f}"
        yield f"{name}: no floor found{below}: exponents of larger sizes will differ."
    if finding.held_out is None:
        yield f"{name}: {finding.reason}."
    else:
        yield f"{name}: {_test(finding.held_out)}."


def formula(fitted: Fit) -> str:
    """L = 1.21 + 35.2/N^0.310 + 120/D^0.420 nats per token."""
    law = fitted.law
    floor = "" if law.floorless else f"{law.E:.3g} + "
    return f"L = {floor}{digits(law.A)}/N^{law.alpha:.3f} + {digits(law.B)}/D^{law.beta:.3f} nats per token"


def intervals(finding: Finding) -> str:
    """Intervals of the exponents, and how the best size grows."""
    assert finding.fitted is not None
    parts = [f"{_GREEK[name]} {_bounds(finding.intervals.get(name))}" for name in _GREEK]
    best = f"C^{finding.fitted.exponent:.2f} ({_bounds(finding.intervals.get('exponent'), 2)})"
    return f"95 % intervals: {', '.join(parts)}; with compute C the best N grows as {best}"


def _bounds(interval: Interval | None, places: int = 3) -> str:
    if interval is None or interval.low is None:
        return "not determined"
    if interval.high is None:
        return f"above {interval.low:.{places}f}"
    return f"{interval.low:.{places}f} to {interval.high:.{places}f}"


def _test(test: HeldOut) -> str:
    size = short(test.forecasts[0].size)
    text = f"the law of its smaller sizes predicts the loss of {size} within {_errors(test)}"
    if test.unchanged is None:
        return text
    plain = f"assuming the loss of the next smaller size has an error of {percent(test.unchanged, signed=False)}"
    return f"{text}; {plain}" + ("" if test.error < test.unchanged else ", which is no worse: the law predicts nothing")


def _errors(test: HeldOut) -> str:
    return f"{percent(test.error, signed=False)} on average, {percent(test.worst, signed=False)} at most"


def _headline(ladder: ScaleOutcome) -> str:
    tested = [(finding.architecture, finding.held_out) for finding in ladder.findings if finding.held_out is not None]
    if not tested:
        return "Curves, but no law: the measurements do not support one."
    errors = "; ".join(f"{name} {_errors(test)}" for name, test in tested)
    useful = all(test.unchanged is None or test.error < test.unchanged for _, test in tested)
    text = f"The largest size, held out, is predicted from the smaller sizes with errors: {errors}"
    return f"{text}." if useful else f"{text}, not everywhere smaller than that of assuming no change."


def _matched(ladder: ScaleOutcome) -> Iterable[str]:
    plan = ladder.plan
    yield (
        "At each size all have equal non-embedding active parameters within 2 %, and the same tokens, tokenizer "
        f"({plan.tokenizer}), corpus ({plan.text}), order of the data and context ({plan.context_length:,} positions)."
    )
    yield "Every point is a separate training, whose schedule ends with its budget."
    if plan.tuning_budget is None:
        yield "Learning rates were not tuned: the recipe's own at every size."
    else:
        yield (
            f"Each architecture's learning rate was found at each size with the same trials, at "
            f"{short(plan.tuning_budget)} tokens; every budget is trained at it, with fresh seeds."
        )


def _limits(ladder: ScaleOutcome) -> Iterable[str]:
    plan = ladder.plan
    yield (
        f"Other sizes and budgets: from {short(min(plan.sizes))} to {short(max(plan.sizes))} parameters and "
        f"{short(min(plan.budgets))} to {short(max(plan.budgets))} tokens. A law describes that range; "
        "beyond, it extrapolates."
    )
    yield (
        "Which architecture scales better, unless stated above: exponents of few points are not compared. N excludes "
        "embeddings; exponents that include them differ (Pearce & Song 2024, arXiv:2406.12907)."
    )
    yield f"Other text: one corpus ({plan.text}) and one tokenizer; a loss in nats per token depends on both."
    tuned = "the learning rate, at the smallest budget," if plan.tuning_budget is not None else "nothing"
    yield (
        f"Other recipes: of the hyperparameters {tuned} was tuned. Batch size is the same at all sizes, and shapes are "
        "as in the table."
    )
    yield from notes(ladder)
