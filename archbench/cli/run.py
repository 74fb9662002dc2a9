"""``archbench run``: the main job."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.cli.options import assign, assignments
from archbench.cli.output import say
from archbench.cli.run_file import read_run_file
from archbench.errors import ArchbenchError, ConfigError, StorageError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from archbench.config import RunConfig

MORE_CONFIG = "Any field of the run's configuration, as in --config training.schedule=wsd (repeatable)"


def run(
    context: typer.Context,
    architecture: Annotated[
        list[str] | None,
        typer.Argument(help="Names of the architectures (see: archbench list), or all", show_default=False),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="How much work: smoke, quick, standard or paper", show_default="quick on a CPU, standard on a GPU"
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="The model's size: nano, small, paper", show_default="the profile's or weights' own"),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the model's configuration: n_layer=6 (repeatable)")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16", show_default="the profile's")
    ] = None,
    attention: Annotated[str, typer.Option(help="Attention backend: auto, triton, sdpa, flex or reference")] = "auto",
    compile_: Annotated[bool, typer.Option("--compile", help="Train with torch.compile")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads", show_default="one a core")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed; give several for several runs", show_default="0")
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="shakespeare, python, a file, a folder or hf:NAME[:CONFIG]", show_default="the profile's"),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="byte, bpe:N, file:tokenizer.json, gguf:FILE, hf:NAME", show_default="the profile's"),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget: training tokens", show_default="the profile's")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget: optimizer updates")] = None,
    flops: Annotated[float | None, typer.Option(help="Budget: model FLOPs, forward and backward")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget: seconds of training steps")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences per micro-batch", show_default="the profile's")
    ] = None,
    accumulation: Annotated[int | None, typer.Option(help="Micro-batches per update", show_default="1")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate", show_default="the profile's")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, adam, sgd or muon", show_default="adamw")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine, wsd or constant", show_default="cosine")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Published weights: a folder, .safetensors or .gguf file; skips training")
    ] = None,
    phases: Annotated[
        str | None, typer.Option(help="Comma-separated phases", show_default="train,quality,prefill,decode")
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Measure without the conformance checks; the rows will say so")
    ] = False,
    config: Annotated[list[str] | None, typer.Option("--config", help=MORE_CONFIG)] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="A run file: fields of the configuration in TOML; options override it")
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option(help="A plugin file or folder to load (repeatable)")] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="An experiment tracker: tensorboard, wandb, mlflow (repeatable)")
    ] = None,
    out: Annotated[str, typer.Option(help="Folder for the results")] = "results",
    resume: Annotated[
        str | None, typer.Option(help="Continue an interrupted or failed run: its RUN_ID, or last", metavar="RUN_ID")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the rows as JSON lines instead of a summary")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error")] = False,
) -> None:
    """Train, score, time and weigh architectures; the results are a tidy table.

    Without options: the nano preset on the embedded corpus for a minute or two on a CPU, the true published model on
    a GPU. Before anything is measured the architecture has to pass the conformance checks. Of several architectures
    or seeds each run is its own: one that fails costs the others nothing.
    """
    if resume is not None:
        _resume(architecture or [], resume, locals())
        return
    written = {} if file is None else read_run_file(file)
    weights = weights or written.get("weights")
    section = written.get("data")
    tokenizer = tokenizer or (section.get("tokenizer") if isinstance(section, dict) else None)

    from archbench.phases.device import default_device, resolve_device

    device = written.get("device", default_device()) if device == "auto" else device
    on_gpu = resolve_device(device).type == "cuda"
    values: dict[str, Any] = {
        "profile": profile or written.get("profile") or ("standard" if on_gpu else "quick"),
        "preset": preset,
        "overrides": assignments(set_, "--set"),
        "device": device,
        "dtype": dtype,
        "attention": None if attention == "auto" else attention,
        "compile": compile_ or None,
        "threads": threads,
        "checked": False if unchecked else None,
        "plugins": tuple(plugin) if plugin else None,
        "trackers": tuple(track) if track else None,
        "out": out if out != "results" else written.get("out", out),
        "weights": weights,
        "phases": None if phases is None and "phases" in written else _phases(phases, weights),
        "vocabulary": None if weights is None else "preset",
        "data": _given(corpus=corpus, tokenizer=tokenizer or _tokenizer_beside(weights)),
        "training": _given(
            tokens=tokens,
            steps=steps,
            flops=flops,
            seconds=seconds,
            batch_size=batch_size,
            accumulation=accumulation,
            learning_rate=learning_rate,
            optimizer=optimizer,
            schedule=schedule,
        ),
    }
    for path, value in assignments(config, "--config").items():
        assign(values, path, value)
    names = _names(architecture, written, values["plugins"])
    seeds = seed or [written.get("seed", 0)]
    runs = [
        _frozen(written, {**_given(**values), "architecture": name, "seed": one}) for name in names for one in seeds
    ]
    if runs and runs[0].trackers:
        from archbench.plugin.registry import TRACKER, find

        find(TRACKER, runs[0].trackers)  # a wrong name concerns all runs
    if len(runs) == 1:
        _show(_measured(runs[0], quiet=quiet), runs[0].out, json=json_)
    else:
        _measure_each(runs, quiet=quiet, json=json_, debug=bool(context.obj))


def _measure_each(runs: list[RunConfig], *, quiet: bool, json: bool, debug: bool) -> None:
    """One run after the other, and a table of all. An error ends its own run only; the first decides the exit code.

    Raises:
        StorageError: results cannot be written, so that the runs to come would be in vain.
        typer.Exit: some failed.
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
                traceback.print_exception(error)
            say("Error", str(error))
            several_seeds = len({one.seed for one in runs}) > 1
            failed.append((config.architecture + (f" seed {config.seed}" if several_seeds else ""), error.exit_code))
            continue
        _show(frame, config.out, json=json)
        finished.append(frame)
    if not json:
        from archbench.cli.comparison import print_comparison

        print_comparison(finished)
    if failed:
        typer.echo(f"Failed: {', '.join(f'{name} (exit code {code})' for name, code in failed)}", err=True)
        raise typer.Exit(failed[0][1])


def _measured(config: RunConfig, *, quiet: bool) -> pd.DataFrame:
    from archbench import runner

    with _saying_how_to_go_on():
        return runner.run(config, quiet=quiet)


def _show(frame: pd.DataFrame, out: str, *, json: bool) -> None:
    from archbench.cli.summary import print_rows, print_summary

    (print_rows if json else print_summary)(frame, out)


def _resume(architectures: list[str], run_id: str, given: dict[str, Any]) -> None:
    """``--resume``: the run keeps its frozen configuration, but for how long its phases may take.

    Raises:
        UsageError: several architectures, or an option that would change the configuration.
    """
    from archbench import runner

    if not architectures:
        raise UsageError("--resume", "no architecture is named", f"Write archbench run NAME --resume {run_id}")
    if len(architectures) > 1:
        step = f"Name the one that the run is of: archbench run {architectures[0]} --resume {run_id}"
        raise UsageError("--resume", f"it goes on with one run, and {len(architectures)} architectures are named", step)
    more = assignments(given["config"], "--config")
    limit = more.pop("time_limit", None)
    _refuse_beside_resume({**given, "config": more or None})
    with _saying_how_to_go_on():
        frame = runner.resume(architectures[0], run_id, given["out"], time_limit=_number(limit), quiet=given["quiet"])
    _show(frame, given["out"], json=given["json_"])


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise ConfigError("--config time_limit", f"{text!r} is not a number", "Give seconds") from None


@contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    """An interrupted run's own words, which typer keeps from the caller of the command."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        if str(interruption):  # nothing, if no run had begun
            typer.echo(str(interruption), err=True)
        raise


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _tokenizer_beside(weights: str | None) -> str | None:
    """The tokenizer that published weights were trained with: it has to be named, or lie beside them or in them.

    Raises:
        UsageError: neither; with any other tokenizer the weights would score noise.
    """
    if weights is None:
        return None
    from archbench.data.gguf import is_gguf

    if is_gguf(Path(weights)):
        return f"gguf:{weights}"
    folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    if not (folder / "tokenizer.json").exists():
        raise UsageError(
            f"--weights {weights}",
            "there is no tokenizer.json beside it",
            "Name the tokenizer the weights were trained with: --tokenizer file:PATH, hf:NAME or byte",
        )
    return f"file:{folder / 'tokenizer.json'}"


def _names(asked: list[str] | None, written: dict[str, Any], plugins: tuple[str, ...] | None) -> list[str]:
    """The architectures to run: those asked for, ``all`` being every one that is found, or the run file's.

    Raises:
        UsageError: none is named.
    """
    names = asked or ([written["architecture"]] if "architecture" in written else [])
    if not names:
        step = "Write for instance archbench run gpt1; archbench list shows what there is"
        raise UsageError("archbench run", "no architecture is named", step)
    if "all" not in names:
        return names
    from archbench.plugin.registry import available

    return list(dict.fromkeys(entry.name for entry in available(plugins or written.get("plugins", ()))))


def _frozen(written: dict[str, Any], values: dict[str, Any]) -> RunConfig:
    from archbench.config import RunConfig, filled

    return RunConfig(**filled(written, values))


def _phases(phases: str | None, weights: str | None) -> tuple[str, ...] | None:
    """The phases asked for; published weights are measured as they are unless training is asked for."""
    if phases is not None:
        return tuple(phase.strip() for phase in phases.split(","))
    return None if weights is None else ("quality", "prefill", "decode")


def _refuse_beside_resume(given: dict[str, Any]) -> None:
    """A resumed run keeps its frozen configuration, so anything that would change it is refused.

    Raises:
        UsageError: naming the option.
    """
    unset = {"device": "auto", "attention": "auto"}
    options = {"set_": "--set", "compile_": "--compile", "learning_rate": "--lr"}
    for name, value in given.items():
        if name in {"context", "architecture", "out", "resume", "json_", "quiet"} or name not in run.__annotations__:
            continue
        if value not in (None, False, unset.get(name)):
            raise UsageError(
                options.get(name, f"--{name.replace('_', '-')}"),
                "it cannot be changed in a run that is resumed",
                "Leave it out, or start a new run without --resume",
            )
