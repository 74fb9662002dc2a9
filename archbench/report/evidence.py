"""The data of figures and tables, in one form for comparisons and for runs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.errors import StorageError
from archbench.report.styles import Style, styles_of
from archbench.results.schema import ENDED, ROWS
from archbench.study.comparison_outcome import ComparisonOutcome, Spent
from archbench.study.costs import CostCurve, CostRow, Position
from archbench.study.learning_rates import Tuning
from archbench.study.outcome import Outcome

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Score:
    """Bits per byte of one architecture, with its interval."""

    name: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    Attributes:
        names: architectures, or sets of runs that differ only in their seed, in the order of tables and legends.
        rows: all tidy rows, with an added column ``name`` (one of ``names``, or null).
        learners: ids of runs whose training is shown: the confirming seeds of a comparison, or all runs.
        scores, spent, costs, curves, positions, tuning: as in comparison.json, by name.
        score_interval: meaning of a score's interval.
        provenance: (what, value) pairs that apply to everything.
        outcome: the comparison; None for runs alone.
    """

    names: tuple[str, ...]
    rows: pd.DataFrame
    learners: tuple[str, ...]
    scores: tuple[Score, ...]
    spent: tuple[Spent, ...]
    costs: tuple[CostRow, ...]
    curves: tuple[CostCurve, ...]
    positions: tuple[Position, ...]
    tuning: tuple[Tuning, ...]
    score_interval: str
    provenance: tuple[tuple[str, str], ...]
    outcome: ComparisonOutcome | None = None

    @cached_property
    def styles(self) -> dict[str, Style]:
        own = self.rows[self.rows["name"].isin(self.names)].drop_duplicates("name").set_index("name").architecture
        return styles_of({name: str(own.get(name, name)) for name in self.names})


def of_comparison(folder: Path) -> Evidence:
    """A finished comparison.

    Raises:
        StorageError: see :meth:`archbench.study.outcome.Outcome.read`; or its rows are missing or damaged.
    """
    outcome = ComparisonOutcome.read(folder)
    rows = rows_of(outcome, folder)
    names = outcome.names

    def own(rows: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(row for row in rows if row.architecture in names)

    return Evidence(
        names=names,
        rows=rows,
        learners=tuple(cell.run_id for cell in outcome.cells if cell.stage == "seed" and cell.run_id is not None),
        scores=tuple(
            Score(row.architecture, row.bits_per_byte, row.low, row.high)
            for row in own(outcome.quality)
            if row.bits_per_byte is not None
        ),
        spent=own(outcome.spent),
        costs=own(outcome.costs),
        curves=own(outcome.curves),
        positions=own(outcome.positions),
        tuning=own(outcome.tuning),
        score_interval=f"{outcome.plan.confidence:.0%} interval of the mean over seeds",
        provenance=provenance_of(outcome, folder),
        outcome=outcome,
    )


def rows_of(outcome: Outcome, folder: Path) -> pd.DataFrame:
    """All rows of a study, with the column ``name``.

    Raises:
        StorageError: they are missing or damaged.
    """
    from archbench.results.reading import read_results

    file = folder / ROWS
    if not file.is_file():
        raise StorageError(str(folder), f"the rows of the {outcome.noun}, {ROWS}, are missing", outcome.again())
    rows = read_results(file, trials=True)
    return rows.assign(name=rows.architecture.where(rows.architecture != "none"))


def provenance_of(outcome: Outcome, folder: Path) -> tuple[tuple[str, str], ...]:
    """The command, folder, time, versions and machine of a study, as (what, value) pairs."""
    revision = f", git {outcome.git_revision}" if outcome.git_revision else ""
    machine = (f"{name.replace('_', ' ')} {value}" for name, value in outcome.machine.items() if value is not None)
    return (
        ("command", outcome.command),
        ("folder", str(folder)),
        ("finished", f"{outcome.finished:%Y-%m-%d %H:%M %Z}".strip()),
        ("versions", f"archbench {outcome.archbench_version}{revision}"),
        ("machine", ", ".join(machine)),
    )


def of_runs(rows: pd.DataFrame, places: tuple[str, ...]) -> Evidence:
    """Runs without a comparison; those that differ only in their seed are grouped.

    Args:
        rows: at least one tidy row.
        places: the folders and files that they come from.
    """
    rows = rows.assign(name=_names(rows))
    names = tuple(dict.fromkeys(rows.name.dropna().sort_values()))
    needed = ["name", "run_id", "phase", "metric", "value", "batch_size", "prompt_length", "tokens_seen"]
    measured = rows.loc[~rows.metric.isin(ENDED) & rows.value.notna() & rows["name"].notna(), needed]
    first = rows.iloc[0]
    versions = f"archbench {first.archbench_version}, torch {first.torch_version}, Python {first.python_version}"
    devices = ", ".join(rows.device_name.drop_duplicates().astype(str))
    evidence = Evidence(
        names=names,
        rows=rows,
        learners=tuple(measured[measured.phase == "train"].run_id.drop_duplicates()),
        scores=(), spent=(), costs=(), curves=(), positions=(), tuning=(),
        score_interval="lowest to highest run",
        provenance=(("read from", ", ".join(places)), ("versions", versions), ("machine", devices)),
    )  # fmt: skip
    return replace(
        evidence, scores=_scores(measured), spent=_spent(measured), costs=_costs(measured), curves=_curves(measured)
    )


def _names(rows: pd.DataFrame) -> pd.Series[str]:
    """The architecture, with preset and configuration hash where these differ between runs."""
    modelled = rows.architecture != "none"
    names = rows.architecture.astype(str)
    for column in ("preset", "config_hash"):
        several = rows.groupby(names)[column].transform("nunique") > 1
        names = names.where(~several, names + " " + rows[column].astype(str))
    return names.where(modelled)


def _scores(rows: pd.DataFrame) -> tuple[Score, ...]:
    found = rows[(rows.phase == "quality") & (rows.metric == "bits_per_byte")]
    return tuple(
        Score(
            str(name),
            float(values.mean()),
            float(values.min()) if len(values) > 1 else None,
            float(values.max()) if len(values) > 1 else None,
        )
        for name, values in found.groupby("name").value
    )


def _spent(rows: pd.DataFrame) -> tuple[Spent, ...]:
    import pandas as pd

    train = rows[rows.phase == "train"]
    found = []
    for name, own in train.groupby("name"):
        median = own.groupby("metric").value.median()
        tokens = own[own.metric == "training_seconds"].tokens_seen.median()
        flops = median.get("flops_per_token")
        seen = None if pd.isna(tokens) else float(tokens)
        found.append(
            Spent(
                architecture=str(name),
                training_tokens=seen,
                training_flops=None if flops is None or seen is None else float(flops) * seen,
                training_seconds=_number(median.get("training_seconds")),
            )
        )
    return tuple(found)


_SHOWN_COSTS = (
    ("train", "step_seconds", "train", "training step", "s"),
    ("decode", "seconds_per_token", "decode", "decoding, a token", "s"),
    ("train", "peak_memory_bytes", "training_memory", "peak memory in training", "B"),
    ("decode", "cache_bytes", "state", "decoding state", "B"),
)


def _costs(rows: pd.DataFrame) -> tuple[CostRow, ...]:
    """Medians for one sequence, at the longest prompt that all have."""
    found = []
    for phase, metric, key, label, unit in _SHOWN_COSTS:
        own = rows[(rows.phase == phase) & (rows.metric == metric)]
        if phase == "decode":
            own = own[own.batch_size == 1]
            having = own.groupby("prompt_length")["name"].nunique()
            common = [int(length) for length in having[having == own["name"].nunique()].index]
            if not common:
                continue
            own = own[own.prompt_length == max(common)]
            label += f" after {max(common)}" if unit == "s" else f" at a prompt of {max(common)}"
        found += [
            CostRow(
                metric=key, label=label, unit=unit, architecture=str(name), value=float(value), verdict="not measured"
            )
            for name, value in own.groupby("name").value.median().items()
        ]
    return tuple(found)


def _curves(rows: pd.DataFrame) -> tuple[CostCurve, ...]:
    """Costs of one sequence against the length of the prompt."""
    own = rows[rows.phase.isin(["prefill", "decode"]) & (rows.batch_size == 1) & rows.prompt_length.notna()]
    median = own.groupby(["name", "prompt_length", "metric"]).value.median()
    cases = dict.fromkeys((name, length) for name, length, _ in median.index)
    return tuple(
        CostCurve(
            architecture=str(name),
            context_length=int(length),
            prefill_seconds=_number(median.get((name, length, "seconds_to_first_token"))),
            seconds_per_token=_number(median.get((name, length, "seconds_per_token"))),
            state_bytes=_number(median.get((name, length, "cache_bytes"))),
            peak_memory_bytes=None,
            cause=None,
        )
        for name, length in cases
    )


def _number(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]
