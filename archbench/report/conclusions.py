"""What a comparison shows and does not show, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from archbench.presentation.quantities import compact, number, percent, percent_interval, probability, quantity
from archbench.study.comparison_outcome import ComparisonOutcome, TuningOutcome
from archbench.study.verdicts import QualityRow

TOKENS_A_PARAMETER = 20
"""Training tokens for each parameter that are about compute-optimal (Hoffmann et al. 2022, "Training Compute-Optimal
Large Language Models", table 3)."""


@dataclass(frozen=True)
class Conclusions:
    """Plain sentences.

    Attributes:
        headline: the verdicts in a line.
        details: size and uncertainty of each decided difference.
        matched: what was held equal.
        limits: what the study does not show, one sentence each.
        meanings: (verdict, meaning) of every verdict given.
    """

    headline: str
    details: str
    matched: tuple[str, ...]
    limits: tuple[str, ...]
    meanings: tuple[tuple[str, str], ...]


def conclusions(outcome: ComparisonOutcome) -> Conclusions:
    from archbench.study.verdicts import MEANING

    given = {row.verdict for row in outcome.quality}
    meanings = tuple((verdict, meaning) for verdict, meaning in MEANING.items() if verdict in given)
    return Conclusions(_headline(outcome), _details(outcome), _matched(outcome), _limits(outcome), meanings)


def _headline(outcome: ComparisonOutcome) -> str:
    base = outcome.plan.baseline
    by_verdict = {
        verdict: [row.architecture for row in outcome.quality if row.verdict == verdict]
        for verdict in ("better", "worse", "equivalent", "below margin", "inconclusive", "no verdict")
    }
    parts = []
    for verdict, phrase in (
        ("better", f"better than {base}"),
        ("worse", f"worse than {base}"),
        ("equivalent", f"equivalent to {base}"),
        ("below margin", f"different from {base} by less than the margin"),
    ):
        if names := by_verdict[verdict]:
            parts.append(f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {phrase}")
    undecided = by_verdict["inconclusive"] + by_verdict["no verdict"]
    if undecided and not parts:
        return f"Nothing is decided: the data do not distinguish {_listed(undecided)} from {base}."
    if not parts:
        return f"Only {base} took part: there is nothing to compare it with."
    text = "; ".join(parts)
    return text + (f"; {_listed(undecided)} {'is' if len(undecided) == 1 else 'are'} undecided." if undecided else ".")


def _details(outcome: ComparisonOutcome) -> str:
    base = next(
        row for row in outcome.quality if row.verdict == "baseline" or row.architecture == outcome.plan.baseline
    )
    level = f"{outcome.plan.confidence:.0%}"
    sentences = [f"{base.architecture} needs {number(base.bits_per_byte, 'bit/byte')} bits per byte of unseen text."]
    for verdict in ("better", "worse", "below margin"):
        decided = [row for row in outcome.quality if row.verdict == verdict and row.difference is not None]
        if len(decided) <= 3:
            sentences += [_difference(row, f"{level} interval ") for row in decided]
        else:
            sizes = [abs(row.difference) for row in decided if row.difference is not None]
            bounds = f"{percent(min(sizes), signed=False)} to {percent(max(sizes), signed=False)}"
            change = {"better": f"need {bounds} fewer", "worse": f"need {bounds} more"}.get(
                verdict, f"differ by {bounds}"
            )
            sentences.append(f"The {len(decided)} that are {verdict} {change}; the table has the intervals.")
    if equal := [row.architecture for row in outcome.quality if row.verdict == "equivalent"]:
        verb = "differs" if len(equal) == 1 else "differ"
        sentences.append(
            f"{_listed(equal)} {verb} by less than the margin of ± {100 * outcome.plan.margin:g} % set beforehand."
        )
    undecided = [row.architecture for row in outcome.quality if row.verdict in ("inconclusive", "no verdict")]
    if undecided:
        sentences.append(
            f"Why {_listed(undecided)} {'is' if len(undecided) == 1 else 'are'} undecided is explained below the table."
        )
    if earlier := [f"{look.seeds} seeds, margin {100 * look.margin:g} %" for look in outcome.looks[:-1]]:
        sentences.append(
            f"There were earlier analyses, with {'; '.join(earlier)}: p-values and verdicts hold for one analysis, and "
            "repeated analyses find more by chance."
        )
    return " ".join(sentences)


def held_equal(outcome: TuningOutcome) -> tuple[str, str]:
    """What the matching makes equal, and the budget of a run."""
    plan = outcome.plan
    unit = {"flops": "FLOP", "tokens": "token", "seconds": "s"}[plan.budget.unit]
    return plan.matched_on or f"what --match {plan.match} holds equal", quantity(plan.budget.amount, unit)


def _difference(row: QualityRow, level: str) -> str:
    assert row.difference is not None
    word = "fewer" if row.difference < 0 else "more"
    size = percent(abs(row.difference), signed=False)
    bounds = percent_interval(row.combined_low, row.combined_high) + " %"
    p = "" if row.p_holm is None else f", p {'' if row.p_holm < 0.001 else '= '}{probability(row.p_holm)} after Holm"
    return f"{row.architecture} needs {size} {word} ({level}{bounds}{p})."


def _matched(outcome: ComparisonOutcome) -> tuple[str, ...]:
    plan = outcome.plan
    held, budget = held_equal(outcome)
    deviations = [abs(model.deviation) for model in outcome.models if model.matched and model.deviation is not None]
    sentences = [f"{held[:1].upper()}{held[1:]}."]
    if deviations:
        sentences.append(f"The largest deviation in size is {percent(max(deviations), signed=False)}.")
    sentences.append(
        f"Budget of each model: {budget}. Tokenizer ({plan.tokenizer}), corpus ({outcome.corpus}), order of the data "
        f"and context ({plan.context_length:,} positions) are the same."
    )
    if len(plan.factors) == 1:
        sentences.append(f"Learning rates were not tuned: each recipe's own; {plan.seeds} seeds each.")
    else:
        sentences.append(
            f"Each architecture's learning rate was tuned with the same trials ({plan.tuning_seeds} seeds each, at "
            f"{plan.tuning_share:.0%} of the budget); {plan.seeds} fresh seeds then confirmed."
        )
    sentences.append(
        f"Differences below the margin of {100 * plan.margin:g} %, set beforehand, are ignored. P-values are corrected "
        "by Holm's method for the number of architectures; everything but this verdict is exploratory."
    )
    return tuple(sentences)


def _limits(outcome: ComparisonOutcome) -> tuple[str, ...]:
    plan = outcome.plan
    taking_part = [model for model in outcome.models if model.matched]
    sentences = []
    if any(model.parameters for model in taking_part):
        sizes = [model.parameters for model in taking_part if model.parameters is not None]
        sentences.append(
            f"Other sizes: these models have {_range(sizes)} parameters. "
            "What is better here can be worse at a larger size."
        )
    tokens = [row.training_tokens for row in outcome.spent if row.training_tokens]
    ratios = [
        row.training_tokens / model.parameters
        for row in outcome.spent
        for model in taking_part
        if row.architecture == model.architecture and row.training_tokens and model.parameters
    ]
    if tokens and ratios:
        few = min(ratios) < TOKENS_A_PARAMETER
        early = (
            f", where about {TOKENS_A_PARAMETER} are compute-optimal for transformers (Hoffmann et al. 2022): "
            "early learning is compared, not the end of training"
            if few
            else ""
        )
        sentences.append(
            f"Longer training: {_range(tokens)} tokens were seen, {_range(ratios, '{:.2g}'.format)} per "
            f"parameter{early}."
        )
    sentences += [
        f"Other text: one corpus ({outcome.corpus}) and one tokenizer ({plan.tokenizer}).",
        f"Longer texts: trained on {plan.context_length:,} positions at a time.",
        "Other recipes: of the hyperparameters only the learning rate was tuned."
        if len(plan.factors) != 1
        else "Other recipes: no hyperparameter was tuned, not even the learning rate.",
        f"Other machines: speed and memory are those of {outcome.machine.get('device_name', 'this machine')}.",
        f"Differences between the others: each was compared with {plan.baseline} only.",
    ]
    if missing := [model.architecture for model in outcome.models if not model.matched]:
        sentences.append(f"Anything about {_listed(missing)}, which could not be matched in size.")
    return tuple(sentences)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _range(values: Sequence[float], show: Callable[[float], str] = compact) -> str:
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low} to {high}"
