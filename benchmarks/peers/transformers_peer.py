"""transformers' model of the same configuration and weights, as the plugin's own export hooks give them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peers.contender import Cell, Contender, UnavailableError

SETTINGS = {"mamba2": {"chunk_size": 32}}
"""Settings of speed alone that are faster here than transformers' own."""


class Transformers(Contender):
    """With a cache that grows. ``logits_to_keep`` spares it the logits of a prompt that nobody reads."""

    static = False

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell, self.published(cell))
        arguments = inspect.signature(type(self.model).forward).parameters
        self.cache_name = next((name for name in ("cache", "past_key_values") if name in arguments), None)
        self.cached = self.cache_name is not None
        if self.static and cell.job == "train":
            raise UnavailableError("no cache takes part in training")
        self.router_loss = getattr(cell.config, "router_aux_loss_coef", 0.0)

    def published(self, cell: Cell) -> nn.Module:
        return same_model(cell)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        given = {"use_cache": False} if self.cached else {}
        if self.router_loss:  # which our training step adds to the gradient, and not to the loss that it returns
            output = self.model(inputs, output_router_logits=True, **given)
            loss = F.cross_entropy(output.logits.flatten(0, 1).float(), targets.flatten())
            balance = self.router_loss * output.aux_loss
            return loss + (balance - balance.detach())
        return F.cross_entropy(self.model(inputs, **given).logits.flatten(0, 1).float(), targets.flatten())

    def decode(self, prompt: Tensor, new_tokens: int) -> Iterator[Tensor]:
        if self.cache_name is None:
            yield from super().decode(prompt, new_tokens)
            return
        cache, tokens = self.new_cache(prompt.shape[1] + new_tokens), prompt
        for _ in range(new_tokens):
            with torch.inference_mode():
                output = self.model(tokens, **{self.cache_name: cache}, use_cache=True, logits_to_keep=1)
                tokens = output.logits[:, -1].argmax(-1, keepdim=True)
            yield tokens[:, 0]

    def last_logits(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens, logits_to_keep=1).logits[:, -1]
        return logits

    def new_cache(self, capacity: int) -> Any:
        import transformers

        if self.static:
            return transformers.StaticCache(config=self.model.config, max_cache_len=capacity)
        return transformers.DynamicCache(config=self.model.config)


class TransformersStatic(Transformers):
    """With a cache that is allocated for all positions, over which attention is masked."""

    static = True


class TransformersGPT2(Transformers):
    """Beside GPT-1: the nearest model in transformers that has a cache and fused attention."""

    why_not = "GPT-2 norms before each sublayer, not after it"

    def published(self, cell: Cell) -> nn.Module:
        import transformers

        c = cell.config
        rates = {"resid_pdrop": c.resid_dropout, "embd_pdrop": c.embd_dropout, "attn_pdrop": c.attn_dropout}
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=c.vocab_size, n_positions=c.context_length, n_embd=c.d_model, n_layer=c.n_layer,
                n_head=c.n_head, n_inner=c.d_ff, bos_token_id=None, eos_token_id=None, **rates,
            )
        )  # fmt: skip


def same_model(cell: Cell) -> nn.Module:
    import transformers

    from olmo_hybrid import without_fla

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with without_fla():
        if cell.architecture == "gated-deltanet":
            return _olmo_hybrid(cell)
        fields = dict(cell.plugin.export_config(cell.config)) | SETTINGS.get(cell.architecture, {})
        fields |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        family = getattr(transformers, fields["architectures"][0])  # by its name: fla registers others of the same type
        model: nn.Module = family.from_pretrained(
            None, config=family.config_class(**fields), state_dict=cell.published_weights, dtype=torch.float32
        )
    return model


def _olmo_hybrid(cell: Cell) -> nn.Module:
    """OLMo Hybrid's blocks are those of Gated DeltaNet; its names and layout of them are looked at by a test."""
    from olmo_hybrid import published_model, published_names

    model = published_model(cell.config)
    given = cell.published_weights
    model.tie_weights()
    with torch.no_grad():
        names = published_names(model.state_dict(), cell.config.n_head * cell.config.d_head)
        for name, tensor in names.items():
            tensor.copy_(given[name.replace("lm_head", "model.embeddings") if name not in given else name])
    return model
