"""The one place that knows the order of a run: check, prepare, phase after phase, write.

Nothing is trained before everything that can be checked has been: plugin, configuration, data, device, output folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.config import ModelConfig, RunConfig
from archbench.errors import ArchbenchError, ConfigError, PhaseError, UsageError, from_dict
from archbench.measure import environment
from archbench.measure.machine import describe, versions
from archbench.phases.folder import RunFolder, open_run
from archbench.registry import Architecture, load, plugin_paths
from archbench.results.store import new_run_id, prepare_folder, read_results, write_run

if TYPE_CHECKING:
    import pandas as pd

    from archbench.data.dataset import Dataset


def run(config: RunConfig, *, quiet: bool = False) -> pd.DataFrame:
    """Measure one architecture once: all of ``config.phases``, each in a process of its own.

    Args:
        config: the frozen configuration.
        quiet: print no progress to standard error.

    Returns:
        The run's rows; the same as ``read_results(path_of_its_parquet_file)``.

    Raises:
        ArchbenchError: whatever was wrong, named; rows of the finished phases stay in the run's folder.
    """
    return _measure(_start(config), quiet=quiet)


def resume(architecture: str, run_id: str, out: str | Path = "results", *, quiet: bool = False) -> pd.DataFrame:
    """Go on with a run that was interrupted: finished phases are kept, training continues from its last checkpoint.

    Args:
        architecture: the run's, to be sure that it is the one meant.
        run_id: the run's, or ``last`` for the newest under ``out``.
        out: folder of the results.
        quiet: print no progress to standard error.

    Raises:
        UnknownNameError: no such run under ``out``.
        UsageError: the run is finished, of another architecture, or was started with another torch.
        ArchbenchError: as :func:`run`.
    """
    folder = open_run(out, run_id)
    finished = folder.path.with_suffix(".parquet")
    if folder.config.architecture != architecture:
        raise UsageError(
            f"run {folder.run_id}",
            f"it is of {folder.config.architecture}, not of {architecture}",
            f"Use: {folder.resume_command}",
        )
    if finished.exists():
        raise UsageError(f"run {folder.run_id}", "it is finished", f"Read it with: archbench results {finished}")
    started, now = folder.facts["versions"]["torch_version"], versions()["torch_version"]
    if started != now:
        raise UsageError(
            f"run {folder.run_id}", f"it was started with torch {started}, and this is {now}", "Start a new run"
        )
    return _measure(folder, quiet=quiet)


def _start(config: RunConfig) -> RunFolder:
    """Check everything that can be checked, resolve what was left open, and make the run's folder."""
    from archbench.data.batches import BatchSampler
    from archbench.data.dataset import prepare
    from archbench.phases.device import check_attention, check_dtype, resolve_device

    device = resolve_device(config.device)
    check_dtype(config, device)
    check_attention(config, device)
    config = _with_absolute_paths(config)
    prepare_folder(config.out)
    architecture = load(config.architecture, config.plugins)
    _check_weights(config)
    data = prepare(config.data)
    model_config = _resolve_model(config, architecture, data)
    config = config.override(speed=_resolve_speed(config, model_config))
    T = model_config.context_length
    BatchSampler(data.train, batch_size=1, context_length=T, seed=0)  # refuses too short a text

    folder = RunFolder(
        path=Path(config.out) / new_run_id(),
        config=config,
        model=model_config.model_dump(mode="json"),
        facts={
            "plugin_package": architecture.package,
            "plugin_version": architecture.version,
            "wrappers": list(architecture.wrappers),
            "corpus": data.corpus_name,
            "corpus_sha256": data.corpus_sha256,
            "tokenizer": data.tokenizer.name,
            "lossless": data.lossless,
            "versions": versions(),
            "machine": describe(config.device),
        },
    )
    folder.create()
    data.tokenizer.save(folder.tokenizer)
    return folder


def _measure(folder: RunFolder, *, quiet: bool) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for phase in folder.config.phases:
        if not folder.rows_file(phase).exists():
            _run_phase(folder, phase, quiet=quiet)
        rows += folder.read_rows(phase)
        if any(row["metric"] == "diverged" for row in rows):
            break  # speed and quality of a model that is no longer one compare with nothing
    return read_results(write_run(folder.path.parent, folder.run_id, rows, folder.as_dict(), _common(folder)))


def _run_phase(folder: RunFolder, phase: str, *, quiet: bool) -> None:
    """One phase in a fresh process; this one sleeps in ``wait`` meanwhile, so that it takes no part in the timing."""
    device = folder.config.device
    before = environment.snapshot(device)
    # -P: the working directory is not on the path, so nothing in it is imported unasked.
    command = [sys.executable, "-P", "-m", "archbench.phases.worker", str(folder.path.parent), folder.run_id, phase]
    process = subprocess.Popen(
        [*command, "quiet" if quiet else "verbose"], stdin=subprocess.DEVNULL, env=_variables(folder.config)
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _interrupt(process)
        raise KeyboardInterrupt(f"Continue with: {folder.resume_command}") from None
    after = environment.snapshot(device)
    if code != 0:
        raise _phase_error(folder, phase, code)
    rows = folder.read_rows(phase)
    contaminated = bool(environment.contamination(before, after))
    number = folder.config.phases.index(phase)
    # Of the machine, not of the model: the same device, threads, versions … as the phase's own rows.
    where = {name: rows[0][name] for name in (*versions(), "device", "device_name", "threads", "malloc", "parameters")}
    watched = [
        {**where, "phase": "environment", "metric": metric, "value": value, "repeat": number}
        for metric, value in environment.metrics(before, after).items()
    ]
    folder.write_rows(phase, [{**row, "contaminated": contaminated} for row in rows + watched])


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """End the phase as well. A terminal has interrupted it already; whoever signals this process alone has not."""
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()


def _variables(config: RunConfig) -> dict[str, str]:
    """The phase's environment variables; OpenMP reads its number of threads once, before torch can set it."""
    variables = dict(os.environ)
    if config.threads is not None:
        variables["OMP_NUM_THREADS"] = str(config.threads)
    return variables


def _phase_error(folder: RunFolder, phase: str, code: int) -> ArchbenchError:
    """What a failed phase left behind: its own error, or how its process died."""
    again = folder.resume_command
    error_file = folder.path / f"error-{phase}.json"
    if error_file.exists():
        fields = json.loads(error_file.read_text())
        error_file.unlink()
        error = from_dict(fields)
        error.add_note(f"in phase {phase}:\n{fields['traceback']}")
        return error
    culprit = f"phase {phase} of run {folder.run_id}"
    if code == -signal.SIGKILL:
        return PhaseError(
            culprit,
            "its process was killed, most often for want of memory",
            f"Use a smaller batch or preset, or continue with: {again}",
        )
    if code < 0:
        return PhaseError(culprit, f"its process died of {signal.Signals(-code).name}", f"Continue with: {again}")
    return PhaseError(
        culprit, f"its process ended with exit code {code}", f"See what it printed above, then continue with: {again}"
    )


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same configuration for processes and later sessions that start elsewhere."""
    from archbench.data.corpora import EMBEDDED

    corpus, tokenizer = config.data.corpus, config.data.tokenizer
    if corpus not in EMBEDDED and not corpus.startswith("hf:"):
        corpus = str(Path(corpus).resolve())
    kind, colon, place = tokenizer.partition(":")
    if kind in ("file", "saved"):
        tokenizer = kind + colon + str(Path(place).resolve())
    return config.override(
        plugins=plugin_paths(config.plugins),
        weights=None if config.weights is None else str(Path(config.weights).resolve()),
        data=config.data.override(corpus=corpus, tokenizer=tokenizer),
    )


def _check_weights(config: RunConfig) -> None:
    if config.weights is not None and not Path(config.weights).exists():
        raise UsageError(
            f"--weights {config.weights}",
            "there is no such file or folder",
            "Give a .safetensors file, or the folder it lies in",
        )


def _resolve_model(config: RunConfig, architecture: Architecture, data: Dataset) -> ModelConfig:
    """The model's configuration with V settled: the tokenizer's, or the preset's where that is asked for.

    Raises:
        ConfigError: an unknown preset or field, a bad value, or a vocabulary smaller than the tokenizer's.
    """
    overrides = dict(config.overrides)
    if config.vocabulary == "tokenizer":
        overrides.setdefault("vocab_size", data.tokenizer.vocab_size)
    model_config = architecture.config(config.preset, **overrides)
    if model_config.vocab_size < data.tokenizer.vocab_size:
        raise ConfigError(
            f"vocab_size {model_config.vocab_size} of {config.architecture}",
            f"tokenizer {data.tokenizer.name} has {data.tokenizer.vocab_size} ids",
            "Use a smaller tokenizer (--tokenizer bpe:N), or leave vocab_size out",
        )
    return model_config


def _resolve_speed(config: RunConfig, model_config: ModelConfig) -> dict[str, Any]:
    """Prompt lengths that were left open: a quarter and three quarters of the context, or less, to leave room."""
    T = model_config.context_length
    speed = dict(config.speed)
    if speed["prompt_lengths"] is None:
        longest = max(1, T - speed["new_tokens"])
        speed["prompt_lengths"] = tuple(sorted({max(1, min(P, longest)) for P in (T // 4, 3 * T // 4)}))
    too_long = [P for P in speed["prompt_lengths"] if P > T]
    if too_long:
        raise ConfigError(
            "speed.prompt_lengths",
            f"a prompt of {too_long[0]} tokens does not fit a context of {T}",
            f"Give lengths of at most {T}",
        )
    return speed


def _common(folder: RunFolder) -> dict[str, Any]:
    """The columns that belong to the whole run."""
    config, facts = folder.config, folder.facts
    return {
        "architecture": config.architecture,
        "plugin_package": facts["plugin_package"],
        "plugin_version": facts["plugin_version"],
        "preset": config.preset,
        "config_hash": config.config_hash(),
        "seed": config.seed,
        "dtype": config.dtype,
        "compile": config.compile,
        "context_length": folder.model["context_length"],
        "corpus": facts["corpus"],
        "tokenizer": facts["tokenizer"],
        "lossless": facts["lossless"],
    }
