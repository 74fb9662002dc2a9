"""``archbench fsck``: what is damaged in a folder of results, and what can be recovered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archbench.cli.options import Json
from archbench.cli.output import print_json
from archbench.errors import StorageError
from archbench.presentation.quantities import counted
from archbench.presentation.tables import Column, table
from archbench.presentation.terminal import echo, show

if TYPE_CHECKING:
    from archbench.runs.integrity import Finding


def fsck(
    path: Annotated[str, typer.Argument(help="A folder of results, with the studies in it, or a file")] = "results",
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Write again what whole files can tell; a damaged file is kept as NAME.damaged"),
    ] = False,
    json: Json = False,
) -> None:
    """Say which files are damaged, and what can be recovered. Nothing is changed without --repair.

    Reads all files of runs, studies and checkpoints. A damaged results file is rebuilt from the rows that each phase
    kept, the configuration beside it from that in the run's folder.
    """
    from archbench.runs.integrity import examine

    found = list(examine(Path(path)))
    repaired = []
    for one in found if repair else []:
        if one.state == "damaged" and one.repair is not None:
            one.repair()
            repaired.append(one)
            echo(f"repaired: {one.path}", error=True)
    print_findings([one for one in found if one not in repaired], path, json=json)


def print_findings(found: Sequence[Finding], path: str, *, json: bool) -> None:
    """Print what was found.

    Raises:
        StorageError: something is damaged.
    """
    if json:
        for one in found:
            print_json(
                {"path": str(one.path), "kind": one.kind, "state": one.state, "cause": one.cause, "remedy": one.remedy}
            )
    else:
        _print(found, path)
    damaged = [one for one in found if one.state == "damaged"]
    if damaged:
        cause = f"{counted(len(damaged), 'file')} of {len(found)} damaged, the first is {damaged[0].path}"
        raise StorageError(path, cause, f"archbench fsck {path} says what can be recovered")


def _print(found: Sequence[Finding], path: str) -> None:
    from archbench.runs.integrity import STATES

    numbers = Counter((one.kind, one.state) for one in found)
    kinds = sorted({one.kind for one in found})
    rows = [[kind, *(str(numbers[kind, state] or "") for state in STATES)] for kind in kinds]
    columns = [Column("kind", "name"), *(Column(state, "text", hint=meaning) for state, meaning in STATES.items())]
    if not rows:
        echo(f"{path}: nothing that archbench wrote.")
        return
    show(table("integrity", f"Files in {path}", columns, rows))
    for one in found:
        if one.state in ("damaged", "leftover"):
            echo(f"{one.path}: {one.state}{f' ({one.cause})' if one.cause else ''}. {one.remedy}.")
