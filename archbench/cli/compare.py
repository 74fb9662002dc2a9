"""``archbench compare`` and ``archbench tune``: who is better, by how much, and is that more than noise?"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.options import Plugins, architectures, assign, assignments
from archbench.cli.output import print_json
from archbench.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from archbench.compare.plan import ComparePlan

Names = Annotated[
    list[str], typer.Argument(help="Names of the architectures (see: archbench list), or all", show_default=False)
]
Baseline = Annotated[str | None, typer.Option(help="What the others are compared with", show_default="the first named")]
Match = Annotated[str, typer.Option(help="What is held equal: flops, params, tokens, time or state")]
Profile = Annotated[
    str | None, typer.Option(help="How much work: smoke, quick, standard or paper", show_default="quick on a CPU")
]
Preset = Annotated[
    str | None, typer.Option(help="The baseline's size: nano, small, paper", show_default="the profile's")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A field of every model's configuration: n_layer=6 (repeatable)")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16", show_default="the profile's")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads, of all runs together", show_default="one a core")
]
Corpus = Annotated[
    str | None,
    typer.Option(help="shakespeare, python, a file, a folder or hf:NAME[:CONFIG]", show_default="the profile's"),
]
Tokenizer = Annotated[
    str | None, typer.Option(help="byte, bpe:N, file:tokenizer.json or hf:NAME", show_default="the profile's")
]
Tokens = Annotated[
    int | None, typer.Option(min=1, help="Budget of one run: the baseline's tokens", show_default="the profile's")
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Training runs at a time, of equal shares of the threads", show_default="one a thread"),
]
Config = Annotated[
    list[str] | None,
    typer.Option("--config", help="Any field of the runs' configuration: training.schedule=wsd (repeatable)"),
]
Out = Annotated[
    str | None, typer.Option(help="Folder of the comparison", show_default="results/compare-, and a digest of the plan")
]
Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON instead of tables")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error")]


def compare(
    architecture: Names,
    baseline: Baseline = None,
    match: Match = "flops",
    seeds: Annotated[int, typer.Option(min=2, help="Fresh seeds that confirm; 2 give no verdict")] = 5,
    margin: Annotated[float, typer.Option(help="Least difference that matters, per cent of the baseline's")] = 0.25,
    no_tuning: Annotated[
        bool, typer.Option("--no-tuning", help="Train all at the recipe's learning rate, which favours one of them")
    ] = False,
    sweeps: Annotated[int, typer.Option(min=0, help="Times that speed and memory are measured in turns; 0: not")] = 4,
    contexts: Annotated[
        str, typer.Option(help="Cost curves at these multiples of the trained context, commas between; none: not")
    ] = "1,4,16",
    profile: Profile = None,
    preset: Preset = None,
    set_: Set = None,
    device: Device = "auto",
    dtype: Dtype = None,
    threads: Threads = None,
    corpus: Corpus = None,
    tokenizer: Tokenizer = None,
    tokens: Tokens = None,
    jobs: Jobs = None,
    config: Config = None,
    plugin: Plugins = None,
    out: Out = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Which architecture predicts text better, by how much, at what cost, and is that more than noise?

    All are made equally large and trained on equal budgets; each gets a learning rate by the same search; fresh seeds
    decide; speed and memory are measured in turns. The same command goes on where it was interrupted. What it finds is
    in comparison.json and runs.parquet of its folder: archbench report makes a page of them.
    """
    values = {**locals(), "factors": (1.0,) if no_tuning else None, "cost_multiples": _multiples(contexts)}
    plan = _plan({**values, "seeds": seeds, "margin": margin / 100, "sweeps": sweeps})
    folder = _folder(plan, out)
    from archbench.compare import comparison

    with _follower(folder, quiet) as follower:
        outcome = comparison.compare(plan, folder, follower, _command())
    if json_:
        print_json(outcome)
        return
    from archbench.cli.verdicts import print_comparison

    print_comparison(outcome, folder)


def tune(
    architecture: Names,
    baseline: Baseline = None,
    match: Match = "flops",
    profile: Profile = None,
    preset: Preset = None,
    set_: Set = None,
    device: Device = "auto",
    dtype: Dtype = None,
    threads: Threads = None,
    corpus: Corpus = None,
    tokenizer: Tokenizer = None,
    tokens: Tokens = None,
    jobs: Jobs = None,
    config: Config = None,
    plugin: Plugins = None,
    out: Out = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """At which learning rate does each architecture train best? The same trials for all, on a quarter of the budget.

    It is the first part of archbench compare with the same options, which takes over what is measured here.
    """
    plan = _plan({**locals(), "factors": None})
    folder = _folder(plan, out)
    from archbench.compare import comparison

    with _follower(folder, quiet) as follower:
        outcome = comparison.tune(plan, folder, follower, _command())
    if json_:
        print_json(outcome)
        return
    from archbench.cli.verdicts import print_tuning

    print_tuning(outcome, folder)


def _plan(given: dict[str, Any]) -> ComparePlan:
    """The plan that the options ask for.

    Raises:
        UsageError, ConfigError: naming the option.
    """
    from archbench.compare.plan import ComparePlan
    from archbench.config import RunConfig
    from archbench.measure.machine import usable_cpus
    from archbench.phases.device import default_device, resolve_device

    device = default_device() if given["device"] == "auto" else given["device"]
    on_gpu = resolve_device(device).type == "cuda"
    plugins = tuple(given["plugin"] or ())
    names = architectures(given["architecture"], plugins, "compare")
    if len(names) < 2 and given.get("seeds"):
        step = f"Name another: archbench compare {names[0]} llama; archbench list shows what there is"
        raise UsageError(f"archbench compare {names[0]}", "a comparison is of two architectures or more", step)
    baseline = given["baseline"] or names[0]
    training = {} if given["tokens"] is None else {"tokens": given["tokens"]}
    values: dict[str, Any] = {
        "architecture": baseline,
        "profile": given["profile"] or ("standard" if on_gpu else "quick"),
        "preset": given["preset"],
        "overrides": assignments(given["set_"], "--set"),
        "device": device,
        "dtype": given["dtype"],
        "threads": given["threads"],
        "plugins": plugins,
        "data": {name: given[name] for name in ("corpus", "tokenizer") if given[name] is not None},
        "training": training,
    }
    for path, value in assignments(given["config"], "--config").items():
        _assign(values, path, value)
    run = RunConfig(**{name: value for name, value in values.items() if value is not None})
    jobs = given["jobs"]
    if jobs is None:
        jobs = 1 if on_gpu or given["match"] == "time" else given["threads"] or len(usable_cpus())
    own = ("seeds", "margin", "sweeps", "factors", "cost_multiples")
    options = {name: given[name] for name in own if given.get(name) is not None}
    return ComparePlan(
        architectures=tuple(names), baseline=baseline, match=given["match"], jobs=jobs, run=run, **options
    )


def _assign(values: dict[str, Any], path: str, value: str) -> None:
    if path.split(".")[0] in ("architecture", "seed", "phases", "out", "weights"):
        step = "Leave it out: archbench run measures single runs"
        raise ConfigError(f"--config {path}", "a comparison sets it itself", step)
    assign(values, path, value)


def _multiples(text: str) -> tuple[int, ...]:
    """``1,4,16``.

    Raises:
        UsageError: it is no list of whole numbers.
    """
    if text.strip() in ("", "none"):
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        step = "Write for instance --contexts 1,4,16, or --contexts none"
        raise UsageError(f"--contexts {text}", "it is no list of whole numbers", step) from None


def _folder(plan: ComparePlan, out: str | None) -> Path:
    return Path(out) if out is not None else Path("results") / f"compare-{plan.digest()}"


def _command() -> str:
    return shlex.join(["archbench", *sys.argv[1:]])


def _follower(folder: Path, quiet: bool) -> Any:
    from archbench.cli.compare_progress import CompareProgress

    return CompareProgress(folder, quiet=quiet)
