"""``archbench run``: the main job."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.fields import RECIPE, FieldOption, Given, check_fields, options_given, with_fields
from archbench.cli.options import (
    Config,
    Json,
    Names,
    Quiet,
    Trust,
    Unchecked,
    all_named,
    assignments,
    chosen_device,
    configure,
    trust_run,
)
from archbench.cli.output import say
from archbench.errors import ArchbenchError, ConfigError, StorageError, UsageError
from archbench.presentation.terminal import echo

if TYPE_CHECKING:
    import pandas as pd

    from archbench.config import RunConfig


MOST_RUNS = 1000
"""Of one command: each takes a minute or more."""


@with_fields(
    "archbench.config:RunConfig",
    *RECIPE,
    FieldOption("attention"),
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
    resume: Annotated[
        str | None, typer.Option(help="Continue an interrupted or failed run: its RUN_ID, or last", metavar="RUN_ID")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and score architectures, and measure their speed and memory; the results are a tidy table.

    Without options, a CPU trains the nano preset on the embedded corpus for a minute or two, and a GPU trains the
    published model. The architecture must pass the conformance checks before anything is measured. Several
    architectures or seeds are separate runs: the others continue if one fails.
    """
    if trust and resume is None and file is None:
        step = "Leave it out; what --plugin names may run"
        raise UsageError("--trust", "neither --resume nor --file is given, which may name plugins", step)
    if resume is not None:
        others = {"--seed": seed, "--unchecked": unchecked, "--file": file}
        _resume(architecture or [], resume, given, others, config, trust=trust, json=json_, quiet=quiet)
        return
    written = {} if file is None else read_run_file(file)
    if file is not None:
        plugins = None if "plugins" in given else written.get("plugins")
        _see_trust(plugins, None if architecture else written.get("architecture"), file, trust=trust)
    on_gpu = chosen_device(given, written.get("device"))
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
    if runs and runs[0].trackers:
        from archbench.plugin.registry import TRACKER, find

        find(TRACKER, runs[0].trackers)  # a wrong name would fail every run
    if len(runs) == 1:
        _show(_measured(runs[0], quiet=quiet), runs[0].out, json=json_)
    else:
        _measure_each(runs, quiet=quiet, json=json_, debug=bool(context.obj))


def _measure_each(runs: list[RunConfig], *, quiet: bool, json: bool, debug: bool) -> None:
    """Measure one run after the other and print a table of all. The first failure decides the exit code.

    Raises:
        StorageError: results cannot be written, so later runs would be lost too.
        typer.Exit: a run failed.
    """
    failed: list[tuple[str, int]] = []
    finished: list[pd.DataFrame] = []
    for config in runs:
        try:
            frame = _measured(config, quiet=quiet)
        except StorageError:
            raise
        except ArchbenchError as error:
            if debug:
                echo("".join(traceback.format_exception(error)).rstrip(), error=True)
            say("Error", str(error))
            several_seeds = len({one.seed for one in runs}) > 1
            failed.append((config.architecture + (f" seed {config.seed}" if several_seeds else ""), error.exit_code))
            continue
        _show(frame, config.out, json=json)
        finished.append(frame)
    if not json:
        from archbench.cli.summary import print_side_by_side

        print_side_by_side(finished)
    if failed:
        echo(f"Failed: {', '.join(f'{name} (exit code {code})' for name, code in failed)}", error=True)
        raise typer.Exit(failed[0][1])


def _measured(config: RunConfig, *, quiet: bool) -> pd.DataFrame:
    from archbench.runs.run import run as run_one

    with saying_how_to_resume():
        return run_one(config, quiet=quiet)


def _show(frame: pd.DataFrame, out: str, *, json: bool) -> None:
    from archbench.cli.summary import print_rows, print_summary

    (print_rows if json else print_summary)(frame, out)


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
    _show(frame, out, json=json)


@contextmanager
def saying_how_to_resume() -> Iterator[None]:
    """Print the note of an interrupted run, because Typer swallows it."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        for note in getattr(interruption, "__notes__", ()):  # none if no run had begun
            echo(note, error=True)
        raise


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
