"""``archbench regress``: compare the costs of two revisions of a plugin, or of archbench."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archbench.cli.options import Json, Preset, Quiet, Set, assignments, number
from archbench.errors import MissingBaselineError, RegressionError, UsageError, did_you_mean
from archbench.presentation.terminal import echo

if TYPE_CHECKING:
    from archbench.files.outputs import Output
    from archbench.regression.gate import Counted, Plan
    from archbench.regression.sides import Side
    from archbench.regression.verdict_table import Row
    from archbench.regression.worktrees import Tree


def regress(
    base: Annotated[str, typer.Argument(metavar="BASE_REV", help="The revision before the change", show_default=False)],
    head: Annotated[str, typer.Argument(metavar="HEAD_REV", help="The revision after the change", show_default=False)],
    arch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="An architecture of this repository (repeatable)",
            show_default="all that the head's pyproject.toml declares",
        ),
    ] = None,
    timed: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Time only these of them (repeatable)", show_default="all"),
    ] = None,
    exact_only: Annotated[bool, typer.Option("--exact-only", help="Time nothing")] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE_OR_DIR",
            help="Path in the repository of a plugin that no pyproject.toml declares; each revision has its own",
        ),
    ] = None,
    preset: Preset = "nano",
    set_: Set = None,
    device: Annotated[
        str, typer.Option(help="Where to time; of a GPU also count what it is asked for: cpu, cuda or cuda:N")
    ] = "cpu",
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="Nobody else uses the GPU: judge its times, do not only report them")
    ] = False,
    rounds: Annotated[int, typer.Option(min=2, max=1000, help="Fewest pairs of fresh processes")] = 3,
    max_rounds: Annotated[int, typer.Option(min=2, max=1000, help="Most pairs; more than --rounds while unclear")] = 12,
    limit: Annotated[float, typer.Option(min=1.0, max=10**6, help="Timing gate: largest head / base")] = 1.10,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=REASON", help="An intended regression; also NAME:METRIC=REASON (repeatable)"),
    ] = None,
    require_baseline: Annotated[
        bool, typer.Option("--require-baseline", help="Fail if the base has nothing to compare with")
    ] = False,
    md: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the verdict and the table as Markdown, for a comment")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare the costs of two revisions of this repository; exit code 10 if the head costs more.

    Each revision runs its own code, in its own work tree, in fresh processes of one thread, two at a time in turns.
    Counts (FLOPs, bytes, operations, graph breaks, and what a GPU is asked for) must not rise, and parameters must not
    change. A CPU time fails if the lower 95 % bound of head / base is above the gate twice. Uncommitted changes belong
    to neither revision.
    """
    from archbench.files.outputs import Output, check_outputs
    from archbench.presentation.step_view import StepView
    from archbench.regression.gate import SUITE, Plan, counted
    from archbench.regression.sides import Request, Side
    from archbench.regression.verdict_table import accepted
    from archbench.regression.worktrees import checked_out, uncommitted

    number(limit, "--limit")
    reasons = _reasons(accept)
    output = Output(md, "comparison of revisions", "--md", "remove this one") if md is not None else None
    check_outputs([output] if output is not None else [])
    plan = Plan(rounds=rounds, max_rounds=max(rounds, max_rounds), limit=limit)
    with checked_out(Path.cwd(), [base, head]) as trees:
        if changed := uncommitted(Path.cwd(), trees[1].commit):
            echo(f"Not compared, because it is not committed: {', '.join(changed)}", error=True)
        names = _names(arch, trees[1], plugin)
        timed_names = [] if exact_only else _chosen(timed, names)
        suite = (trees[1].project / "archbench" / "__init__.py").is_file()

        def side(kind: str, tree: Tree, chosen: Sequence[str], suite: bool = False) -> Side:
            paths = [str(place) for one in plugin or () if (place := tree.project / one).exists()]
            request = Request(list(chosen), paths, preset, assignments(set_, "--set"), device, suite)
            return Side(f"{kind} {tree.name}", request, tree.imports)

        def sides(chosen: Sequence[str]) -> tuple[Side, Side]:
            return side("base", trees[0], chosen), side("head", trees[1], chosen)

        with StepView(shown=not quiet) as steps:
            steps.at(f"counting: {', '.join(names)}")
            found = counted([side("base", trees[0], names, suite), side("head", trees[1], names, suite)])
            rows = _exact_rows(trees, [*names, *[SUITE] * suite], *found)
            absent = {name: str(error) for name, error in found[0].errors.items()}
            judged = device == "cpu" or exclusive
            rows += _timed_rows(timed_names, absent, sides, plan, judged=judged, say=steps.at)
            order = [*names, SUITE]
            rows = sorted(rows, key=lambda row: order.index(row.architecture))
    title = f"archbench regress {trees[0].name} {trees[1].name}"
    _conclude(accepted(rows, reasons), title, output, json=json, require_baseline=require_baseline)


def _exact_rows(trees: Sequence[Tree], names: Sequence[str], before: Counted, after: Counted) -> list[Row]:
    """Counts of these architectures, archbench among them where it is the one that is developed here."""
    from archbench.regression.verdict_table import exact_rows

    for name in names:
        if name in after.errors:
            raise after.errors[name]
    _own(trees[1], "head", after)
    _own(trees[0], "base", before)
    rows = []
    for name in names:
        reasons = {**before.reasons.get(name, {}), **after.reasons.get(name, {})}
        own = exact_rows(name, before.costs.get(name), after.costs[name], reasons)
        rows += _noted(own, str(before.errors[name]) if name in before.errors else None)
    return rows


def _timed_rows(
    timed_names: Sequence[str],
    absent: Mapping[str, str],
    sides: Callable[[Sequence[str]], tuple[Side, Side]],
    plan: Plan,
    *,
    judged: bool,
    say: Callable[[str], None],
) -> list[Row]:
    """``absent``: why the base has nothing of an architecture."""
    from archbench.regression.gate import SAMPLES, compare_alternated
    from archbench.regression.verdict_table import timed_row

    rows = []
    both = [name for name in timed_names if name not in absent]
    if both:
        rows += compare_alternated(*sides(both), plan, judged=judged, progress=say)
    for name in timed_names:
        if name in absent:
            rows += _noted([timed_row(name, metric, (), (), None) for metric in SAMPLES], absent[name])
    return rows


def _noted(rows: list[Row], note: str | None) -> list[Row]:
    from dataclasses import replace

    return rows if note is None else [replace(row, note=note) for row in rows]


def _own(tree: Tree, kind: str, counted: Counted) -> None:
    """Check that the revision's code was measured, not code that happens to be installed."""
    for name, file in counted.files.items():
        if not tree.has(file):
            cause = f"it was loaded from {file}, which is no part of {kind} {tree.name}"
            step = "Run this in the repository that the architecture is developed in, or name its file with --plugin"
            raise UsageError(f"architecture {name!r}", cause, step)
    if (tree.project / "archbench" / "__init__.py").is_file() and not tree.has(counted.archbench):
        cause = f"{kind} {tree.name} has one of its own, and {counted.archbench} was run"
        raise UsageError("archbench", cause, "Report it, with what PYTHONPATH is")


def _names(arch: Sequence[str] | None, head: Tree, plugins: Sequence[str] | None) -> list[str]:
    for plugin in plugins or ():
        if Path(plugin).is_absolute() or not (head.project / plugin).exists():
            cause = f"there is no such file in {head.name}, from {head.project.name} on"
            raise UsageError(f"--plugin {plugin}", cause, "Name it by its path from the folder of pyproject.toml on")
    if plugins and not arch:
        raise UsageError("--plugin", "it is given without --arch", "Say which architecture it is: --arch NAME")
    names = list(dict.fromkeys(arch or head.architectures))
    if not names:
        cause = f"the pyproject.toml of {head.name} declares no architecture that is there"
        step = "Declare it under [project.entry-points.archbench], or name its file: --plugin FILE --arch NAME"
        raise UsageError("--arch", cause, step)
    for name in names:
        if not plugins and name not in head.architectures:
            cause = f"the pyproject.toml of {head.name} declares no such architecture"
            raise UsageError(f"--arch {name}", cause, did_you_mean(name, head.architectures))
    return names


def _chosen(timed: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    for name in timed or ():
        if name not in names:
            raise UsageError(f"--timed {name}", "it is not among the architectures compared", did_you_mean(name, names))
    return list(timed or names)


def _reasons(accept: list[str] | None) -> dict[str, str]:
    from archbench.regression.gate import SAMPLES
    from archbench.regression.verdict_table import UNITS

    metrics = [*UNITS, *SAMPLES]
    reasons = assignments(accept, "--accept")
    for name, reason in reasons.items():
        metric = name.rpartition(":")[2]
        if metric not in metrics:
            raise UsageError(f"--accept {name}", "there is no such metric", did_you_mean(metric, metrics))
        if not reason:
            raise UsageError(f"--accept {name}", "it gives no reason", f"Write --accept '{name}=why'")
    return reasons


def _conclude(rows: Sequence[Row], title: str, output: Output | None, *, json: bool, require_baseline: bool) -> None:
    """Print the rows, write the Markdown and the job's summary, and judge.

    Raises:
        RegressionError: something regressed.
        MissingBaselineError: the base has nothing to compare with, where that is required.
    """
    from archbench.cli.output import print_json
    from archbench.files.outputs import write_output
    from archbench.presentation.terminal import paragraph, show
    from archbench.regression.verdict_table import as_json, conclusion, markdown, row_table, write_summary

    verdict = conclusion(rows)
    failed, new = (
        [f"{row.architecture}:{row.metric}" for row in rows if row.verdict == one] for one in ("FAIL", "NEW")
    )
    text = markdown(rows, title, verdict)
    write_summary(text)
    if output is not None:
        write_output(output, f"{text}\n".encode())
    if json:
        for row in rows:
            print_json(as_json(row))
        print_json({"title": title, "conclusion": verdict, "failed": failed, "new": new})
    else:
        show(row_table(rows))
        paragraph(f"\n{verdict}.")
    if failed:
        step = f"Undo what costs more, or say that it is meant: --accept '{failed[0].partition(':')[2]}=why'"
        raise RegressionError(title, f"{len(failed)} of {len(rows)} regressed ({', '.join(failed)})", step)
    if require_baseline and new:
        named = ", ".join(new[:5]) + " …" * (len(new) > 5)
        cause = f"the base has nothing to compare {len(new)} of {len(rows)} with ({named})"
        raise MissingBaselineError(title, cause, "Leave --require-baseline out for the change that brings them")
