"""The one place that knows the order of a run: check, prepare, phase after phase, write.

Nothing is trained before everything that can be checked has been: plugin, configuration, data, device, output folder.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.config import PUBLISHED, ModelConfig, RunConfig
from archbench.errors import ArchbenchError, ArchbenchWarning, ConfigError, StorageError, UsageError
from archbench.measure.machine import describe, device_name, versions
from archbench.phases.conformance import conformance, require_conformance, take_over
from archbench.phases.folder import RunFolder, open_run
from archbench.phases.published import published_model, require_same
from archbench.phases.supervisor import CHECK, run_phase
from archbench.plugin.architecture import Architecture
from archbench.plugin.discovery import plugin_paths
from archbench.plugin.registry import load
from archbench.profiles import PROFILES
from archbench.results.schema import FAILED
from archbench.results.store import new_run_id, prepare_folder, read_results, run_failed, write_run
from archbench.trackers.following import Trackers, followed_by
from archbench.trackers.tracker import Status

if TYPE_CHECKING:
    import pandas as pd

    from archbench.data.dataset import Dataset


LONGEST_USUAL_CONTEXT = 2048
LOGITS_AT_ONCE = 1 << 30
"""Of the windows that are scored together: 4 GiB in float32."""


def run(config: RunConfig, *, quiet: bool = False, checked_by: Path | None = None) -> pd.DataFrame:
    """Measure one architecture once: all of ``config.phases``, each in a process of its own.

    Args:
        config: the frozen configuration.
        quiet: print no progress to standard error.
        checked_by: folder of a finished run; if it was of the very same model, its conformance checks are taken over.

    Returns:
        The run's rows; the same as ``read_results(path_of_its_parquet_file)``.

    Raises:
        ConformanceError: the architecture fails the conformance checks; nothing else was measured.
        ArchbenchError: whatever else was wrong, named; the rows of the finished phases are stored, and one that says
            what ended the run.
    """
    with followed_by(config.trackers, quiet=quiet) as trackers:
        folder = _start(config)
        if checked_by is not None and config.checked:
            take_over(checked_by, folder)
        return _measure(folder, trackers, quiet=quiet)


def resume(
    architecture: str,
    run_id: str,
    out: str | Path = "results",
    *,
    time_limit: float | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Go on with a run that was interrupted or failed: finished phases are kept, training goes on from a checkpoint.

    Args:
        architecture: the run's, to be sure that it is the one meant.
        run_id: the run's, or ``last`` for the newest under ``out``.
        out: folder of the results.
        time_limit: seconds for the phases left, in place of what the run was started with.
        quiet: print no progress to standard error.

    Raises:
        UnknownNameError: no such run under ``out``.
        UsageError: the run is finished, of another architecture, or was started with another torch or plugin.
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
    if finished.exists() and not run_failed(finished):
        raise UsageError(f"run {folder.run_id}", "it is finished", f"Read it with: archbench results {finished}")
    started, now = folder.facts["versions"]["torch_version"], versions()["torch_version"]
    if started != now:
        raise UsageError(
            f"run {folder.run_id}", f"it was started with torch {started}, and this is {now}", "Start a new run"
        )
    measured, found = folder.facts["plugin_version"], load(architecture, folder.config.plugins).version
    if measured != found:
        cause = f"it was started with version {measured} of {architecture}, and this is {found}"
        raise UsageError(f"run {folder.run_id}", cause, "Start a new run")
    if time_limit is not None:
        folder = dataclasses.replace(folder, config=folder.config.override(time_limit=time_limit))
    with followed_by(folder.config.trackers, quiet=quiet) as trackers:
        return _measure(folder, trackers, quiet=quiet)


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
    config = config.override(plugins=architecture.files)  # no other plugin's code has business in this run's processes
    config, published = _resolve_published(config, architecture)
    data = prepare(config.data)
    model_config = _resolve_model(config, architecture, data, published)
    config = config.override(
        speed=_resolve_speed(config, model_config, len(data.train)), quality=_resolve_quality(config, model_config)
    )
    if "train" in config.phases:  # refuses too short a text
        BatchSampler(data.train, batch_size=1, context_length=model_config.context_length, seed=0)

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


def _measure(folder: RunFolder, trackers: Trackers, *, quiet: bool) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    phase = CHECK
    status: Status = "failed"
    trackers.start(folder.run_id, folder.as_dict(), folder.path)
    try:
        for phase in ((CHECK,) if folder.config.checked else ()) + folder.config.phases:
            if not folder.rows_file(phase).exists():
                run_phase(folder, phase, quiet=quiet)
            rows += folder.read_rows(phase)
            if phase == CHECK:
                require_conformance(folder)
            if any(row["metric"] == "diverged" for row in rows):
                break  # speed and quality of a model that is no longer one compare with nothing
        written = _write(folder, rows)
        status = "finished"
    except StorageError:
        raise  # where rows cannot be written there is nothing to record it in
    except ArchbenchError as error:
        _record_failure(folder, rows, phase, error)
        raise
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        trackers.finish(rows, status)
    return read_results(written)


def _write(folder: RunFolder, rows: list[dict[str, Any]]) -> Path:
    # A run that is resumed after it had failed replaces its own record of that.
    return write_run(folder.path.parent, folder.run_id, rows, folder.as_dict(), _common(folder), replace=True)


def _record_failure(folder: RunFolder, rows: list[dict[str, Any]], phase: str, error: ArchbenchError) -> None:
    """Store the rows of the finished phases, and one that says what ended the run."""
    failed = {
        **_where(folder, rows),
        "phase": phase,
        "metric": FAILED,
        "unit": "1",
        "status": " ".join(f"{type(error).__name__}: {error.culprit}: {error.cause}".split()),
    }
    try:
        _write(folder, [*rows, failed])
        if phase == CHECK:  # so that a run which is resumed is checked again
            folder.rows_file(CHECK).unlink(missing_ok=True)
    except (StorageError, OSError) as storage:
        warnings.warn(f"this run's failure could not be recorded: {storage}", ArchbenchWarning, stacklevel=2)


def _where(folder: RunFolder, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What every row has to say of the machine: as the finished phases found it, or as this process finds it."""
    names = ("device", "device_name", "threads", "malloc", "parameters", *versions())
    if rows:
        return {name: rows[-1].get(name) for name in names}
    import torch

    from archbench.phases.device import resolve_device

    device = resolve_device(folder.config.device)
    threads = folder.config.threads or torch.get_num_threads()
    return {**versions(), "device": device.type, "device_name": device_name(device), "threads": threads}


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same configuration for processes and later sessions that start elsewhere."""
    from archbench.data.corpora import EMBEDDED

    corpus, tokenizer = config.data.corpus, config.data.tokenizer
    if corpus not in EMBEDDED and not corpus.startswith("hf:"):
        corpus = str(Path(corpus).resolve())
    kind, colon, place = tokenizer.partition(":")
    if kind in ("file", "gguf", "saved"):
        tokenizer = kind + colon + str(Path(place).resolve())
    return config.override(
        plugins=plugin_paths(config.plugins),
        weights=None if config.weights is None else str(Path(config.weights).resolve()),
        data=config.data.override(corpus=corpus, tokenizer=tokenizer),
    )


def _resolve_published(config: RunConfig, architecture: Architecture) -> tuple[RunConfig, ModelConfig | None]:
    """The configuration that the weights bring with them, if they do, and the preset named after them.

    A preset that was asked for stays, if it says the same; without a configuration to go by it is the profile's.

    Raises:
        UsageError: no such weights, or a preset that says something else than they do.
        CheckpointError: their configuration cannot be read, or is of another model.
    """
    if config.weights is None:
        return config, None
    weights = Path(config.weights)
    if not weights.exists():
        raise UsageError(
            f"--weights {weights}",
            "there is no such file or folder",
            "Give a .safetensors or .gguf file, or the folder that transformers saved",
        )
    found = published_model(architecture, weights, config.plugins)
    if found is None:
        preset = PROFILES[config.profile]["preset"] if config.preset == PUBLISHED else config.preset
        return config.override(preset=preset), None
    published, model_config = found
    preset = f"{PUBLISHED}:{published.name}" if config.preset == PUBLISHED else config.preset
    if preset == config.preset:
        asked = architecture.config(preset, **config.overrides)
        said = architecture.config(model_config, **config.overrides)
        require_same(asked, said, name=preset, source=published.source)
    return config.override(preset=preset, vocabulary="preset"), model_config


def _resolve_model(
    config: RunConfig, architecture: Architecture, data: Dataset, published: ModelConfig | None
) -> ModelConfig:
    """The model's configuration with V settled: the tokenizer's, or the preset's where that is asked for.

    Raises:
        ConfigError: an unknown preset or field, a bad value, or a vocabulary smaller than the tokenizer's.
    """
    overrides = dict(config.overrides)
    if config.vocabulary == "tokenizer":
        overrides.setdefault("vocab_size", data.tokenizer.vocab_size)
    model_config = architecture.config(config.preset if published is None else published, **overrides)
    if model_config.vocab_size < data.tokenizer.vocab_size:
        raise ConfigError(
            f"vocab_size {model_config.vocab_size} of {config.architecture}",
            f"tokenizer {data.tokenizer.name} has {data.tokenizer.vocab_size} ids",
            "Use a smaller tokenizer (--tokenizer bpe:N), or leave vocab_size out",
        )
    return model_config


def _resolve_speed(config: RunConfig, model_config: ModelConfig, n_tokens: int) -> dict[str, Any]:
    """Prompt lengths that were left open: a quarter and three quarters of the context, or less, to leave room.

    Prompts are cut from the ``n_tokens`` of the training text. Contexts count as at most 2,048: prompts of a published
    model's 8,192 would keep a CPU busy for hours.
    """
    T = min(model_config.context_length, n_tokens)
    speed = dict(config.speed)
    if speed["prompt_lengths"] is None:
        usual = min(T, LONGEST_USUAL_CONTEXT)
        longest = max(1, usual - speed["new_tokens"])
        speed["prompt_lengths"] = tuple(sorted({max(1, min(P, longest)) for P in (usual // 4, 3 * usual // 4)}))
    too_long = [P for P in speed["prompt_lengths"] if P > T]
    if too_long and {"prefill", "decode"} & set(config.phases):
        room = f"a context of {T}" if model_config.context_length == T else f"the training text of {T}"
        raise ConfigError(
            "speed.prompt_lengths",
            f"a prompt of {too_long[0]} tokens does not fit {room}",
            f"Give lengths of at most {T}",
        )
    return speed


def _resolve_quality(config: RunConfig, model_config: ModelConfig) -> dict[str, Any]:
    """Windows scored at a time, so that their logits fit; how many they are changes no score."""
    logits = model_config.context_length * model_config.vocab_size
    batch_size = max(1, min(config.quality.batch_size, LOGITS_AT_ONCE // logits))
    return {**dict(config.quality), "batch_size": batch_size}


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
        "conformance": conformance(folder),
    }
