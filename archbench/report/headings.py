"""Titles of parts of a page, and facts about how they were made."""

from __future__ import annotations

from collections import Counter

from archbench.presentation.quantities import counted, duration
from archbench.report.evidence import Evidence
from archbench.study.comparison_outcome import ComparisonOutcome
from archbench.study.probe_outcome import ProbeOutcome
from archbench.study.scale_outcome import ScaleOutcome


def comparison_title(outcome: ComparisonOutcome) -> tuple[str, str]:
    base, *others = outcome.names
    title = (
        f"{', '.join(others) if len(others) <= 4 else f'{len(others)} architectures'} against {base}"
        if others
        else base
    )
    plan = outcome.plan
    device = outcome.machine.get("device_name", "")
    return title, (
        f"{plan.preset} size · {outcome.corpus} as {plan.tokenizer} · context {plan.context_length:,} · "
        f"{plan.seeds} seeds · {device} · {outcome.finished:%Y-%m-%d}"
    )


def runs_title(evidence: Evidence) -> tuple[str, str]:
    runs = evidence.rows.run_id.nunique()
    device = ", ".join(evidence.rows.device_name.drop_duplicates().astype(str))
    return (
        _kind(evidence),
        f"{counted(runs, 'run')} · {device} · newest {evidence.rows.time_utc.max():%Y-%m-%d}",
    )


def plan_facts(outcome: ComparisonOutcome) -> tuple[tuple[str, str], ...]:
    plan = outcome.plan
    done = sum(cell.outcome == "ok" for cell in outcome.cells)
    return (
        ("profile", f"{plan.profile}, preset {plan.preset}"),
        ("text", f"{plan.corpus} as {plan.tokenizer}"),
        (
            "seeds",
            f"{plan.seeds}, and " + (f"{plan.tuning_seeds} for tuning" if len(plan.factors) != 1 else "no tuning"),
        ),
        ("text scored", f"{outcome.units.count:,} {outcome.units.kind}, {outcome.units.empty:,} empty ones left out"),
        ("cells", f"{done:,} of {len(outcome.cells):,} finished"),
        *machines_fact(outcome),
        time_fact(outcome),
    )


def machines_fact(outcome: ComparisonOutcome) -> list[tuple[str, str]]:
    """How many runs each machine measured, where a launcher took them to several."""
    hosts = Counter(cell.host or "the machine of the study" for cell in outcome.cells)
    if set(hosts) == {"the machine of the study"}:
        return []
    runs = ", ".join(f"{host} ({counted(count, 'run')})" for host, count in hosts.most_common())
    return [("machines", f"{runs}; quality may come from any, times that are compared from one")]


def time_fact(outcome: ComparisonOutcome | ProbeOutcome | ScaleOutcome) -> tuple[str, str]:
    return "time", f"{duration(outcome.seconds.measured)}, predicted {duration(outcome.seconds.predicted)}"


def _kind(evidence: Evidence) -> str:
    if not evidence.names:
        return "Kernels"
    if (evidence.rows.phase == "probe").all():
        return "Probes"
    modelled = sorted(set(evidence.rows.architecture) - {"none"})
    return f"Runs of {', '.join(modelled) if len(modelled) <= 4 else f'{len(modelled)} architectures'}"
