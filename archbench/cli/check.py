"""``archbench check``: run the conformance checks on one architecture."""

from __future__ import annotations

import shlex
import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.options import Device, Json, Name, Plugins, Preset, Quiet, Seed, Set, assignments, named, number
from archbench.cli.output import print_json
from archbench.errors import ConformanceError
from archbench.presentation.terminal import echo

if TYPE_CHECKING:
    from archbench.testing.evaluation import Result
    from archbench.testing.isolation import Claim, Request

    Findings = list[tuple[Claim, Result]]


def check(
    architecture: Name = None,
    preset: Preset = "nano",
    set_: Set = None,
    plugin: Plugins = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--check", metavar="CHECK", help="Run this check only (repeatable)", show_default="all"),
    ] = None,
    xfail: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHECK=REASON",
            help="A check known to fail, and why (repeatable); passing is then a failure. archbench run ignores this",
        ),
    ] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    limit: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=10**6,
            help="Seconds that each check may take, and importing the plugin; waiting for busy CPUs does not count",
            show_default="60, or more on a slow machine",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that an architecture is fit for a fair comparison; exit code 9 if it is not. Takes less than a minute.

    Its code runs in another process, so a hang, crash or exit fails one check only. With --debug, each failed check
    shows its traceback.
    """
    from archbench.cli.progress import CheckProgress
    from archbench.plugin.discovery import plugin_paths
    from archbench.plugin.registry import ARCHITECTURE, find
    from archbench.testing.evaluation import parsed_expectations
    from archbench.testing.isolation import Request, check_apart

    number(limit, "--limit")
    request = Request(
        architecture=named(architecture, "check"),
        plugins=plugin_paths(plugin or ()),
        preset=preset,
        overrides=assignments(set_, "--set"),
        checks=tuple(only) if only else None,
        expected_failures=parsed_expectations(xfail or (), "--xfail"),
        device=_device(device),
        seed=seed,
    )
    if not request.plugins:
        find(ARCHITECTURE, [request.architecture])  # a typo is answered before a process starts and imports torch
    found: Findings = []
    imports: list[float] = []
    start = time.monotonic()
    progress = CheckProgress(shown=not quiet, json=json)
    checked = check_apart(request, limit=limit, begun=progress.started, loaded=imports.append)
    with progress, closing(checked) as results:
        for claim, result in results:
            progress.ended(result)
            found.append((claim, result))
            if json:
                _print_line(
                    request,
                    check=claim.name,
                    status=result.status,
                    gate=claim.gate,
                    why=claim.why,
                    evidence=result.evidence,
                    seconds=result.seconds,
                )
    seconds = time.monotonic() - start
    if json:
        _print_line(
            request,
            conforms=_conforms(request, found),
            failed=_names(found, "failed", "unexpected pass"),
            expected_failures=_names(found, "expected failure"),
            not_run=_names(found, "not run"),
            noted=_names(found, "noted"),
            import_seconds=sum(imports),
            seconds=seconds,
        )
    else:
        _print_table(found)
        echo(f"\n{_verdict(request, found, seconds)}")
    if failed := _failed(found):
        raise _failure(request, failed, found, plugin or [])


def _device(name: str) -> str:
    """The device asked for, which is there; torch is left alone for the CPU, since the other process loads it."""
    if name == "cpu":
        return name
    from archbench.runs.device import default_device, resolve_device

    return str(resolve_device(default_device() if name == "auto" else name))


def _names(found: Findings, *statuses: str) -> list[str]:
    return [claim.name for claim, result in found if result.status in statuses]


def _failed(found: Findings) -> list[str]:
    """Checks that decide against the architecture; those that were not run come in only where nothing else does."""
    return _names(found, "failed", "unexpected pass") or _names(found, "not run")


def _conforms(request: Request, found: Findings) -> bool | None:
    """Whether every claim holds; None where too few were checked to say so. An expected failure is a failure."""
    if not all(result.holds for _, result in found):
        return False
    return True if request.checks is None else None


def _subject(request: Request) -> str:
    changed = "".join(f" {field}={value}" for field, value in request.overrides.items())
    return f"{request.architecture} {request.preset}{changed}"


def _verdict(request: Request, found: Findings, seconds: float) -> str:
    from archbench.testing.evaluation import LEVEL

    subject, took = _subject(request), f"({len(found)} check{'s' * (len(found) != 1)}, {seconds:.1f} s)"
    if failed := _failed(found):
        return f"{subject} does not conform to level {LEVEL}: {', '.join(failed)} failed {took}"
    if expected := _names(found, "expected failure"):
        return f"{subject} does not conform to level {LEVEL}: {', '.join(expected)} failed as expected {took}"
    if request.checks is not None:
        return f"{subject} passes what was checked {took}. Leave --check out to check everything."
    return f"{subject} conforms to level {LEVEL} {took}"


def _failure(request: Request, failed: list[str], found: Findings, plugins: list[str]) -> ConformanceError:
    options = [*_options("--plugin", plugins), *(["--preset", request.preset] if request.preset != "nano" else [])]
    options += _options("--set", [f"{field}={value}" for field, value in request.overrides.items()])
    if request.device != "cpu":
        options += ["--device", request.device]
    again = shlex.join(["archbench", "check", request.architecture, *options, "--check", failed[0], "--debug"])
    error = ConformanceError(
        _subject(request),
        f"{len(failed)} of {len(found)} checks failed ({', '.join(failed)})",
        f"Mend one at a time; with its traceback: {again}",
    )
    for claim, result in found:
        if result.status == "failed" and result.trace:
            error.add_note(f"in check {claim.name}:\n{result.trace}")
    return error


def _options(option: str, values: list[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _print_line(request: Request, **fields: Any) -> None:
    from archbench.testing.evaluation import LEVEL

    print_json({"architecture": request.architecture, "preset": request.preset, "level": LEVEL, **fields})


def _print_table(found: Findings) -> None:
    from archbench.presentation.tables import Cell, Column, table
    from archbench.presentation.terminal import show

    columns = Column("check", "name"), Column("result", "verdict"), Column("seconds"), Column("evidence", "text")
    rows = [
        (
            claim.name, result.status, Cell("" if result.status == "not run" else f"{result.seconds:.1f}"),
            result.evidence + (f"\n{claim.why}" if result.status == "failed" else ""),
        )
        for claim, result in found
    ]  # fmt: skip
    show(table("checks", "", columns, rows))
