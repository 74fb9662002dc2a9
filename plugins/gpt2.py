"""GPT-2, the decoder-only transformer of Radford et al. 2019: GPT-1 with the norms moved before each sublayer.

Paper: Language Models are Unsupervised Multitask Learners, section 2.3. Published code: openai/gpt-2, src/model.py.
Reference implementation: GPT2LMHeadModel of transformers, with which logits and gradients are compared. With
``bias=False`` it is the model of karpathy/nanoGPT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from archbench import ArchitectureInfo, ModelConfig, causal_attention, decode_with_cache, hookimpl, next_token_step
from archbench.errors import ConfigError
from archbench.nn import DecoderOnly, Dropout, KVCache, Linear, published_fields, published_weights

if TYPE_CHECKING:
    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch


class GPT2Config(ModelConfig):
    """Sizes and rates of a GPT-2; the defaults are those of the published 124M model."""

    vocab_size: int = Field(default=50_257, gt=0, description="V, number of token ids")
    context_length: int = Field(default=1024, gt=0, description="T, positions with an embedding, the most it reads")
    n_layer: int = Field(default=12, gt=0, description="L, blocks")
    n_head: int = Field(default=12, gt=0, description="H, attention heads of width D = d_model / n_head")
    d_model: int = Field(default=768, gt=0, description="C, width of the hidden states")
    d_ff: int = Field(default=3072, gt=0, description="F, width of the feed-forward layer")
    bias: bool = Field(default=True, description="whether projections and norms have biases")
    embd_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on the sum of the two embeddings")
    resid_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on what each sublayer adds")
    attn_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on the attention weights")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.d_model % self.n_head:
            cause = f"{self.n_head} heads do not divide d_model = {self.d_model}"
            raise ConfigError("GPT2Config.n_head", cause, "Choose one of its divisors")
        return self


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised copy of the residual stream and added to it (pre-LN)."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        C, bias = config.d_model, config.bias
        self.layer, self.n_head, self.attn_dropout = layer, config.n_head, config.attn_dropout
        self.attn_norm = nn.LayerNorm(C, eps=1e-5, bias=bias)
        self.attn_in = Linear(C, 3 * C, bias=bias)  # queries, keys and values in one product
        self.attn_out = Linear(C, C, bias=bias)
        self.ff_norm = nn.LayerNorm(C, eps=1e-5, bias=bias)
        self.ff_in = Linear(C, config.d_ff, bias=bias)
        self.ff_out = Linear(config.d_ff, C, bias=bias)
        self.resid_dropout = Dropout(config.resid_dropout)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.resid_dropout(self.attention(self.attn_norm(x), cache))
        return x + self.resid_dropout(self.feed_forward(self.ff_norm(x)))

    def attention(self, x: Tensor, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.attn_in(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D), S positions read so far
        x = causal_attention(q, k, v, dropout=self.attn_dropout if self.training else 0.0)  # (B, H, T, D)
        return self.attn_out(x.transpose(1, 2).reshape(B, T, C))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.ff_out(F.gelu(self.ff_in(x), approximate="tanh"))


class GPT2(DecoderOnly):
    """tokens (B, T) int64 -> logits (B, T, V). The output head is the token embedding."""

    config: GPT2Config

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.embd_dropout = Dropout(config.embd_dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model, eps=1e-5, bias=config.bias)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith(("attn_out.weight", "ff_out.weight")):  # what adds to the residual stream, 2L times
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        start = self.start(tokens, cache)
        positions = self.position_embedding.weight[start : start + tokens.shape[1]]  # (T, C)
        x = self.embd_dropout(self.embedding(tokens) + positions)
        for block in self.blocks:
            x = block(x, cache)
        y: Tensor = self.norm(x)
        return y

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Room for the keys and values of ``capacity`` positions."""
        self.check_context("capacity", capacity)
        c = self.config
        return KVCache(
            layers=c.n_layer, batch_size=batch_size, heads=c.n_head, capacity=capacity,
            head_width=c.d_model // c.n_head, like=self.embedding.weight,
        )  # fmt: skip


PRESETS = {
    "nano": GPT2Config(
        vocab_size=1024, context_length=128, n_layer=2, n_head=6, d_model=192, d_ff=768,
        embd_dropout=0.0, resid_dropout=0.0, attn_dropout=0.0,
    ),
    "small": GPT2Config(vocab_size=8192, context_length=256, n_layer=6, n_head=6, d_model=384, d_ff=1536),
    "paper": GPT2Config(),
}  # fmt: skip


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="gpt2",
        summary="Pre-LN decoder-only transformer with learned positions and a final norm",
        paper="Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
        config=GPT2Config,
        presets=PRESETS,
    )


@hookimpl
def build(config: GPT2Config) -> nn.Module:
    return GPT2(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    return next_token_step(state, batch)


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


MODULES = {
    "embedding": "wte",
    "position_embedding": "wpe",
    "blocks.*.attn_norm": "h.*.ln_1",
    "blocks.*.attn_in": "h.*.attn.c_attn",
    "blocks.*.attn_out": "h.*.attn.c_proj",
    "blocks.*.ff_norm": "h.*.ln_2",
    "blocks.*.ff_in": "h.*.mlp.c_fc",
    "blocks.*.ff_out": "h.*.mlp.c_proj",
    "norm": "ln_f",
}
"""A module here -> in transformers' GPT2LMHeadModel."""


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    given = {name.removeprefix("transformer."): tensor for name, tensor in state_dict.items()}
    masks = (".attn.bias", ".attn.masked_bias")
    given = {name: tensor for name, tensor in given.items() if not name.endswith(masks)}
    with torch.device("meta"):
        expected = GPT2(config).state_dict()
    names = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in MODULES.items() for kind in ("weight", "bias")}
    projections = {f"blocks.*.{name}.weight" for name in ("attn_in", "attn_out", "ff_in", "ff_out")}
    return published_weights(
        given, expected, names, model="GPT2LMHeadModel", transposed=projections, tied_head="lm_head.weight"
    )


PUBLISHED_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "d_model": "n_embd",
    "embd_dropout": "embd_pdrop",
    "resid_dropout": "resid_pdrop",
    "attn_dropout": "attn_pdrop",
}
"""A field here -> in transformers' GPT2Config."""


@hookimpl
def import_config(published: Mapping[str, Any]) -> GPT2Config:
    fields = published_fields(
        published, PUBLISHED_FIELDS, model_type="gpt2",
        absent={"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1},
        only={
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
            "scale_attn_by_inverse_layer_idx": False,
        },
    )  # fmt: skip
    return GPT2Config(**fields, d_ff=published.get("n_inner") or 4 * fields["d_model"])
