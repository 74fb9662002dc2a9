"""``archbench clean``: what takes space and can go; ``archbench rm``: a run with all that is of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archbench.cli.options import Json
from archbench.cli.output import print_json, say
from archbench.errors import ArchbenchError, UnknownNameError, UsageError, did_you_mean
from archbench.presentation.quantities import counted, duration, quantity
from archbench.presentation.tables import Column, table
from archbench.presentation.terminal import echo, show

if TYPE_CHECKING:
    from archbench.results.leftovers import Leftover


def clean(
    folder: Annotated[str, typer.Argument(help="A folder of results, with the studies in it")] = "results",
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Remove only these: checkpoints, unfinished, cache or temporary (repeatable)",
            show_default="all but unfinished",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and remove nothing")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking")] = False,
    json: Json = False,
) -> None:
    """Show what takes space and can go, and remove it after asking. Results stay, and so does what is in use.

    Checkpoints of finished runs serve archbench generate only. The cache has encoded texts and trained tokenizers,
    which are made again when needed. Temporary files are those of processes that have ended. Unfinished and failed
    runs can still be resumed: they go only with --only unfinished.
    """
    from archbench.results.leftovers import ASKED, KINDS, leftovers

    for kind in only or ():
        if kind not in KINDS:
            raise UnknownNameError("--only", f"there is no kind {kind!r}", did_you_mean(kind, KINDS))
    found = list(leftovers(Path(folder)))
    chosen = [one for one in found if one.owner is None and one.kind in (only or ASKED)]
    if not json:
        _print_table(found, folder)
    _remove(chosen, found, dry_run=dry_run, yes=yes, json=json)


def rm(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Ids of runs, their .parquet files or their folders")
    ] = None,
    results: Annotated[
        str, typer.Option("--in", metavar="DIR", help="The results folder in which ids are")
    ] = "results",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and remove nothing")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking")] = False,
    json: Json = False,
) -> None:
    """Remove runs whole, after asking: rows, configuration, folder and checkpoints.

    A run that a process measures, or that the outcome of a study refers to, stays.
    """
    from archbench.results.leftovers import whole_run
    from archbench.results.run_files import run_files

    if not runs:
        raise UsageError("archbench rm", "no run is named", "Name one by its id; archbench results lists them")
    found = [whole_run(one) for one in dict.fromkeys(run_files(run, results) for run in runs)]
    for one in found:
        if one.owner is not None:
            step = "Wait for it, or leave it out; a study's runs go with the folder of the study"
            raise UsageError(f"run {one.paths[0].stem}", f"it stays: {one.owner}", step)
    if not json:
        _print_table(found, results)
    _remove(found, found, dry_run=dry_run, yes=yes, json=json)


def _remove(chosen: list[Leftover], found: list[Leftover], *, dry_run: bool, yes: bool, json: bool) -> None:
    size = quantity(sum(one.bytes for one in chosen), "B")
    removes = bool(chosen) and not dry_run and (yes or _agreed(len(chosen), size, json=json))
    removed, failure = _removed(chosen) if removes else ([], None)
    if json:
        for one in found:
            print_json({**_plain(one), "chosen": one in chosen, "removed": one in removed})
    elif removes:
        echo(f"{counted(len(removed), 'item')} removed, {quantity(sum(one.bytes for one in removed), 'B')}.")
    elif chosen and not dry_run and not sys.stdin.isatty():
        echo(f"Nothing is removed. --yes removes {counted(len(chosen), 'item')}, {size}.")
    if failure is not None:
        raise failure


def _removed(chosen: list[Leftover]) -> tuple[list[Leftover], ArchbenchError | None]:
    """Those that could be removed, and the last error."""
    removed: list[Leftover] = []
    failure: ArchbenchError | None = None
    for one in chosen:
        try:
            one.remove()
            removed.append(one)
        except ArchbenchError as error:
            if failure is not None:
                say("Warning", str(failure))
            failure = error
    return removed, failure


def _agreed(number: int, size: str, *, json: bool) -> bool:
    """Whether the user agrees; without a terminal there is nobody to ask."""
    return sys.stdin.isatty() and not json and typer.confirm(f"Remove {counted(number, 'item')}, {size}?")


def _plain(one: Leftover) -> dict[str, object]:
    return {
        "kind": one.kind,
        "paths": [str(path) for path in one.paths],
        "bytes": one.bytes,
        "age_seconds": one.age,
        "loses": one.loses,
        "owner": one.owner,
    }


def _print_table(found: list[Leftover], folder: str) -> None:
    if not found:
        echo(f"Nothing to clean in {folder}, in the cache or among temporary files.")
        return
    columns = (
        Column("kind", "name"), Column("items", show="{:,}".format), Column("size", unit="B"),
        Column("oldest", show=duration), Column("what is lost", "text", priority=1), Column("what", "path"),
    )  # fmt: skip
    together: dict[tuple[str, str, Path], list[Leftover]] = {}
    for one in found:  # a cache has thousands of files, whose names say nothing: a row for each of its folders
        what = one.paths[-1].parent if one.kind == "cache" else one.paths[-1]
        together.setdefault((one.kind, one.owner or one.loses, what), []).append(one)
    rows = (
        (kind, len(those), sum(one.bytes for one in those), max(one.age for one in those), lost, str(what))
        for (kind, lost, what), those in together.items()
    )
    show(table("leftovers", "", columns, rows))
    left = [one for one in found if one.kind == "unfinished" and one.owner is None]
    if left:
        size = quantity(sum(one.bytes for one in left), "B")
        echo(f"\n{counted(len(left), 'unfinished run')}, {size}: resume, or remove with --only unfinished.")
