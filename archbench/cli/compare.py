"""``archbench compare`` and ``archbench tune``: which architecture is better, and at which learning rate?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from archbench.cli.fields import RECIPE, FieldOption, Given, under, with_fields
from archbench.cli.options import Config, Names, NoTuning, all_named, chosen_device, configure
from archbench.cli.studies import SET_BY_STUDIES, Conduct, default_jobs
from archbench.errors import UsageError

if TYPE_CHECKING:
    from archbench.study.compare_plan import ComparePlan
    from archbench.study.task_accuracy import TaskPlan

PLAN = "archbench.study.compare_plan:ComparePlan"
OPTIONS = (
    FieldOption("baseline", shown="the first named"),
    FieldOption("match"),
    *under("run", (*RECIPE, FieldOption("training.tokens", shown="the profile's"))),
    FieldOption("jobs", shown="one a thread"),
)


@with_fields(
    PLAN,
    FieldOption("seeds"),
    FieldOption("sweeps"),
    FieldOption("cost_multiples", "--contexts"),
    *OPTIONS,
)
def compare(
    architecture: Names = None,
    *,
    given: Given,
    margin: Annotated[float, typer.Option(help="Smaller differences are ignored; per cent of the baseline's")] = 0.25,
    no_tuning: NoTuning = False,
    eval_: Annotated[
        str | None,
        typer.Option("--eval", metavar="TASKS", help="Also ask every fresh seed these tasks, as archbench eval does"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --eval: most questions of each task")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="With --eval: examples before each question")] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="With --eval: folder of the data sets")] = None,
    config: Config = None,
    conduct: Conduct,
) -> None:
    """Which architecture predicts text better, by how much, at what cost, and is that more than noise?

    All are matched in size and trained on equal budgets, each at a learning rate found by the same search. Fresh seeds
    decide; speed and memory are measured in turns. The same command resumes an interrupted comparison. archbench report
    makes a page of its folder, which holds comparison.json and runs.parquet.
    """
    given["margin"] = margin / 100
    if no_tuning:
        given["factors"] = (1.0,)
    if eval_ is not None:
        given["evaluation"] = _evaluation(eval_, limit, shots, data)
    elif (limit, shots, data) != (None, None, None):
        raise UsageError("--limit, --shots and --data", "no task is named", "Name some with --eval")
    plan = _plan(architecture, given, config, "compare", here=conduct.choice.is_local)
    if len(plan.architectures) < 2:
        name = plan.architectures[0]
        step = f"Name another: archbench compare {name} llama; archbench list shows all"
        raise UsageError(f"archbench compare {name}", "a comparison needs two architectures or more", step)
    from archbench.cli.outcomes import print_comparison
    from archbench.study.compare import Comparison

    conduct.measure("compare", Comparison(plan), print_comparison)


@with_fields(PLAN, *OPTIONS)
def tune(
    architecture: Names = None,
    *,
    given: Given,
    config: Config = None,
    conduct: Conduct,
) -> None:
    """At which learning rate does each architecture train best? All get the same trials, on a quarter of the budget.

    This is the first part of archbench compare, which reuses the trials if it gets the same options.
    """
    plan = _plan(architecture, given, config, "tune", here=conduct.choice.is_local)
    from archbench.cli.outcomes import print_tuning
    from archbench.study.compare import RateSearch

    conduct.measure("compare", RateSearch(plan), print_tuning)


def _evaluation(names: str, limit: int | None, shots: int | None, data: str | None) -> TaskPlan:
    """The tasks, which are there with their data: that is seen to before anything is trained."""
    from archbench.cli.eval import require_harness, task_names
    from archbench.study.task_accuracy import TaskPlan

    data = None if data is None else os.path.realpath(data)
    plan = TaskPlan(tasks=task_names(names), shots=shots, limit=limit, data=data)
    require_harness("archbench compare --eval")
    from archbench.evaluation.harness_tasks import load_tasks

    load_tasks(plan.tasks, shots, data)
    return plan


def _plan(
    architectures: list[str] | None, given: Given, config: list[str] | None, command: str, *, here: bool
) -> ComparePlan:
    from archbench.study.compare_plan import ComparePlan

    run = given.setdefault("run", {})
    names = all_named(architectures, run.get("plugins", ()), command)
    run["architecture"] = given.setdefault("baseline", names[0])
    on_gpu = chosen_device(run, here=here)
    run.setdefault("profile", "standard" if on_gpu else "quick")
    configure(run, config, owner="a comparison", own=SET_BY_STUDIES)
    given.setdefault("jobs", 1 if given.get("match") == "time" else default_jobs(run, on_gpu=on_gpu))
    return ComparePlan(architectures=tuple(names), **given)
