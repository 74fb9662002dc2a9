"""``archbench scale``: how loss falls with parameters and training tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archbench.cli.fields import RECIPE, FieldOption, Given, changed, under, with_fields
from archbench.cli.options import Config, Names, NoTuning, all_named, chosen_device, configure
from archbench.cli.studies import SET_BY_STUDIES, Conduct, default_jobs

if TYPE_CHECKING:
    from archbench.study.run_cells import RunCell
    from archbench.study.scale_plan import ScalePlan

SIZES, BUDGETS = "25k,50k,100k,200k", "250k,500k,1M"
"""Twelve points, the fewest that are fitted; each architecture takes minutes on two CPU cores."""

SMALL_RECIPE = {"batch_size": 4}
"""Used if no profile is named: with the batches of quick (8), these budgets have too few updates."""


@with_fields(
    "archbench.study.scale_plan:ScalePlan",
    FieldOption("sizes", default=SIZES),
    FieldOption("budgets", default=BUDGETS),
    FieldOption("seeds"),
    *under(
        "run",
        changed(
            RECIPE,
            FieldOption("profile", shown="quick"),
            FieldOption("preset", shown="nano"),
            FieldOption("data.tokenizer", default="byte"),
        ),
    ),
    FieldOption("jobs", shown="one a thread"),
)
def scale(
    architecture: Names = None,
    *,
    given: Given,
    no_tuning: NoTuning = False,
    config: Config = None,
    conduct: Conduct,
) -> None:
    """How does loss fall with parameters and training tokens, and does the law of small models predict the largest?

    Every architecture is trained at every size on every budget, at a learning rate found for each size. With twelve
    points or more, the law L(N, D) = E + A/N^α + B/D^β is fitted, with intervals, and tested on the held-out largest
    size; with forty or more, exponents are compared. The same command resumes an interrupted study, and more sizes and
    budgets extend its folder. archbench report draws the curves.
    """
    if no_tuning:
        given["factors"] = (1.0,)
    plan = _plan(architecture, given, config, here=conduct.choice.is_local)
    from archbench.cli.outcomes import print_scale
    from archbench.study.scale import Ladder

    conduct.measure("scale", Ladder(plan), print_scale, describe_cell)


def describe_cell(cell: RunCell) -> str:
    """A run in a few words."""
    training = cell.config.training
    what = f"{training.tokens:,} tokens" if cell.stage == "point" else "learning rate"
    width = cell.config.overrides.get("d_model")
    model = cell.architecture if width is None else f"{cell.architecture}, width {width}"
    return f"{model}, {what} at {training.learning_rate:.3g}, seed {cell.config.seed}"


def _plan(architectures: list[str] | None, given: Given, config: list[str] | None, *, here: bool) -> ScalePlan:
    from archbench.study.scale_plan import ScalePlan

    run = given["run"]
    names = all_named(architectures, run.get("plugins", ()), "scale")
    on_gpu = chosen_device(run, here=here)
    run["training"] = {"tokens": max(given["budgets"]), **({} if "profile" in run else SMALL_RECIPE)}
    run = {"profile": "quick", "preset": "nano", "vocabulary": "tokenizer", **run, "architecture": names[0]}
    budgets = [f"training.{name}" for name in ("tokens", "steps", "flops", "seconds")]
    own = {**SET_BY_STUDIES, **dict.fromkeys(budgets, "Give --budgets, in tokens")}
    configure(run, config, owner="a ladder", own=own)
    given.setdefault("jobs", default_jobs(run, on_gpu=on_gpu))
    for name in ("sizes", "budgets"):
        given[name] = tuple(sorted(given[name]))
    return ScalePlan(architectures=tuple(names), **{**given, "run": run})
