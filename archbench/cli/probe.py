"""``archbench probe``: which diagnostic tasks an architecture learns on a small budget."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.options import Plugins, architectures, assignments
from archbench.cli.output import print_json

if TYPE_CHECKING:
    from archbench.probing.plan import ProbePlan
    from archbench.probing.trials import Trial


def probe(
    architecture: Annotated[
        list[str] | None, typer.Argument(help="Names of the architectures (see: archbench list), or all")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task (repeatable)", show_default="all tasks")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of initial weights and training examples")] = 3,
    parameters: Annotated[
        int, typer.Option(help="Non-embedding parameters that all are given, within 2 %; 0: presets as they are")
    ] = 100_000,
    updates: Annotated[
        int | None, typer.Option(min=1, help="Optimizer updates of a training, at most", show_default="the task's")
    ] = None,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option(help="Try this peak learning rate (repeatable)", show_default="the task's three"),
    ] = None,
    examples: Annotated[int, typer.Option(min=10, help="Test examples of each condition")] = 1000,
    preset: Annotated[str, typer.Option(help="Where the search for the size begins: nano, small, paper")] = "nano",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A field of every model's configuration: n_layer=2 (repeatable)")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time, of one CPU thread each", show_default="one a core")
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Probe architectures that fail the conformance checks, too")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the tasks and end")] = False,
    plugin: Plugins = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the probe", show_default="results/probe-, and a digest of the plan")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON instead of a table")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error")] = False,
) -> None:
    """Which generated tasks does an architecture learn? Recall, copying, state tracking, memorisation, and your own.

    All are made equally large and get the same examples, learning rates and updates. A task that is not learnt was not
    learnt under this budget: a probe cannot show what is impossible. The same command goes on where it was
    interrupted; archbench report draws the heat map of its folder.
    """
    if list_:
        _print_tasks(plugin, json_)
        return
    plan = _plan(locals())
    folder = Path(out) if out is not None else Path("results") / f"probe-{plan.digest()}"
    from archbench.cli.compare_progress import CompareProgress
    from archbench.probing.probe import probe as run

    command = shlex.join(["archbench", *sys.argv[1:]])
    with CompareProgress(folder, quiet=quiet, describe=describe_trial) as follower:
        outcome = run(plan, folder, follower, command)
    if json_:
        print_json(outcome)
        return
    from archbench.cli.probe_table import print_probe

    print_probe(outcome, folder)


def describe_trial(trial: Trial) -> str:
    """A trial in a few words."""
    return f"{trial.architecture}, {trial.task} at {trial.learning_rate:g}, seed {trial.seed}"


def _plan(given: dict[str, Any]) -> ProbePlan:
    from archbench.measure.machine import usable_cpus
    from archbench.phases.device import default_device, resolve_device
    from archbench.plugin.discovery import plugin_paths
    from archbench.plugin.registry import load_tasks
    from archbench.probing.plan import ProbePlan

    plugins = plugin_paths(given["plugin"] or ())
    names = architectures(given["architecture"], plugins, "probe")
    device = default_device() if given["device"] == "auto" else given["device"]
    on_gpu = resolve_device(device).type == "cuda"
    values: dict[str, Any] = {} if given["learning_rate"] is None else {"learning_rates": given["learning_rate"]}
    return ProbePlan(
        architectures=tuple(names),
        tasks=tuple(task.name for task in load_tasks(given["task"] or (), plugins)),
        seeds=given["seeds"],
        parameters=given["parameters"] or None,
        updates=given["updates"],
        examples=given["examples"],
        preset=given["preset"],
        overrides=assignments(given["set_"], "--set"),
        device=device,
        dtype=given["dtype"],
        threads=1,
        jobs=given["jobs"] or (1 if on_gpu else len(usable_cpus())),
        checked=not given["unchecked"],
        plugins=plugins,
        **values,
    )


def _print_tasks(plugin: list[str] | None, as_json: bool) -> None:
    from archbench.cli.output import console, table
    from archbench.plugin.registry import available_tasks

    tasks = available_tasks(plugin or ()).values()
    if as_json:
        for task in tasks:
            print_json(
                {"name": task.name, "summary": task.summary, "source": task.source, "conditions": dict(task.chance)}
            )
        return
    made = table("task", "what is asked", "tested on (chance)", "source")
    made.columns[0].no_wrap = True
    for task in tasks:
        conditions = ", ".join(f"{name} ({task.chance[name]:.2g})" for name in task.tests)
        made.add_row(task.name, task.summary, conditions, task.source)
    console().print(made)
