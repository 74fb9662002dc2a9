"""The hooks an architecture plugin implements, and what they are given.

Dimension letters, the same everywhere in archbench:

    B batch          T positions       C model width      H query heads    G key/value heads
    D head width     F feed-forward    V vocabulary       L layers         E experts
    W window         P prompt          N state size

A plugin is a module (or object) whose functions carry ``@archbench.hookimpl``::

    from archbench import ArchitectureInfo, hookimpl

    @hookimpl
    def describe(): ...
    @hookimpl
    def build(config): ...
    @hookimpl
    def train_step(state, batch): ...
    @hookimpl
    def generate(model, prompt, max_new_tokens, sampling): ...

It is found through an entry point of the group ``archbench``, which has the architecture's name, or by
``--plugin FILE_OR_DIR``. Plugins of diagnostic tasks have only the hook ``tasks``; they are found through the group
``archbench.tasks``, or by ``--plugin`` too. A function of the group ``archbench.sources`` makes the plugin of each name
that begins with its own and a colon (:class:`Located`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from archbench.config import ModelConfig
    from archbench.data.batches import Batch
    from archbench.data.tasks import Task
    from archbench.inference.sampling import Sampling
    from archbench.training.state import TrainState

GROUP = "archbench"
"""Entry-point group, and the name of the pluggy project."""

TASK_GROUP = "archbench.tasks"
"""Entry-point group of plugins that offer diagnostic tasks."""

TRACKER_GROUP = "archbench.trackers"
"""Entry-point group of experiment trackers: classes, by name."""

LAUNCHER_GROUP = "archbench.launchers"
"""Entry-point group of launchers, which take a study's cells to machines: classes, by name."""

SOURCE_GROUP = "archbench.sources"
"""Entry-point group of functions that find architectures by a prefix, ``hf`` for ``hf:PLACE``: the text after the colon
-> :class:`Located`."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)

REQUIRED_HOOKS = ("describe", "build", "train_step", "generate")
OPTIONAL_HOOKS = ("import_weights", "import_config", "export_weights", "export_config", "tasks")


@dataclass(frozen=True)
class ArchitectureInfo:
    """What an architecture is, without building it.

    Attributes:
        name: the architecture's name on the command line; lower case, as in ``gpt1``.
        summary: one line.
        paper: where it is published (authors, year, title or arXiv number).
        config: the configuration type, a :class:`archbench.ModelConfig`.
        presets: named sizes; ``nano``, ``small`` and ``paper`` by convention, ``nano`` at least.
    """

    name: str
    summary: str
    paper: str
    config: type[ModelConfig]
    presets: Mapping[str, ModelConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class Located:
    """What a source found (:data:`SOURCE_GROUP`).

    Attributes:
        name: identifies the architecture by its content, without spaces; the source finds it under this name too, so
            results, plans and other processes name it so, after the prefix.
        plugin: the object with its hooks; ``describe`` gives the name with the prefix.
        package, version, revision: what every row says of it, as of a package.
        weights: published weights that ``archbench run`` measures; None: it is trained from scratch.
        sample: :func:`archbench.training.weights.sampled_digest` of them, part of the name: a run refuses others.
    """

    name: str
    plugin: object
    package: str
    version: str
    revision: str | None = None
    weights: Path | None = None
    sample: str | None = None


@dataclass(frozen=True)
class CodeOfName:
    """Code that a source would run for a name.

    A source that runs any has a method ``code``: the text after the prefix -> this. It runs nothing. After the core has
    seen that the user named or trusts that content, the source is called with ``name`` and a function that imports a
    module of the package by its name.

    Attributes:
        name: as :class:`Located` has it.
        package: the folder that is imported, with all its files.
        digest: :func:`archbench.plugin.trust.content_digest` of what the user's own words lead to.
    """

    name: str
    package: Path
    digest: str


@hookspec(firstresult=True)
def describe() -> ArchitectureInfo:  # type: ignore[empty-body]
    """Name, summary, paper, config type and presets. Must be cheap: build no model here."""


@hookspec(firstresult=True)
def build(config: ModelConfig) -> nn.Module:  # type: ignore[empty-body]
    """The model: tokens (B, T) int64 -> logits (B, T, V).

    Called under the core's seed and under ``torch.device(...)``, which may be meta: pass no device yourself.
    """


@hookspec(firstresult=True)
def train_step(state: TrainState, batch: Batch) -> Tensor:  # type: ignore[empty-body]
    """One optimizer update on ``batch``; returns the mean loss, shape (), nats/token.

    ``archbench.next_token_step(state, batch)`` is the usual implementation.
    """


@hookspec(firstresult=True)
def generate(  # type: ignore[empty-body]
    model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling
) -> Iterator[Tensor]:
    """Continue ``prompt`` (B, P) int64: one tensor (B,) int64 a new token, as soon as it is known.

    ``archbench.decode_with_cache`` and ``archbench.decode_without_cache`` are the usual implementations.
    """


@hookspec(firstresult=True)
def import_weights(state_dict: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:  # type: ignore[empty-body]
    """Optional: published weights, renamed and reshaped to this model's ``state_dict``."""


@hookspec(firstresult=True)
def import_config(published: Mapping[str, Any]) -> ModelConfig:  # type: ignore[empty-body]
    """Optional: this architecture's configuration for the content of a transformers ``config.json``.

    Published weights are measured with it if the user names no sizes. Refuse every feature that the architecture does
    not have with a CheckpointError that names the field, as ``archbench.nn.published_fields`` does. A field that the
    hook does not read is refused, unless it is known to change nothing.
    """


@hookspec(firstresult=True)
def export_weights(state_dict: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:  # type: ignore[empty-body]
    """Optional, the inverse of ``import_weights``: the ``state_dict`` of this model, by published names and shapes."""


@hookspec(firstresult=True)
def export_config(config: ModelConfig) -> dict[str, Any]:  # type: ignore[empty-body]
    """Optional, the inverse of ``import_config``: the content of a ``config.json``, with ``model_type`` and
    ``architectures``.

    Refuse what the published class cannot compute with a UsageError that names the field, as
    ``archbench.nn.inexpressible`` makes it.
    """


@hookspec(firstresult=True)
def tasks() -> Sequence[Task]:  # type: ignore[empty-body]
    """Diagnostic tasks for ``archbench probe``, each an :class:`archbench.Task`. Must be cheap: draw nothing here.

    Tasks draw examples only from the NumPy generator that they are given.
    """
