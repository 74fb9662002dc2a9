"""``archbench diff``: what differs between two runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.options import Json, Results, number
from archbench.cli.output import print_json
from archbench.errors import StorageError, UnknownNameError, UsageError, did_you_mean
from archbench.presentation.quantities import counted
from archbench.presentation.terminal import echo, paragraph, show

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = ("larger than noise", "noise not known")


def diff(
    a: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, its .parquet file, or a folder with one run")],
    b: Annotated[str, typer.Argument(metavar="RUN", help="The run to compare it with")],
    results: Results = "results",
    floor: Annotated[
        float,
        typer.Option(
            "--noise-floor",
            min=0,
            max=100,
            metavar="PERCENT",
            help="Smaller ones are noise: see archbench doctor",
        ),
    ] = 0.0,
    every: Annotated[bool, typer.Option("--all", help="Also what is equal, noise or of one side")] = False,
    json: Json = False,
) -> None:
    """Show what differs between two runs: configuration, code, machine, and numbers with the noise beside each.

    A difference is larger than noise if the 95 % interval of the ratio of medians, bootstrapped from the samples of
    both runs, leaves out zero, and if it exceeds --noise-floor. Samples of one run do not show how runs differ from
    each other: archbench regress measures in turns.
    """
    number(floor, "--noise-floor")
    from archbench.report.run_difference import as_json, fact_table, facts, number_table, numbers

    frames = _rows(a, results), _rows(b, results)
    differing = facts(frames, (_saved(frames[0], a, results), _saved(frames[1], b, results)))
    measured = numbers(*frames, floor=floor / 100)
    if json:
        for kind, found in (("fact", differing), ("number", measured)):
            for one in found:
                print_json({"kind": kind, **as_json(one)})
        return
    for letter, frame in zip("AB", frames, strict=True):
        first = frame.iloc[0]
        echo(f"{letter}: {first.run_id}  {first.architecture} {first.preset}, {first.device_name}")
    echo()
    if differing:
        show(fact_table(differing), fact_table(differing, stacked=True))
    else:
        echo("Configuration, code and machine are the same.")
    echo()
    shown = [one for one in measured if every or one.verdict in _SHOWN]
    if shown:
        show(number_table(shown), number_table(shown, stacked=True))
    one_sided = sum(one.verdict == "on one side only" for one in measured)
    if not every and len(shown) < len(measured):
        left = len(measured) - len(shown) - one_sided
        echo(
            f"Not shown: {counted(left, 'number')} equal or within noise, {one_sided} on one side only. --all has them."
        )
    if any(frame.contaminated.eq(True).any() for frame in frames):
        paragraph("Other work ran on the machine during some of it: speeds may differ for that reason.")


def _rows(run: str, results: str) -> pd.DataFrame:
    """The rows of one run."""
    from archbench.results.reading import read_results
    from archbench.results.store import RUN_ID

    place = Path(run)
    if RUN_ID.fullmatch(place.name) and (place.is_dir() or not place.exists()):
        return _of_id(place.name, place.parent if place.is_dir() else Path(results))
    frame = read_results(run, trials=True)
    ids = list(frame.run_id.drop_duplicates())
    if len(ids) != 1:
        newest = f"; the newest is {ids[0]}" if ids else ""
        step = f"Name one by its id: --in {run}" if ids else "Name another"
        raise UsageError(run, f"it has {counted(len(ids), 'run')}{newest}", step)
    return frame


def _of_id(run_id: str, folder: Path) -> pd.DataFrame:
    """The rows of the run, which may be among those of a study."""
    from archbench.results.reading import read_results
    from archbench.results.run_files import all_runs
    from archbench.results.schema import ROWS

    known = {one.run_id: one.rows for one in all_runs(folder)}
    if run_id in known:
        return read_results(known[run_id], trials=True)
    for study in sorted(folder.rglob(ROWS)):
        frame = read_results(study, trials=True)
        if len(own := frame[frame.run_id == run_id]):
            return own
        known |= dict.fromkeys(frame.run_id, study)
    raise UnknownNameError(f"run {run_id}", f"there is no such run in {folder}", did_you_mean(run_id, known))


def _saved(frame: pd.DataFrame, run: str, results: str) -> dict[str, Any]:
    """The JSON beside the run's rows; empty for a run of which a study keeps only the rows."""
    from archbench.files.loader import read_json
    from archbench.results.run_files import RunFiles, all_runs

    run_id = frame.run_id.iloc[0]
    listed = {} if Path(run).exists() else {one.run_id: one for one in all_runs(Path(results))}
    files = listed.get(run_id, RunFiles.at(Path(run)))
    if not files.config.is_file():
        return {}
    saved = read_json(files.config, sealing="optional", next_step="archbench fsck says what can be recovered")
    if not isinstance(saved, dict) or not {"run", "model", "facts"} <= saved.keys():
        raise StorageError(str(files.config), "it is not the configuration of a run", "archbench fsck names what it is")
    return saved
