"""``archbench scale``: how loss falls with parameters and training tokens."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.compare import Config, Corpus, Device, Dtype, Json, Profile, Quiet, Set, Threads
from archbench.cli.options import Plugins, architectures, assign, assignments
from archbench.cli.output import print_json
from archbench.cli.units import whole_numbers
from archbench.errors import ConfigError

if TYPE_CHECKING:
    from archbench.compare.cells import Cell
    from archbench.scaling.plan import ScalePlan

SIZES, BUDGETS = "25k,50k,100k,200k", "250k,500k,1M"
"""Twelve runs of each architecture that take two CPU cores minutes: the fewest that are fitted."""

LADDER = {"batch_size": 4}
"""Of the recipe, where no profile is named: with quick's batches of 8 these budgets are too few updates."""


def scale(
    architecture: Annotated[
        list[str] | None, typer.Argument(help="Names of the architectures (see: archbench list), or all")
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Non-embedding parameters that all are given, within 2 %: 25k,50k,1.5M")
    ] = SIZES,
    budgets: Annotated[str, typer.Option(help="Training tokens, each on every size: 250k,1M")] = BUDGETS,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each size and budget; their mean is one point")] = 1,
    no_tuning: Annotated[
        bool, typer.Option("--no-tuning", help="Train all at the recipe's learning rate, which favours some sizes")
    ] = False,
    profile: Profile = None,
    preset: Annotated[
        str | None, typer.Option(help="Where the search for sizes begins: nano, small, paper", show_default="nano")
    ] = None,
    set_: Set = None,
    device: Device = "auto",
    dtype: Dtype = None,
    threads: Threads = None,
    corpus: Corpus = None,
    tokenizer: Annotated[
        str, typer.Option(help="byte, bpe:N, file:tokenizer.json or hf:NAME; byte: embedded texts have most tokens")
    ] = "byte",
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training runs at a time, of equal shares of the threads", show_default="one a thread"
        ),
    ] = None,
    config: Config = None,
    plugin: Plugins = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the ladder", show_default="results/scale-, and a digest of the plan")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """How does loss fall with parameters and training tokens, and would the law of small models have told the largest?

    Every architecture is trained at every size on every budget, each size at a learning rate found for it. From twelve
    points on the law L(N, D) = E + A/N^α + B/D^β is fitted, with intervals, and tested on the largest size, held out
    for that; from forty on, exponents are compared. The same command goes on where it was interrupted; more sizes and
    budgets go on in the same folder. archbench report draws the curves.
    """
    plan = _plan(locals())
    folder = Path(out) if out is not None else Path("results") / f"scale-{plan.digest()}"
    from archbench.cli.compare_progress import CompareProgress
    from archbench.scaling.scale import scale as run

    with CompareProgress(folder, quiet=quiet, describe=describe_cell) as follower:
        outcome = run(plan, folder, follower, shlex.join(["archbench", *sys.argv[1:]]))
    if json_:
        print_json(outcome)
        return
    from archbench.cli.scale_table import print_scale

    print_scale(outcome, folder)


def describe_cell(cell: Cell) -> str:
    """A run in a few words."""
    training = cell.config.training
    what = f"{training.tokens:,} tokens" if cell.stage == "point" else "learning rate"
    width = cell.config.overrides.get("d_model")
    model = cell.architecture if width is None else f"{cell.architecture}, width {width}"
    return f"{model}, {what} at {training.learning_rate:.3g}, seed {cell.config.seed}"


def _plan(given: dict[str, Any]) -> ScalePlan:
    """The plan that the options ask for.

    Raises:
        UsageError, ConfigError: naming the option.
    """
    from archbench.config import RunConfig
    from archbench.measure.machine import usable_cpus
    from archbench.phases.device import default_device, resolve_device
    from archbench.scaling.plan import ScalePlan

    plugins = tuple(given["plugin"] or ())
    names = architectures(given["architecture"], plugins, "scale")
    device = default_device() if given["device"] == "auto" else given["device"]
    on_gpu = resolve_device(device).type == "cuda"
    budgets = whole_numbers(given["budgets"], "--budgets")
    data = {"tokenizer": given["tokenizer"]}
    values: dict[str, Any] = {
        "architecture": names[0],
        "profile": given["profile"] or "quick",
        "preset": given["preset"] or "nano",
        "vocabulary": "tokenizer",
        "overrides": assignments(given["set_"], "--set"),
        "device": device,
        "dtype": given["dtype"],
        "threads": given["threads"],
        "plugins": plugins,
        "data": data if given["corpus"] is None else {**data, "corpus": given["corpus"]},
        "training": {"tokens": max(budgets), **({} if given["profile"] else LADDER)},
    }
    for path, value in assignments(given["config"], "--config").items():
        _assign(values, path, value)
    factors: dict[str, Any] = {"factors": (1.0,)} if given["no_tuning"] else {}
    return ScalePlan(
        architectures=tuple(names),
        sizes=tuple(sorted(whole_numbers(given["sizes"], "--sizes"))),
        budgets=tuple(sorted(budgets)),
        seeds=given["seeds"],
        jobs=given["jobs"] or (1 if on_gpu else given["threads"] or len(usable_cpus())),
        run=RunConfig(**{name: value for name, value in values.items() if value is not None}),
        **factors,
    )


def _assign(values: dict[str, Any], path: str, value: str) -> None:
    section, _, field = path.partition(".")
    if section == "training" and field in ("tokens", "steps", "flops", "seconds"):
        raise ConfigError(f"--config {path}", "a ladder sets it itself", "Give --budgets, in tokens")
    if section in ("architecture", "seed", "phases", "out", "weights"):
        step = "Leave it out: archbench run measures single runs"
        raise ConfigError(f"--config {path}", "a ladder sets it itself", step)
    assign(values, path, value)
