"""The parts of a report: a comparison, a scaling study, or runs without one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from archbench.errors import ArchbenchError, ArchbenchWarning, StorageError, one_line
from archbench.presentation.quantities import counted
from archbench.presentation.tables import Table
from archbench.proof.statements import ProofOutcome
from archbench.report.basis import basis_of, resting
from archbench.report.comparison_tables import accuracy_table, cost_table, lost_table, size_table, verdict_table
from archbench.report.conclusions import Conclusions, conclusions
from archbench.report.cost_figures import context_figure, kernel_figure, pareto_figure
from archbench.report.cost_matrix import cost_matrix
from archbench.report.eval_tables import eval_table
from archbench.report.evidence import Evidence, of_comparison, of_runs, provenance_of, rows_of
from archbench.report.figures import Figure
from archbench.report.headings import comparison_title, plan_facts, runs_title, time_fact
from archbench.report.kernel_tables import kernel_tables, not_measured
from archbench.report.ladder_figures import ladder_figures
from archbench.report.ladder_tables import forecast_table, law_table, loss_table
from archbench.report.ladder_texts import conclusions as ladder_conclusions
from archbench.report.learning_curves import loss_figure, tuning_figure, validation_figure
from archbench.report.probe_figures import probe_figure, probe_state_figure
from archbench.report.probe_tables import score_table
from archbench.report.probe_texts import best_first
from archbench.report.probe_texts import conclusions as probe_conclusions
from archbench.report.proof_tables import proof_page
from archbench.report.quality_figures import difference_figure, position_figure
from archbench.report.regression_pages import SUFFIX, regression_of
from archbench.report.run_limits import REFERENCES, Peaks, limit_table, memory_table, reference_table
from archbench.report.run_tables import page_summary, run_table
from archbench.report.run_texts import KERNELS, NO_VERDICT, limits_of, summary_of
from archbench.report.sample_figures import history_figure, sample_figure
from archbench.report.serving_percentiles import latency_table, serving_figure, throughput_table
from archbench.report.side_by_side import difference_table
from archbench.report.styles import Style, styles_of
from archbench.results.doubts import doubts
from archbench.study.comparison_outcome import ComparisonOutcome
from archbench.study.outcome import Outcome
from archbench.study.probe_outcome import ProbeOutcome
from archbench.study.scale_outcome import ScaleOutcome

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Contents:
    """One part of a report.

    Attributes:
        verdict: conclusions; None for runs without a comparison, which have ``said`` and ``limits`` instead: what they
            are, and what they do not show.
        tables: in order; the first stands with the verdict.
        lead: the figure that stands with the verdict.
        figures: all that could be drawn, including ``lead``.
        missing: names of figures whose data were not measured.
        facts: (what, value) pairs about how it was made.
        styles: architecture -> colour and marker.
    """

    title: str
    subtitle: str
    verdict: Conclusions | None
    tables: tuple[Table, ...]
    lead: Figure | None
    figures: tuple[Figure, ...]
    missing: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    styles: dict[str, Style]
    said: str = ""
    limits: tuple[str, ...] = ()


def read(paths: Sequence[str], *, peaks: Peaks | None = None, references: Path = REFERENCES) -> list[Contents]:
    """Read ``paths``: folders of comparisons and ladders, results folders (with studies in them), Parquet files.

    Args:
        peaks: of the machine; a run is shown beside them.
        references: folder of runs beside which a run of the same kind is shown, if there is such a folder.

    Raises:
        StorageError: there are no results, a file is damaged, or a newer archbench wrote it.
    """
    from archbench.results.reading import read_results

    studies: dict[type[Outcome], list[Path]] = {kind: [] for kind in _STUDIES}
    regressions: list[Contents] = []
    plain: list[str] = []
    for text in paths:
        path = Path(text)
        kind = next((kind for kind in _STUDIES if path.is_dir() and kind.is_in(path)), None)
        if kind is not None:
            studies[kind].append(path)
            continue
        if path.suffix == SUFFIX and path.is_file():
            regressions.append(_of_regression(path))
            continue
        plain.append(text)
        if path.is_dir():
            for kind, folders in studies.items():
                folders += _finished_in(path, kind)
    parts = [_of_study(kind, folder) for kind, folders in studies.items() for folder in dict.fromkeys(folders)]
    parts.sort(key=lambda part: dict(part.facts)["finished"], reverse=True)
    parts += regressions
    if plain:
        rows = read_results(plain)
        if len(rows):
            parts.append(_of_runs(of_runs(rows, tuple(plain)), plain, peaks, references))
    if not parts:
        cause = f"there are no results in {'it' if len(paths) == 1 else 'them'}, trials and pilots of studies apart"
        raise StorageError(
            ", ".join(paths), cause, "Run archbench compare or archbench run first, or name a folder with results"
        )
    return parts


def _of_runs(evidence: Evidence, places: Sequence[str], peaks: Peaks | None, references: Path) -> Contents:
    """The part of runs without a comparison; of one run, everything that was measured."""
    part, rows = of_evidence(evidence), evidence.rows
    limits = tuple(limits_of(rows))
    kernels = rows[rows.phase == "kernel"]
    measured = resting((*kernel_tables(kernels), eval_table(rows, title="Downstream tasks")), rows)
    if not evidence.names:
        return replace(
            part, tables=measured, missing=(), said=KERNELS, limits=(*not_measured(kernels, places), *limits)
        )
    if rows.run_id.nunique() > 1 or (rows.phase == "probe").all():
        tables = (*part.tables, *resting((difference_table(rows, places),), rows), *measured)
        return replace(part, tables=tables, said=NO_VERDICT, limits=limits)
    reference = reference_table(rows, references)
    summary = page_summary(rows)
    served = latency_table(rows), throughput_table(rows)
    others = limit_table(rows, peaks), memory_table(rows), reference
    measured = (*resting((summary if summary.rows else None, *served), rows), *measured, *resting(others, rows))
    first = rows.iloc[0]
    return replace(
        part,
        title=f"{evidence.names[0]}, {first.preset}, seed {first.seed}",
        tables=(*measured, *(one for one in part.tables if one.key != "runs")),
        facts=(*part.facts, *_identity(part.tables)),
        missing=(*part.missing, *(() if reference else ("a reference run of the same kind",))),
        said=summary_of(rows),
        limits=limits,
    )


def _identity(tables: Sequence[Table]) -> Iterator[tuple[str, str]]:
    """What the table of runs says of a single run and no other table does."""
    for made in tables:
        if made.key == "runs":
            for column, cell in zip(made.columns, made.rows[0], strict=True):
                if column.title in ("run", "parameters", "corpus", "outcome", "checks", "contaminated"):
                    yield column.title, cell.text


def _of_regression(file: Path) -> Contents:
    command, verdict, made, figure, styles = regression_of(file)
    return Contents(
        title="Regressions",
        subtitle=f"{command} · {counted(len(made.rows), 'measurement')}",
        verdict=verdict,
        tables=(made,),
        lead=figure,
        figures=() if figure is None else (figure,),
        missing=() if figure else ("times",),
        facts=(("read from", str(file)),),
        styles=styles,
    )


def _of_study(kind: type[Outcome], folder: Path) -> Contents:
    """The part of a study.

    Raises:
        StorageError: its outcome is damaged, or says what cannot be: names that it does not have, infinite times.
    """
    try:
        return _STUDIES[kind](folder)
    except (LookupError, ValueError, TypeError, ArithmeticError, AssertionError) as error:
        if isinstance(error, ArchbenchError):
            raise
        cause = f"it is damaged: its parts do not fit each other ({one_line(error)})"
        step = f"{kind.again()}. If that changes nothing, it is a bug: report it with what --debug says"
        raise StorageError(str(folder / kind.file), cause, step) from error


def _finished_in(folder: Path, kind: type[Outcome]) -> list[Path]:
    found = []
    for inside in sorted(folder.iterdir()):
        if (inside / kind.file).is_file():
            found.append(inside)
        elif inside.is_dir() and kind.is_in(inside):
            warnings.warn(f"{inside}: the {kind.noun} is not finished. It is left out.", ArchbenchWarning, stacklevel=3)
    return found


_BUILDERS: tuple[tuple[str | None, Callable[[Evidence], Figure | None]], ...] = (
    (None, history_figure),
    ("differences between architectures", difference_figure),
    ("quality against cost", pareto_figure),
    ("training loss", loss_figure),
    ("validation during training", validation_figure),
    (None, sample_figure),
    ("cost against context length", context_figure),
    ("loss by position", position_figure),
    ("learning rates", tuning_figure),
    ("probes", probe_figure),
    (None, probe_state_figure),
    ("kernels", kernel_figure),
    (None, serving_figure),
)
"""Label shown when the data for a figure are missing (None: none), and the function that builds the figure."""


_SCORED = ("difference", "pareto", "validation")
"""Keys of the figures that show bits per byte: what speaks against those stands below them."""


def of_evidence(evidence: Evidence) -> Contents:
    """Every table and figure for which ``evidence`` has the data."""
    figures, missing = [], []
    for name, build in _BUILDERS:
        figure = build(evidence)
        if figure is not None:
            remarks = (*figure.remarks, *(doubts(evidence.rows) if figure.key in _SCORED else ()))
            provenance, basis = (*figure.provenance, *evidence.provenance), basis_of(figure.key, evidence.rows)
            figures.append(replace(figure, remarks=remarks, provenance=provenance, basis=basis))
        elif name is not None and not (build is difference_figure and evidence.outcome is None):
            missing.append(name)
    lead = next((figure for figure in figures if figure.key == "difference"), None)
    outcome = evidence.outcome
    title, subtitle = runs_title(evidence) if outcome is None else comparison_title(outcome)
    return Contents(
        title=title,
        subtitle=subtitle,
        verdict=None if outcome is None else conclusions(outcome),
        tables=resting(_tables(evidence), evidence.rows),
        lead=lead,
        figures=tuple(figures),
        missing=tuple(missing),
        facts=evidence.provenance if outcome is None else (*evidence.provenance, *plan_facts(outcome)),
        styles=evidence.styles,
    )


def _tables(evidence: Evidence) -> tuple[Table | None, ...]:
    scores: dict[str, float | None] = dict.fromkeys(evidence.names)
    scores |= {score.name: score.value for score in evidence.scores}
    outcome = evidence.outcome
    matrix = cost_matrix(evidence.costs, scores, None if outcome is None else outcome.plan.baseline)
    if outcome is None:
        return run_table(evidence), matrix
    verdict, sizes, *others = comparison_tables(outcome, evidence.rows)
    return verdict, sizes, matrix, *others


def comparison_tables(outcome: ComparisonOutcome, rows: pd.DataFrame | None) -> tuple[Table | None, ...]:
    others = accuracy_table(outcome), cost_table(outcome), lost_table(outcome)
    return verdict_table(outcome), size_table(outcome, rows), *others


def _of_comparison(folder: Path) -> Contents:
    return of_evidence(of_comparison(folder))


def of_ladder(folder: Path) -> Contents:
    """A finished ladder.

    Raises:
        StorageError: see :meth:`archbench.study.outcome.Outcome.read`; or none of its trainings finished.
    """
    ladder = ScaleOutcome.read(folder)
    if not ladder.findings:
        raise StorageError(
            str(folder), "none of its trainings finished", f"Its {ScaleOutcome.file} has the cause of each"
        )
    plan, styles = ladder.plan, styles_of({name: name for name in ladder.names})
    made = provenance_of(ladder, folder)
    rows = rows_of(ladder, folder)
    figures = tuple(
        replace(
            figure,
            remarks=(*figure.remarks, *ladder.doubts),
            provenance=(*figure.provenance, *made),
            basis=basis_of(figure.key, rows),
        )
        for figure in ladder_figures(ladder, styles)
    )
    tables = (law_table(ladder), loss_table(ladder), forecast_table(ladder))
    return Contents(
        title=f"How {', '.join(ladder.names)} scale{'s' if len(ladder.names) == 1 else ''}",
        subtitle=(
            f"{len(plan.sizes)} sizes × {len(plan.budgets)} budgets · {plan.text} as {plan.tokenizer} · context "
            f"{plan.context_length:,} · {ladder.machine.get('device_name', '')} · {ladder.finished:%Y-%m-%d}"
        ),
        verdict=ladder_conclusions(ladder),
        tables=resting(tables, rows),
        lead=figures[0],
        figures=figures,
        missing=(),
        facts=(*made, time_fact(ladder)),
        styles=styles,
    )


def of_probe(folder: Path) -> Contents:
    """A finished probe.

    Raises:
        StorageError: see :meth:`archbench.study.outcome.Outcome.read`; or its rows are missing or damaged.
    """
    outcome = ProbeOutcome.read(folder)
    evidence = of_runs(rows_of(outcome, folder), (str(folder),))
    evidence = replace(evidence, names=best_first(outcome), provenance=provenance_of(outcome, folder))
    drawn = of_evidence(evidence)
    return replace(
        drawn,
        title=f"Probes of {', '.join(outcome.names)}",
        subtitle=(
            f"{counted(len(outcome.tasks), 'task')} · {counted(outcome.plan.seeds, 'seed')} · "
            f"{outcome.machine.get('device_name', '')} · {outcome.finished:%Y-%m-%d}"
        ),
        verdict=probe_conclusions(outcome),
        tables=resting((score_table(outcome),), evidence.rows),
        lead=drawn.figures[0] if drawn.figures else None,
        missing=(),
        facts=(*evidence.provenance, time_fact(outcome)),
    )


def of_proof(folder: Path) -> Contents:
    """What a device was shown to do; raises as :func:`of_probe` does."""
    outcome = ProofOutcome.read(folder)
    return Contents(*proof_page(outcome, folder), None, (), (), provenance_of(outcome, folder), {})


_STUDIES: dict[type[Outcome], Callable[[Path], Contents]] = {
    ComparisonOutcome: _of_comparison, ScaleOutcome: of_ladder, ProbeOutcome: of_probe, ProofOutcome: of_proof,
}  # fmt: skip
"""Outcome of a study that has a part of its own in a report, and the function that reads its folder. The rows of other
studies are shown as runs."""
