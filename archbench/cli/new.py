"""``archbench new``: write the package of a new architecture, ready to be changed, tested and installed."""

from __future__ import annotations

import os
import shlex
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from archbench.cli.options import Plugins, named
from archbench.errors import UsageError
from archbench.presentation.terminal import echo


def new(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the architecture: lower-case letters, digits and '-'", show_default=False),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME", help="Copy the module of this architecture instead of the template"),
    ] = None,
    wrap: Annotated[
        str | None,
        typer.Option(metavar="LIBRARY", help="Wrap a model of transformers, litgpt, x-transformers or nanogpt"),
    ] = None,
    plugin: Plugins = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to create the package's folder")] = Path("."),
) -> None:
    """Write an installable plugin package: one module, its tests, pyproject.toml, a README and a workflow for CI."""
    from archbench.plugin.registry import available
    from archbench.scaffold.action_reference import UNKNOWN, action_reference
    from archbench.scaffold.origin import find_origin
    from archbench.scaffold.package import WORKFLOW, check_name, find_wrap, package_files, write_package

    name = named(name, "new")
    if from_ is not None and wrap is not None:
        raise UsageError("--wrap", "--from already says what the module is made from", "Leave one of them out")
    wrapped = find_wrap(wrap) if wrap is not None else None
    known = available(plugin or ())
    check_name(name, known)
    action = action_reference()
    written = package_files(name, find_origin(from_, known) if from_ is not None else None, wrapped, action)
    folder = Path(os.path.expanduser(out)) / name
    write_package(folder, written)
    place = shlex.quote(os.path.normpath(folder))
    listed = f"{place}: {', '.join(written)}"
    echo(textwrap.fill(listed, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    echo("Next:")
    echo(f"  cd {place}")
    if wrapped is not None and wrapped.step:
        echo(f"  {wrapped.command(name)}")
    echo("  pip install -e . pytest")
    echo("  pytest                     # does it pass the conformance checks?")
    echo(f"  archbench check {name}")
    echo(f"  archbench run {name} --profile smoke")
    echo(f"On GitHub, {WORKFLOW} checks each pull request and")
    if action == UNKNOWN:
        echo("comments on what it costs. First write there where archbench comes from, for")
    else:
        echo("comments on what it costs, with archbench from")
    echo(f"  {action}")
