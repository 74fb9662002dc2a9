"""Models and tokenizers of a run, made from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from archbench.config import ModelConfig
from archbench.data.byte_tokenizer import Tokenizer
from archbench.data.tokenizers import load_tokenizer
from archbench.errors import CheckpointError, StorageError, UsageError
from archbench.files.loader import validated
from archbench.measure.malloc import tune_malloc
from archbench.plugin.architecture import Architecture
from archbench.plugin.registry import load
from archbench.plugin.trust import require
from archbench.runs.device import default_device, resolve_device
from archbench.runs.folder import CONFIG, RunFolder, open_run
from archbench.training.checkpoints import latest_checkpoint, load_weights
from archbench.training.weights import digest_of, require_numbers


def load_architecture(run: RunFolder) -> tuple[Architecture, ModelConfig]:
    """The run's plugin and its resolved model configuration.

    Raises:
        StorageError: the plugin does not accept the configuration that the run's folder has.
        UntrustedCodeError: the run's folder names plugin files that the user of this machine has not named.
        PluginError: the plugin cannot be loaded.
    """
    architecture = load(run.config.architecture, require(run.config.plugins, run.path / CONFIG))
    file, step = run.path / CONFIG, "Restore the file, or use the version of the plugin that the run was made with"
    config = validated(architecture.info.config, run.model, error=StorageError, culprit=str(file), next_step=step)
    return architecture, config


def build_model(architecture: Architecture, config: ModelConfig, seed: int, device: torch.device) -> nn.Module:
    """The model at its initial weights, drawn on the CPU so that a seed means the same weights on every device."""
    torch.manual_seed(seed)
    return architecture.build(config).to(device)


def initial_model(run: RunFolder, architecture: Architecture, config: ModelConfig, device: torch.device) -> nn.Module:
    """The model before training: initialised from the seed, or from the published weights the run names.

    Raises:
        CheckpointError: the weights file cannot be read or does not fit the model.
    """
    if run.config.weights is None:
        return build_model(architecture, config, run.config.seed, device)
    # The model is built last: earlier, it would be a third copy beside the file's tensors and the hook's.
    path, before = Path(run.config.weights), run.facts.get("weights_sha256")
    if before is not None and digest_of(path) != before:
        raise CheckpointError(f"weights {path}", "they have changed since the run began", "Start a new run")
    published = load_weights(path)
    require_numbers(published, path)
    weights = architecture.import_weights(published, config)
    model = build_model(architecture, config, run.config.seed, device)
    _fill(model, weights, run.config.weights)
    return model


def trained_model(run: RunFolder, architecture: Architecture, config: ModelConfig, device: torch.device) -> nn.Module:
    """The trained model in evaluation mode; at its initial weights if the run has no training phase.

    Raises:
        CheckpointError: the run has a training phase but no whole checkpoint, or the checkpoint is corrupt.
    """
    newest = latest_checkpoint(run.checkpoints)
    if newest is None and "train" in run.config.phases:
        raise CheckpointError(
            f"run {run.run_id}",
            f"{run.checkpoints} holds no whole checkpoint",
            f"Continue its training with: {run.resume_command}",
        )
    if newest is None:
        return initial_model(run, architecture, config, device).eval()
    model = build_model(architecture, config, run.config.seed, device)
    _fill(model, load_weights(newest), str(newest))
    return model.eval()


def require_weights(run: RunFolder, instead: str) -> None:
    """Refuse a run that has none to load.

    Args:
        instead: the next step that the errors name.

    Raises:
        UsageError: it trained nothing, and measured no published weights.
        CheckpointError: it trained, and its checkpoints are gone.
    """
    trained, culprit = "train" in run.config.phases, f"run {run.run_id}"
    if not trained and run.config.weights is None:
        raise UsageError(culprit, "it has no weights: it neither trained nor read published ones", instead)
    if trained and latest_checkpoint(run.checkpoints) is None:
        cause = f"it has no weights: {run.checkpoints} holds no whole checkpoint"
        raise CheckpointError(culprit, cause, instead)


def count_parameters(model: nn.Module) -> int:
    """Elements of the model's parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class LoadedRun:
    """A run as :func:`load_run` finds it, with its folder and architecture."""

    folder: RunFolder
    architecture: Architecture
    config: ModelConfig
    model: nn.Module
    tokenizer: Tokenizer


def loaded(run: str | Path = "last", *, out: str | Path = "results", device: str = "auto") -> LoadedRun:
    """As :func:`load_run`."""
    tune_malloc()
    folder = open_run(out, run)
    architecture, config = load_architecture(folder)
    where = resolve_device(default_device() if device == "auto" else device)
    model = trained_model(folder, architecture, config, where)
    return LoadedRun(folder, architecture, config, model, load_tokenizer(f"saved:{folder.tokenizer}"))


def load_run(
    run: str | Path = "last", *, out: str | Path = "results", device: str = "auto"
) -> tuple[nn.Module, Tokenizer, ModelConfig]:
    """A run's model, tokenizer and configuration.

    Args:
        run: its id, or its folder; ``last`` is the newest under ``out``.
        device: auto, cpu, cuda or cuda:N; auto is a GPU if there is one.

    Returns:
        The model in evaluation mode, tokens (B, T) int64 -> logits (B, T, V): trained, or with the published weights
        that the run measured; the tokenizer, whose ``encode`` and ``decode`` the run used; the model's configuration.

    Raises:
        UnknownNameError: no such run.
        StorageError: its files cannot be read.
        CheckpointError: its weights cannot be read, or none are kept.
        UntrustedCodeError: its folder names a plugin file that nobody has trusted here.
        DeviceError: there is no such device.
    """
    found = loaded(run, out=out, device=device)
    return found.model, found.tokenizer, found.config


def _fill(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        findings = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]]
        raise CheckpointError(
            f"weights {source}",
            "; ".join(findings[:3]) or str(error),
            "Use the preset and --set values that the weights were made with",
        ) from None
