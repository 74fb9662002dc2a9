"""``archbench trust``: let plugin files run that a results folder or a run file names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archbench.cli.options import Json
from archbench.cli.output import print_json
from archbench.errors import StorageError, UsageError
from archbench.presentation.terminal import echo

if TYPE_CHECKING:
    from archbench.plugin.trust import Trusted


def trust(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE_OR_DIR]...", help="Plugin files, packages or folders of them")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show what is trusted")] = False,
    forget: Annotated[
        list[str] | None, typer.Option(metavar="PATH_OR_DIGEST", help="Trust it no longer (repeatable)")
    ] = None,
    json: Json = False,
) -> None:
    """Trust plugin files by their content.

    A results folder or a run file that comes from elsewhere may name plugin files. They run only if you have begun a
    run with the same file yourself (--plugin), or trust its content. A changed file is another one.
    """
    from archbench.plugin import trust as trusting

    asked = [bool(paths), listed, bool(forget)]
    if sum(asked) != 1:
        step = "Name files to trust, or give --list, or --forget PATH"
        raise UsageError("archbench trust", "one thing at a time" if any(asked) else "nothing is named", step)
    for path in paths or ():
        if not Path(os.path.expanduser(path)).exists():
            raise UsageError(str(path), "there is no such file or folder", "Correct the path")
    try:
        if listed:
            _print(trusting.trusted(), "", json=json)
        elif forget:
            _print([one for given in forget for one in trusting.forget(given)], "forgot ", json=json)
        else:
            _print(trusting.trust(paths or ()), "trusted ", json=json)
    except OSError as error:
        cause = f"it cannot be written ({error.strerror or error})"
        step = f"Make it writable, or set {trusting.CONFIG_VARIABLE}"
        raise StorageError(str(trusting.config_folder()), cause, step) from error


def _print(found: list[Trusted], said: str, *, json: bool) -> None:
    for one in found:
        if json:
            print_json(one.model_dump(mode="json"))
        else:
            echo(f"{said}{one.path} ({one.digest})")
