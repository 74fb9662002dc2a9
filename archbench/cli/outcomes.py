"""What ``compare``, ``tune``, ``probe`` and ``scale`` print last: tables, sentences, and the folder's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from archbench.presentation.quantities import duration
from archbench.presentation.terminal import echo, paragraph, show
from archbench.results.schema import ROWS

if TYPE_CHECKING:
    import pandas as pd

    from archbench.presentation.tables import Table
    from archbench.study.comparison_outcome import ComparisonOutcome, TuningOutcome
    from archbench.study.probe_outcome import ProbeOutcome
    from archbench.study.scale_outcome import ScaleOutcome


def print_comparison(outcome: ComparisonOutcome, folder: Path) -> None:
    """The verdict in sentences, then the tables of quality, size and cost."""
    from archbench.report.comparison_tables import heading
    from archbench.report.conclusions import conclusions
    from archbench.report.contents import comparison_tables

    found = conclusions(outcome)
    paragraph(f"{heading(outcome)}\n\n{found.headline}\n{found.details}\n")
    _show(lambda rows: comparison_tables(outcome, rows), outcome, folder)
    _end(outcome, folder)


def print_tuning(outcome: TuningOutcome, folder: Path) -> None:
    """The learning-rate curve of each architecture."""
    from archbench.report.comparison_tables import heading, tuning_table

    echo(heading(outcome))
    _show(lambda _: [tuning_table(outcome)], outcome, folder)
    echo(f"In {folder}: tuning.json, runs.parquet. archbench compare with the same options continues from here.")


def print_probe(outcome: ProbeOutcome, folder: Path) -> None:
    """The scores with their decoding states, and what took no part."""
    from archbench.report.probe_tables import score_table

    _show(lambda _: [score_table(outcome)], outcome, folder)
    _end(outcome, folder)


def print_scale(outcome: ScaleOutcome, folder: Path) -> None:
    """Losses, laws with their tests, and what took no part."""
    from archbench.report.ladder_tables import loss_table
    from archbench.report.ladder_texts import law_sentences, notes

    plan = outcome.plan
    echo(f"{plan.text} as {plan.tokenizer}, context {plan.context_length:,}\n")
    _show(lambda _: [loss_table(outcome)], outcome, folder)
    paragraph("\n".join([*law_sentences(outcome), *notes(outcome), ""]))
    _end(outcome, folder)


def _show(
    build: Callable[[pd.DataFrame | None], Sequence[Table | None]],
    outcome: ComparisonOutcome | TuningOutcome | ProbeOutcome | ScaleOutcome,
    folder: Path,
) -> None:
    """Print the tables that ``build`` makes of the rows, with what their numbers rest on, if any run finished."""
    from archbench.report.basis import resting
    from archbench.report.evidence import rows_of

    rows = rows_of(outcome, folder) if (folder / ROWS).is_file() else None
    made = build(rows)
    for table in filter(None, made) if rows is None else resting(made, rows):
        show(table)
        echo()


def _end(outcome: ComparisonOutcome | ProbeOutcome | ScaleOutcome, folder: Path) -> None:
    seconds = outcome.seconds
    paragraph(
        f"Took {duration(seconds.measured)}, predicted {duration(seconds.predicted)}. In {folder}: {outcome.file}, "
        "runs.parquet"
    )
    echo(f"Next: archbench report {folder} -o report.html")
