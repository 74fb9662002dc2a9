# mypy: disable-error-code="type-abstract"
"""The typed face of one architecture: it checks the results of the plugin's hooks."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from archbench.config import ModelConfig
from archbench.errors import ArchbenchError, HookFailedError, UnknownNameError, did_you_mean, one_line
from archbench.hookspecs import ArchitectureInfo, Located
from archbench.measure.machine import revision_of
from archbench.plugin.discovery import Entry
from archbench.plugin.growth import watched_growth
from archbench.plugin.hooks import Hooks, check_info
from archbench.plugin.importing import loaded_from, plugin_code

if TYPE_CHECKING:
    from torch import Tensor, nn

    from archbench.data.batches import Batch
    from archbench.inference.sampling import Sampling
    from archbench.training.state import TrainState


class Architecture:
    """An architecture that can be configured, built, trained and sampled from; :func:`archbench.load` makes it.

    Attributes:
        info: name, summary, paper, config type and presets, as the plugin describes them.
        package: the distribution the plugin comes with, or the path of its file.
        version: that distribution's version; empty for files.
        source: module or path of the plugin.
        wrappers: names of the plugins that wrap its hooks.
        weights: published weights that its name leads to; None for most.
        sample: a digest of those weights, if that is part of the name.
        files: absolute paths of its plugin files and packages, for another process to load.

    Every method raises HookFailedError if the plugin's hook raises, with the cause chained, and HookResultError if it
    returns None or the wrong type. archbench's own errors pass through.
    """

    def __init__(
        self,
        entry: Entry,
        plugin: object,
        wrappers: Mapping[str, object] | None = None,
        located: Located | None = None,
    ) -> None:
        wrappers = wrappers or {}
        self.weights = None if located is None else located.weights
        self.sample = None if located is None else located.sample
        self._located = located
        self.package = entry.package
        self.version = entry.version
        self.source = entry.source
        self.wrappers = tuple(wrappers)
        self.files = (*((entry.source,) if entry.is_file else ()), *map(loaded_from, wrappers.values()))
        self._entry = entry
        self._plugin = plugin
        self._hooks = Hooks(plugin, entry, wrappers)
        self.info = self.describe()

    @property
    def name(self) -> str:
        return self.info.name

    def __repr__(self) -> str:
        return f"<Architecture {self.name} from {self.package} {self.version}".rstrip() + ">"

    @property
    def file(self) -> Path | None:
        """The source file with the plugin's hooks."""
        plugin = self._plugin
        file = inspect.getsourcefile(plugin if isinstance(plugin, ModuleType | type) else type(plugin))
        return None if file is None else Path(file)

    def revision(self) -> str | None:
        """Commit of the repository that :attr:`file` is in (:func:`archbench.measure.machine.revision_of`), or what the
        source that found it says."""
        if self._located is not None:
            return self._located.revision
        return None if self.file is None else revision_of(self.file)

    def describe(self) -> ArchitectureInfo:
        """The plugin's description now; :attr:`info` is the one from loading."""
        with plugin_code():
            info = self._hooks.call("describe", ArchitectureInfo, "an archbench.ArchitectureInfo")
        return check_info(info, self._entry)

    def config(
        self, preset: str | ModelConfig = "nano", vocab_size: int | None = None, **overrides: Any
    ) -> ModelConfig:
        """A preset's configuration, or another one, with fields replaced; strings are parsed (``n_layer="6"``).

        Raises:
            UnknownNameError: no such preset.
            ConfigError: no such field, a wrong type, or a value out of range.
            HookFailedError: the configuration's own validators raised something that is not a ValueError.
        """
        if isinstance(preset, str) and preset not in self.info.presets:
            culprit = f"preset {preset!r} of {self.name}"
            raise UnknownNameError(culprit, "there is no such preset", did_you_mean(preset, self.info.presets))
        if vocab_size is not None:
            overrides["vocab_size"] = vocab_size
        try:
            with plugin_code():
                return (self.info.presets[preset] if isinstance(preset, str) else preset).override(**overrides)
        except ArchbenchError:
            raise
        except (Exception, SystemExit) as error:
            cause = f"its configuration {self.info.config.__name__} raised {one_line(error)}"
            step = "Raise ValueError, or archbench.errors.ConfigError"
            raise HookFailedError(self._hooks.culprit, cause, step) from error

    def build(self, config: ModelConfig) -> nn.Module:
        """The model: tokens (B, T) int64 -> logits (B, T, V); on the ambient device, which may be meta.

        Raises:
            ConfigError, ResourceError: it grows beyond :func:`archbench.plugin.growth.watched_growth`'s bounds.
        """
        from torch import nn

        with watched_growth(f"the model of {self.name}"):
            return self._hooks.call("build", nn.Module, "a torch.nn.Module", config=config)

    def state_bytes(self, config: ModelConfig, context_length: int) -> int | None:
        """Bytes of the decoding cache of one sequence with room for ``context_length`` positions, in float32.

        Computed from shapes on the meta device; None for an architecture that decodes without a cache.

        Raises:
            UsageError: more positions than the model can tell apart.
        """
        from archbench.measure.flops import cache_bytes
        from archbench.measure.meta_device import meta_device

        with meta_device():
            return cache_bytes(self.build(config), 1, context_length)

    def train_step(self, state: TrainState, batch: Batch) -> Tensor:
        """One optimizer update on ``batch``; the mean loss, shape (), nats/token."""
        from torch import Tensor

        expected = "the mean loss, a tensor of shape ()"
        loss = self._hooks.call("train_step", Tensor, expected, state=state, batch=batch)
        if loss.ndim != 0:
            raise self._hooks.wrong("train_step", loss, expected)
        return loss

    def generate(self, model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
        """Continue ``prompt`` (B, P) int64: one tensor (B,) int64 a new token, as soon as it is known."""
        tokens = self._hooks.call(
            "generate", Iterator, "an iterator of tensors, one a new token",
            model=model, prompt=prompt, max_new_tokens=max_new_tokens, sampling=sampling,
        )  # fmt: skip
        return self._checked_tokens(tokens, batch_size=prompt.shape[0])

    def _checked_tokens(self, tokens: Iterator[Tensor], batch_size: int) -> Iterator[Tensor]:
        import torch

        try:
            for first in tokens:
                if not isinstance(first, torch.Tensor) or first.shape != (batch_size,) or first.dtype != torch.int64:
                    expected = f"an iterator of tensors of shape ({batch_size},) and dtype int64"
                    raise self._hooks.wrong("generate", first, expected, inside="an iterator that yields ")
                yield first
                break
            yield from tokens
        except ArchbenchError:
            raise
        except (Exception, SystemExit) as error:
            raise self._hooks.failed("generate", error) from error
        finally:
            if isinstance(tokens, Generator):  # also if the caller stops early
                tokens.close()

    def import_weights(self, state_dict: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Published weights, renamed and reshaped to the ``state_dict`` of this architecture's model.

        Raises:
            MissingHookError: the plugin has no such hook.
        """
        expected = "a dict of tensors by parameter name"
        return self._hooks.call("import_weights", dict, expected, state_dict=state_dict, config=config)

    def import_config(self, published: Mapping[str, Any]) -> ModelConfig:
        """This architecture's configuration for the content of a transformers ``config.json``.

        Raises:
            MissingHookError: the plugin has no such hook.
            CheckpointError: the configuration has a feature that this architecture lacks, or a field that the hook
                did not read and :data:`archbench.nn.published.IRRELEVANT` does not know.
        """
        from archbench.nn.published import FieldsRead

        kind, fields = self.info.config, FieldsRead(published)
        with plugin_code():
            config = self._hooks.call("import_config", kind, f"a {kind.__name__}", published=fields)
        fields.refuse_unread()
        return config

    def export_weights(self, state_dict: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """The ``state_dict`` of this architecture's model by published names: the inverse of :meth:`import_weights`.

        Raises:
            MissingHookError: the plugin has no such hook.
        """
        expected = "a dict of tensors by published name"
        return self._hooks.call("export_weights", dict, expected, state_dict=state_dict, config=config)

    def export_config(self, config: ModelConfig) -> dict[str, Any]:
        """The content of a transformers ``config.json`` for ``config``: the inverse of :meth:`import_config`.

        Raises:
            MissingHookError: the plugin has no such hook.
            UsageError: the published class cannot compute what this configuration does.
        """
        expected = "the content of a config.json, with model_type and architectures"
        published = self._hooks.call("export_config", dict, expected, config=config)
        if not {"model_type", "architectures"} <= published.keys():
            raise self._hooks.wrong("export_config", published, expected)
        return published

    def offers(self, hook: str) -> bool:
        """Whether the plugin has the optional hook of that name; wrappers around it do not count."""
        return self._hooks.offers(hook)
