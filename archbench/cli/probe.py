"""``archbench probe``: which diagnostic tasks an architecture learns on a small budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.fields import DEVICE, PLUGIN, SET, FieldOption, Given, with_fields
from archbench.cli.options import Names, Unchecked, all_named, chosen_device
from archbench.cli.output import print_json
from archbench.cli.studies import Conduct, default_jobs

if TYPE_CHECKING:
    from archbench.study.probe_plan import ProbePlan
    from archbench.study.trials import Trial


@with_fields(
    "archbench.study.probe_plan:ProbePlan",
    FieldOption("tasks", "--task", many=True, shown="all tasks"),
    FieldOption("seeds"),
    FieldOption("updates"),
    FieldOption("learning_rates", "--learning-rate", many=True),
    FieldOption("examples"),
    FieldOption("preset"),
    SET,
    DEVICE,
    FieldOption("dtype"),
    FieldOption("jobs", shown="one a core"),
    PLUGIN,
)
def probe(
    architecture: Names = None,
    *,
    parameters: Annotated[
        int, typer.Option(help="Non-embedding active parameters of every model, within 2 %; 0 for presets as they are")
    ] = 100_000,
    given: Given,
    unchecked: Unchecked = False,
    list_: Annotated[bool, typer.Option("--list", help="List the tasks and exit")] = False,
    conduct: Conduct,
) -> None:
    """Which generated tasks does an architecture learn? Recall, copying, state tracking, memorisation, and your own.

    All are matched in size and get the same examples, learning rates and updates. "Not learned" holds for this budget:
    a probe cannot show what is impossible. The same command resumes an interrupted probe; archbench report draws its
    heat map.
    """
    from archbench.plugin.discovery import plugin_paths

    given["plugins"] = plugin_paths(given.get("plugins", ()))
    if list_:
        _print_tasks(given["plugins"], conduct.json_)
        return
    given = {**given, "parameters": parameters or None, "checked": not unchecked}
    plan = _plan(architecture, given, here=conduct.choice.is_local)
    from archbench.cli.outcomes import print_probe
    from archbench.study.probe import Probe

    conduct.measure("probe", Probe(plan), print_probe, describe_trial)


def describe_trial(trial: Trial) -> str:
    """A trial in a few words."""
    return f"{trial.architecture}, {trial.task} at {trial.learning_rate:g}, seed {trial.seed}"


def _plan(architectures: list[str] | None, given: Given, *, here: bool) -> ProbePlan:
    from archbench.plugin.registry import load_tasks
    from archbench.study.probe_plan import ProbePlan

    names = all_named(architectures, given["plugins"], "probe")
    given.setdefault("jobs", default_jobs({}, on_gpu=chosen_device(given, here=here)))
    tasks = load_tasks(given.pop("tasks", ()), given["plugins"])
    return ProbePlan(architectures=tuple(names), tasks=tuple(task.name for task in tasks), **given)


def _print_tasks(plugins: tuple[str, ...], as_json: bool) -> None:
    from archbench.plugin.registry import available_tasks
    from archbench.presentation.tables import Column, table
    from archbench.presentation.terminal import show

    tasks = available_tasks(plugins).values()
    if as_json:
        for task in tasks:
            line: dict[str, Any] = {"name": task.name, "summary": task.summary, "source": task.source}
            print_json({**line, "conditions": dict(task.chance)})
        return
    columns = (
        Column("task", "name"), Column("what is asked", "text"), Column("tested on (chance)", "text", priority=1),
        Column("source", "name", priority=2),
    )  # fmt: skip
    rows = (
        (task.name, task.summary, ", ".join(f"{name} ({task.chance[name]:.2g})" for name in task.tests), task.source)
        for task in tasks
    )
    show(table("tasks", "", columns, rows))
