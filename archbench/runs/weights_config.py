"""The model configuration of a run with ``--weights``: published weights bring their own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from archbench.config import PUBLISHED, ModelConfig, RunConfig
from archbench.errors import ArchbenchError, ArchbenchWarning, CheckpointError, ConfigError, UsageError
from archbench.plugin.architecture import Architecture
from archbench.plugin.registry import available, load
from archbench.profiles import PROFILES
from archbench.training.published_config import Published, read_published


def resolve_published(config: RunConfig, architecture: Architecture) -> tuple[RunConfig, ModelConfig | None]:
    """The run's configuration with the preset named after the weights, and the model's that comes with them, if any.

    A given preset is kept if it has the same values. Weights without a configuration use the profile's preset.

    Raises:
        UsageError: no such weights, or a preset that differs from them.
        CheckpointError: their configuration cannot be read, or is another model's.
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
    found = _published_model(architecture, weights, config.plugins)
    if found is None:
        preset = PROFILES[config.profile]["preset"] if config.preset == PUBLISHED else config.preset
        return config.override(preset=preset), None
    published, model_config = found
    preset = f"{PUBLISHED}:{published.name}" if config.preset == PUBLISHED else config.preset
    if preset == config.preset:
        asked = architecture.config(preset, **config.overrides)
        said = architecture.config(model_config, **config.overrides)
        _require_same(asked, said, name=preset, source=published.source)
    return config.override(preset=preset, vocabulary="preset"), model_config


def _published_model(
    architecture: Architecture, weights: Path, plugins: Sequence[str]
) -> tuple[Published, ModelConfig] | None:
    """The weights' own description, and the architecture's configuration for it.

    None if there is no description, or no hook to read it: preset and ``--set`` then give the sizes.

    Raises:
        CheckpointError: it cannot be read, or describes another kind of model; the next step names an architecture
            that accepts it, if there is one.
    """
    published = read_published(weights)
    if published is None:
        return None
    if not architecture.offers("import_config"):
        unread = f"{published.source} is not read, because {architecture.name} has no import_config hook"
        warnings.warn(f"{unread}: preset and --set give the sizes.", ArchbenchWarning, stacklevel=2)
        return None
    try:
        return published, architecture.import_config(published.fields)
    except (CheckpointError, ConfigError) as error:
        culprit = f"{architecture.name} with {published.source}, {error.culprit}"
        step = error.next_step
        if takers := _takers(published, plugins, leave_out=architecture.name):
            step = f"Use an architecture that takes it: archbench run {takers[0]} --weights {weights}"
        raise CheckpointError(culprit, error.cause, step) from None


def _takers(published: Published, plugins: Sequence[str], *, leave_out: str) -> list[str]:
    """Names of the architectures that accept it."""
    takers = []
    for name in sorted({entry.name for entry in available(plugins)} - {leave_out}):
        try:
            architecture = load(name, plugins)
            architecture.import_config(published.fields)
        except ArchbenchError:
            continue  # broken, without the hook, or of another kind
        takers.append(name)
    return takers


def _require_same(preset: ModelConfig, published: ModelConfig, *, name: str, source: Path) -> None:
    """Refuse a preset that differs from the published configuration.

    Raises:
        UsageError: naming the first field in which they differ.
    """
    for field, value in dict(published).items():
        if (asked := getattr(preset, field)) != value:
            cause = f"its {field} is {asked}, and {source} says {value}"
            raise UsageError(f"--preset {name}", cause, "Leave --preset out: the weights bring their own sizes")
