"""``archbench run``: the main job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.fields import RECIPE, FieldOption, Given, check_fields, options_given, with_fields
from archbench.cli.options import (
    Config,
    Gpus,
    Json,
    LauncherSet,
    Names,
    Quiet,
    Trust,
    Unchecked,
    all_named,
    assignments,
    chosen_device,
    configure,
    launcher_choice,
    trust_run,
)
from archbench.cli.several_runs import measure_runs, saying_how_to_resume, show_run
from archbench.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from archbench.config import RunConfig
    from archbench.launch.choice import Choice


MOST_RUNS = 1000
"""Of one command: each takes a minute or more."""


@with_fields(
    "archbench.config:RunConfig",
    *RECIPE,
    FieldOption("attention"),
    FieldOption("float8"),
    FieldOption("compile"),
    FieldOption("training.tokens", shown="the profile's"),
    FieldOption("training.steps"),
    FieldOption("training.flops"),
    FieldOption("training.seconds"),
    FieldOption("training.batch_size"),
    FieldOption("training.accumulation"),
    FieldOption("training.learning_rate", "--lr"),
    FieldOption("training.optimizer"),
    FieldOption("training.schedule"),
    FieldOption("weights", help="published weights: a folder, .safetensors or .gguf file; skips training"),
    FieldOption("phases"),
    FieldOption("nproc"),
    FieldOption("parallel"),
    FieldOption("scaling_efficiency"),
    FieldOption("trackers", "--track", many=True),
    FieldOption("out"),
)
def run(
    context: typer.Context,
    architecture: Names = None,
    *,
    given: Given,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed; give several for several runs", show_default="0")
    ] = None,
    unchecked: Unchecked = False,
    config: Config = None,
    file: Annotated[
        str | None, typer.Option(help="A run file: fields of the configuration in TOML; options override it")
    ] = None,
    trust: Trust = False,
    launcher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What takes the runs to machines: local, ray, slurm",
            show_default="none: one after the other, in this process",
        ),
    ] = None,
    launcher_set: LauncherSet = None,
    gpus: Gpus = None,
    resume: Annotated[
        str | None, typer.Option(help="Continue an interrupted or failed run: its RUN_ID, or last", metavar="RUN_ID")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and score architectures, and measure their speed and memory; the results are a tidy table.

    Without options, a CPU trains the nano preset on the embedded corpus for a minute or two, and a GPU trains the
    published model. The architecture must pass the conformance checks before anything is measured. Several
    architectures or seeds are separate runs: the others continue if one fails. With --launcher they go to processes,
    jobs or machines, and their rows come to --out.
    """
    if trust and resume is None and file is None:
        step = "Leave it out; what --plugin names may run"
        raise UsageError("--trust", "neither --resume nor --file is given, which may name plugins", step)
    if resume is not None:
        others: dict[str, Any] = {"--seed": seed, "--unchecked": unchecked, "--file": file}
        others |= {"--launcher": launcher, "--launcher-set": launcher_set, "--gpus": gpus}
        _resume(architecture or [], resume, given, others, config, trust=trust, json=json_, quiet=quiet)
        return
    written = {} if file is None else read_run_file(file)
    if file is not None:
        plugins = None if "plugins" in given else written.get("plugins")
        _see_trust(plugins, None if architecture else written.get("architecture"), file, trust=trust)
    choice = _choice(launcher, launcher_set, gpus)
    on_gpu = chosen_device(given, written.get("device"), here=choice is None or choice.is_local)
    given.setdefault("profile", written.get("profile") or ("standard" if on_gpu else "quick"))
    if unchecked:
        given["checked"] = False
    configure(given, config)
    names = architecture or ([written["architecture"]] if "architecture" in written else [])
    names = all_named(names, given.get("plugins") or written.get("plugins", ()), "run", typed=bool(architecture))
    if (count := len(names) * len(seed or [0])) > MOST_RUNS:
        step = f"Give at most {MOST_RUNS:,} in one command"
        raise UsageError("archbench run", f"architectures times seeds are {count:,} runs", step)
    runs = [
        configured(written, {**fields, "architecture": name, "seed": one}, file)
        for name in names
        for fields in [with_weights(given, written, name)]
        for one in seed or [written.get("seed", 0)]
    ]
    if choice is not None and not choice.is_local and runs and runs[0].nproc == "auto":
        cause = f"how many devices the machines of {choice.name} have is not known here"
        raise UsageError("--nproc auto", cause, "Give a number")
    if runs and runs[0].trackers:
        from archbench.plugin.registry import TRACKER, find

        find(TRACKER, runs[0].trackers)  # a wrong name would fail every run
    measure_runs(runs, choice, quiet=quiet, json=json_, debug=bool(context.obj))


def _choice(launcher: str | None, settings: list[str] | None, gpus: str | None) -> Choice | None:
    """The launcher that is asked for, by its name or by a setting; None if none is.

    Raises:
        UsageError: as :func:`launcher_choice`, or torchrun has started this process.
    """
    if launcher is None and not settings and gpus is None:
        return None
    from archbench.runs.launched import is_launched

    if is_launched():
        step = "Leave it out, or start archbench without torchrun"
        raise UsageError("--launcher", "torchrun started this process as one of several that train together", step)
    return launcher_choice(launcher or "local", settings, gpus)


def _resume(
    architectures: list[str],
    run_id: str,
    given: Given,
    others: dict[str, Any],
    config: list[str] | None,
    *,
    trust: bool,
    json: bool,
    quiet: bool,
) -> None:
    """``--resume``: the run keeps its frozen configuration, except for the time limit of its phases.

    Args:
        others: options that are not fields, by name.

    Raises:
        UsageError: several architectures, or an option that would change the configuration.
    """
    from archbench.plugin.registry import full_name
    from archbench.runs.run import resume

    if not architectures:
        raise UsageError("--resume", "no architecture is named", f"Write archbench run NAME --resume {run_id}")
    if len(architectures) > 1:
        step = f"Name the architecture of the run: archbench run {architectures[0]} --resume {run_id}"
        raise UsageError("--resume", f"it resumes one run, and {len(architectures)} architectures are named", step)
    out = given.pop("out", "results")
    shared = {name: given.pop(name) for name in ("nproc", "parallel") if name in given}
    more = assignments(config, "--config")
    limit = more.pop("time_limit", None)
    others = {**others, "--config": more}
    for option in [*options_given(run, given), *(name for name, value in others.items() if value)]:
        step = "Leave it out, or start a new run without --resume"
        raise UsageError(option, "it cannot change in a resumed run", step)
    try:
        time_limit = None if limit is None else float(limit)
    except ValueError:
        raise ConfigError("--config time_limit", f"{limit!r} is not a number", "Give seconds") from None
    if trust:
        trust_run(out, run_id)
    with saying_how_to_resume():
        # Not typed: the command to resume is printed from the run's folder, and copied.
        frame = resume(full_name(architectures[0]), run_id, out, time_limit=time_limit, quiet=quiet, **shared)
    show_run(frame, out, json=json)


def with_weights(given: Given, written: dict[str, Any], architecture: str) -> Given:
    """The fields with what published weights imply, those named or those that the architecture's name leads to.

    That is no training, and the tokenizer that they were trained with.

    Raises:
        UsageError: no tokenizer is named, beside the weights or in them. Scores with any other mean nothing.
    """
    weights = given.get("weights") or written.get("weights")
    if weights is None and ":" in architecture:
        from archbench.plugin.registry import load

        weights = load(architecture).weights
    if weights is None:
        return given
    section = written.get("data")
    named = given.get("data", {}).get("tokenizer") or (section.get("tokenizer") if isinstance(section, dict) else None)
    phases = {} if "phases" in written else {"phases": ("quality", "prefill", "decode")}
    data = {**given.get("data", {}), "tokenizer": named or _tokenizer_beside(Path(weights))}
    return {**phases, **given, "weights": str(weights), "vocabulary": "preset", "data": data}


def _tokenizer_beside(weights: Path) -> str:
    from archbench.data.gguf import is_gguf

    if not weights.exists():
        raise UsageError(f"--weights {weights}", "there is no such file or folder", "Correct the path")
    if is_gguf(weights):
        return f"gguf:{weights}"
    file = (weights if weights.is_dir() else weights.parent) / "tokenizer.json"
    if not file.exists():
        step = "Name the tokenizer the weights were trained with: --tokenizer file:PATH, hf:NAME or byte"
        raise UsageError(f"--weights {weights}", "there is no tokenizer.json beside it", step)
    return f"file:{file}"


def _see_trust(plugins: object, architecture: object, file: str, *, trust: bool) -> None:
    """See that the plugin files that a run file names may run; with ``trust`` also the code of its architecture.

    Raises:
        UntrustedCodeError: the user has not named them.
        UsageError: one does not exist.
    """
    from archbench.plugin.registry import code_of
    from archbench.plugin.trust import require, vouch

    # Values of another type are refused as fields.
    files = plugins if isinstance(plugins, list) and all(isinstance(one, str) for one in plugins) else []
    if trust:
        vouch([*files, *(code_of(architecture) if isinstance(architecture, str) else [])])
    require(files, file)


def read_run_file(path: str) -> dict[str, Any]:
    """Fields of :class:`archbench.RunConfig`, by section, from a TOML file; those outside sections are validated.

    Raises:
        UsageError: the file cannot be read, or it is not TOML.
        ConfigError: a field outside the sections has a wrong value.
    """
    from archbench.config import RunConfig
    from archbench.files.loader import read_toml

    step = 'Write TOML, for instance: architecture = "gpt2", and below it [training] with steps = 2000'
    written = read_toml(path, error=UsageError, culprit=f"--file {path}", next_step=step)
    with _fields_of(path):
        check_fields(RunConfig, written)
    return written


def configured(written: dict[str, Any], given: dict[str, Any], file: str | None) -> RunConfig:
    """The configuration that a run file, if there is one, and options make.

    Raises:
        UsageError: a field is wrong; it names the file.
    """
    from archbench.config import BUDGETS, RunConfig
    from archbench.profiles import filled

    with _fields_of(file):
        return RunConfig(**filled(written, given, BUDGETS))


@contextmanager
def _fields_of(file: str | None) -> Iterator[None]:
    """Within this context an error about a field names the run file too."""
    try:
        yield
    except UsageError as error:
        if file is not None:
            error.culprit = f"--file {file}, {error.culprit}"
        raise
