"""Which model a run is of, where its weights are published ones: their own configuration, as the architecture's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from archbench.config import ModelConfig
from archbench.errors import ArchbenchError, CheckpointError, ConfigError, UsageError
from archbench.plugin.architecture import Architecture
from archbench.plugin.registry import available, load
from archbench.training.published import Published, read_published


def published_model(
    architecture: Architecture, weights: Path, plugins: Sequence[str]
) -> tuple[Published, ModelConfig] | None:
    """What the weights say of themselves, and the architecture's configuration for it.

    None where they say nothing, or the architecture has no hook to read it with: then preset and ``--set`` have to.

    Raises:
        CheckpointError: it cannot be read, or is of a model that this architecture is not; the next step names an
            architecture that takes it, if there is one.
    """
    published = read_published(weights)
    if published is None or not architecture.offers("import_config"):
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
    """Names of the architectures that have such a model."""
    takers = []
    for name in sorted({entry.name for entry in available(plugins)} - {leave_out}):
        try:
            architecture = load(name, plugins)
            architecture.import_config(published.fields)
        except ArchbenchError:
            continue  # broken, without the hook, or of another kind
        takers.append(name)
    return takers


def require_same(preset: ModelConfig, published: ModelConfig, *, name: str, source: Path) -> None:
    """Nothing, if a preset that was asked for is what the weights say.

    Raises:
        UsageError: naming the first field in which they differ.
    """
    for field, value in dict(published).items():
        if (asked := getattr(preset, field)) != value:
            cause = f"its {field} is {asked}, and {source} says {value}"
            raise UsageError(f"--preset {name}", cause, "Leave --preset out: the weights bring their own sizes")
