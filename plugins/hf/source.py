"""The sources ``hf`` and ``hf-code``: what they lead to, as a plugin with the same hooks as any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from archbench import ArchitectureInfo, decode_with_cache, decode_without_cache, hookimpl, next_token_step
from archbench.errors import CheckpointError, PluginImportError, one_line
from archbench.hookspecs import CodeOfName, Located

from .code_beside import Import, imported_code, kept_code
from .foreign_config import OWN_CACHE, Code, HFConfig, kept_sizes, sizes_of
from .published_place import Place, found

if TYPE_CHECKING:
    from torch import Tensor, nn

    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch

CONTEXTS = {"nano": 128, "small": 256, "paper": None}
"""Most positions of each preset; the sizes are always those of the configuration."""


def located(place: str) -> Located:
    """The architecture of a ``config.json``, or of a folder with its weights.

    Raises:
        PluginImportError: transformers is not installed.
        UnknownNameError, CheckpointError: as :func:`found`, or transformers does not know or accept it.
    """
    _require_transformers(f"hf:{place}")
    return _located("hf", found(place))


class CodeBeside:
    """The source ``hf-code``: the same, built by the code beside the configuration."""

    def __call__(self, name: str, module: Import) -> Located:
        """The architecture ``LABEL@DIGEST``; ``module`` imports its code.

        Raises:
            CheckpointError: as :func:`located`, or the code has not what ``auto_map`` names.
            PluginImportError: the code cannot be imported.
        """
        one = found(name, with_code=True)
        return _located("hf-code", one, imported_code(one.published, module))

    def code(self, place: str) -> CodeOfName:
        """What would run; nothing of it runs here.

        Raises:
            PluginImportError, UnknownNameError, CheckpointError: as :func:`located`.
        """
        _require_transformers(f"hf-code:{place}")
        one = found(place, with_code=True)
        return CodeOfName(one.name, kept_code(one.name), str(one.code))


located_with_code = CodeBeside()


def _require_transformers(name: str) -> None:
    if find_spec("transformers") is None:
        raise PluginImportError(name, "it needs the package transformers", "Run: pip install 'archbench[hf]'")


def _located(prefix: str, one: Place, code: Code | None = None) -> Located:
    by = "" if code is None else " by the code beside it"
    return Located(
        name=one.name,
        plugin=ForeignArchitecture(f"{prefix}:{one.name}", one, code),
        package=f"transformers {one.published['model_type']}{by} ({one.source})",
        version=metadata.version("transformers"),
        revision=one.code or one.revision,
        weights=one.weights,
        sample=one.sample,
    )


class ForeignArchitecture:
    """The hooks of one configuration."""

    def __init__(self, name: str, place: Place, code: Code | None) -> None:
        published = place.published
        config: type[HFConfig] = HFConfig if code is None else type("HFCodeConfig", (HFConfig,), {"code": code})
        kept = kept_sizes(published, code)
        stay = f", and keeps {', '.join(kept)}" if kept else ""
        kind, by = published["model_type"], "transformers" if code is None else "the code beside it"
        decoding = "; decodes without a cache, as it refuses transformers' static one" if kind in OWN_CACHE else ""
        self._info = ArchitectureInfo(
            name=name,
            summary=f"{kind} by {by}; matching varies {', '.join(sizes_of(published, code))}{stay}{decoding}",
            paper=f"{place.source}, {place.revision}",
            config=config,
            presets={name: config.of(published, longest=longest) for name, longest in CONTEXTS.items()},
        )

    @hookimpl
    def describe(self) -> ArchitectureInfo:
        return self._info

    @hookimpl
    def build(self, config: HFConfig) -> nn.Module:
        from .foreign_model import built

        return built(config)

    @hookimpl
    def train_step(self, state: TrainState, batch: Batch) -> Tensor:
        return next_token_step(state, batch)

    @hookimpl
    def generate(self, model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
        from .foreign_model import CachedForeignModel

        decode = decode_with_cache if isinstance(model, CachedForeignModel) else decode_without_cache
        return decode(model, prompt, max_new_tokens, sampling)

    @hookimpl
    def import_weights(self, state_dict: Mapping[str, Tensor], config: HFConfig) -> dict[str, Tensor]:
        import torch

        from .foreign_model import family_of

        try:  # by transformers' own reader, which knows older names and layouts
            with _without_progress_bar():
                model, report = family_of(config).from_pretrained(
                    None,
                    config=config.as_transformers(),
                    state_dict={**state_dict},
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except RuntimeError as error:
            raise _unusable(one_line(error)) from None
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if names := sorted(map(str, report[what])):
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise _unusable(f"{what.replace('_keys', ' tensors')}: {names[0]}{more}")
        return {f"inner.{name}": tensor for name, tensor in model.state_dict().items()}

    @hookimpl
    def import_config(self, published: Mapping[str, Any]) -> HFConfig:
        return self._info.config.of({**published})  # type: ignore[attr-defined,no-any-return]

    @hookimpl
    def export_weights(self, state_dict: Mapping[str, Tensor], config: HFConfig) -> dict[str, Tensor]:
        from .foreign_model import published_weights

        return published_weights(config, state_dict)

    @hookimpl
    def export_config(self, config: HFConfig) -> dict[str, Any]:
        from .foreign_model import family_of

        fields = config.fields()
        if config.code is None:
            fields.pop("auto_map", None)  # transformers' own class computed it, not the code that this names
        return {**fields, "architectures": [family_of(config).__name__]}


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Within this context transformers draws none: progress is archbench's to show, and --quiet shows none."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _unusable(cause: str) -> CheckpointError:
    return CheckpointError("weights", f"they do not fit the configuration ({cause})", "Get both from one source")
