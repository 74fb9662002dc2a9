"""The source ``hf``: what ``hf:PLACE`` leads to, as a plugin with the same hooks as any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from archbench import ArchitectureInfo, decode_with_cache, decode_without_cache, hookimpl, next_token_step
from archbench.errors import CheckpointError, PluginImportError, one_line
from archbench.hookspecs import Located

from .foreign_config import OWN_CACHE, HFConfig, kept_sizes, sizes_of, transformers_config
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
    if find_spec("transformers") is None:
        raise PluginImportError(f"hf:{place}", "it needs the package transformers", "Run: pip install 'archbench[hf]'")
    one = found(place)
    return Located(
        name=one.name,
        plugin=ForeignArchitecture(one),
        package=f"transformers {one.published['model_type']} ({one.source})",
        version=metadata.version("transformers"),
        revision=one.revision,
        weights=one.weights,
    )


class ForeignArchitecture:
    """The hooks of one configuration."""

    def __init__(self, place: Place) -> None:
        published = place.published
        kind = transformers_config(published).model_type
        kept = kept_sizes(published)
        stay = f", and keeps {', '.join(kept)}" if kept else ""
        decoding = "; decodes without a cache, as it refuses transformers' static one" if kind in OWN_CACHE else ""
        self._info = ArchitectureInfo(
            name=f"hf:{place.name}",
            summary=f"{kind} by transformers; matching varies {', '.join(sizes_of(published))}{stay}{decoding}",
            paper=f"{place.source}, {place.revision}",
            config=HFConfig,
            presets={name: HFConfig.of(published, longest=longest) for name, longest in CONTEXTS.items()},
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

        wanted = transformers_config(config.fields())
        try:  # by transformers' own reader, which knows older names and layouts
            with _without_progress_bar():
                model, report = family_of(wanted).from_pretrained(
                    None, config=wanted, state_dict={**state_dict}, dtype=torch.float32, output_loading_info=True
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
        return HFConfig.of({**published})

    @hookimpl
    def export_weights(self, state_dict: Mapping[str, Tensor], config: HFConfig) -> dict[str, Tensor]:
        from .foreign_model import published_weights

        return published_weights(config, state_dict)

    @hookimpl
    def export_config(self, config: HFConfig) -> dict[str, Any]:
        from .foreign_model import family_of

        fields = config.fields()
        return {**fields, "architectures": [family_of(transformers_config(fields)).__name__]}


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
