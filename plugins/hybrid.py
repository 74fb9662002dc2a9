"""Griffin, the hybrid of De et al. 2024: two blocks with a gated linear recurrence to each one with local attention.

Paper: Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models (arXiv:2402.19427),
section 2. Published model and code: RecurrentGemma (arXiv:2404.07839), google-deepmind/recurrentgemma: ``paper`` is its
2B. Reference implementation: RecurrentGemmaForCausalLM of transformers, with which logits and gradients are compared.
What differs from them: docs/architectures.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, next_token_step
from archbench.errors import ConfigError
from archbench.kernels import linear
from archbench.nn import (
    RGLRU,
    CausalConv1d,
    DecoderOnly,
    GatedFeedForward,
    JoinedCache,
    KVCache,
    Linear,
    RMSNorm,
    Rotary,
    RotaryAttention,
    StateCache,
    exported_fields,
    exported_weights,
    inexpressible,
    published_fields,
    published_rope_theta,
    published_weights,
    unlike,
)

if TYPE_CHECKING:
    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch

GELU = partial(F.gelu, approximate="tanh")


class HybridConfig(ModelConfig):
    """Sizes of a Griffin; the defaults are RecurrentGemma-2B's."""

    vocab_size: int = Field(default=256_000, gt=0, description="V, number of token ids")
    context_length: int = Field(default=8192, gt=0, description="T, positions it is trained on and the most it reads")
    n_layer: int = Field(default=26, gt=0, description="L, blocks")
    pattern: str = Field(default="rra", pattern="^[ra]+$", description="blocks in turn: r recurrence, a attention")
    n_head: int = Field(
        default=10, gt=0, description="H, query heads of width D = d_model / n_head, and blocks of gates"
    )
    n_kv_head: int = Field(default=1, gt=0, description="G, key/value heads, a divisor of H")
    window: int = Field(default=2048, gt=0, description="W, positions that attention sees, its own included")
    d_model: int = Field(default=2560, gt=0, description="C, width of the hidden states")
    d_recurrent: int = Field(default=2560, gt=0, description="R, width of the recurrence")
    d_conv: int = Field(default=4, gt=0, description="positions that the convolution before the recurrence sees")
    d_ff: int = Field(default=7680, gt=0, description="F, width of the feed-forward layer")
    rope_theta: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies, without a unit")
    norm_eps: float = Field(default=1e-6, gt=0, description="added to the mean square in RMSNorm")
    logit_cap: float = Field(default=30.0, ge=0, description="c, logits are c · tanh(logits / c); 0 for no cap")

    @model_validator(mode="after")
    def _heads_share_the_widths(self) -> Self:
        # Half of a head's channels are rotated, in pairs.
        for field, share, factor in (("d_model", "heads of a multiple of 4", 4), ("d_recurrent", "equal blocks", 1)):
            if (width := getattr(self, field)) % (factor * self.n_head):
                cause = f"{width} channels do not make {self.n_head} {share}"
                raise ConfigError(f"HybridConfig.{field}", cause, f"Choose a multiple of {factor * self.n_head}")
        return self

    @property
    def mixers(self) -> str:
        """What each of the L blocks mixes positions by, r or a."""
        return (self.pattern * self.n_layer)[: self.n_layer]


class Recurrence(nn.Module):
    """A convolution over few positions and the RG-LRU, gated by a branch without either (section 2.3): (B, T, C).

    Attributes:
        branches: C -> 2R: the rows of the gate's branch, then the recurrent one's.
        join: R -> C.
    """

    def __init__(self, config: HybridConfig, layer: int) -> None:
        super().__init__()
        c, R = config, config.d_recurrent
        self.layer = layer
        self.branches = Linear(c.d_model, 2 * R)
        self.convolution = CausalConv1d(R, c.d_conv)
        self.recurrence = RGLRU(R, c.n_head)
        self.join = Linear(R, c.d_model)

    def new_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """What it keeps of the positions read: the convolution's (B, 3, R), and h (B, R), float32."""
        h = torch.zeros(batch_size, self.join.in_features, dtype=torch.float32, device=self.join.weight.device)
        return self.convolution.new_state(batch_size), h

    def forward(self, x: Tensor, cache: StateCache | None) -> Tensor:
        before, state = (None, None) if cache is None else cache.layers[self.layer]
        gate, x = self.branches(x).chunk(2, dim=-1)  # (B, T, R) each
        h = self.recurrence(self.convolution(x, before), state, first=cache is None or cache.length == 0)
        y: Tensor = self.join(GELU(gate) * h.to(gate.dtype))
        return y


class HybridCache(JoinedCache):
    """Keys and values of the last W positions, and recurrent states: of fixed size from position W on."""

    def __init__(self, attention: KVCache, recurrence: StateCache) -> None:
        super().__init__(attention, recurrence)
        self.attention, self.recurrence = attention, recurrence


class Block(nn.Module):
    """A mixer of positions and a feed-forward layer, each on a normalised copy of the residual stream (pre-norm)."""

    def __init__(self, config: HybridConfig, index: int) -> None:
        super().__init__()
        c, D = config, config.d_model // config.n_head
        kind = c.mixers[index]
        layer = c.mixers[:index].count(kind)  # among those of its kind
        self.mixer_norm = RMSNorm(c.d_model, c.norm_eps, gain_offset=1.0)
        self.mixer: Recurrence | RotaryAttention
        if kind == "r":
            self.mixer = Recurrence(c, layer)
        else:
            self.mixer = RotaryAttention(
                c.d_model, c.n_head, c.n_kv_head, D, layer=layer, window=c.window, out_bias=True
            )
        self.feed_forward_norm = RMSNorm(c.d_model, c.norm_eps, gain_offset=1.0)
        self.feed_forward = GatedFeedForward(c.d_model, c.d_ff, GELU, bias=True)  # GeGLU

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: HybridCache | None) -> Tensor:
        y = self.mixer_norm(x)
        if isinstance(self.mixer, Recurrence):
            y = self.mixer(y, None if cache is None else cache.recurrence)
        else:
            y = self.mixer(y, angles, None if cache is None else cache.attention)
        x = x + y
        return x + self.feed_forward(self.feed_forward_norm(x))


class Hybrid(DecoderOnly):
    """tokens (B, T) int64 -> logits (B, T, V). The output head is the token embedding; its logits are capped."""

    config: HybridConfig
    head_parameters = None  # type: ignore[assignment]  # the head is more than linear: no archbench LinearHeadModel

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        c = config
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        # Published: √C as bfloat16 has it, whatever the dtype.
        self.scale = float(torch.tensor(c.d_model**0.5, dtype=torch.bfloat16, device="cpu"))
        self.rotary = Rotary(c.d_model // c.n_head // 2, c.context_length, c.rope_theta)  # half of a head's channels
        self.blocks = nn.ModuleList(Block(c, index) for index in range(c.n_layer))
        self.norm = RMSNorm(c.d_model, c.norm_eps, gain_offset=1.0)
        self._initialise()

    def _initialise(self) -> None:
        """As published: what enters a layer keeps its variance, and what is added to the stream is 2 / L of it."""
        # The tied head makes of 1 / √C, published at a width of 2,560, a guess that tokens repeat where C is small.
        nn.init.normal_(self.embedding.weight, std=min(self.config.d_model**-0.5, 0.02))
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                added = name.endswith(("join", "mixer.out", "down"))
                variance = 2 / self.config.n_layer if added else 1.0
                nn.init.normal_(module.weight, std=(variance / module.in_features) ** 0.5)
            elif isinstance(module, CausalConv1d):
                nn.init.normal_(module.weight, std=(0.01 / module.width) ** 0.5)
            if isinstance(module, nn.Linear | CausalConv1d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def hidden(self, tokens: Tensor, cache: HybridCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        start = self.start(tokens, cache)
        angles = self.rotary(start, start + tokens.shape[1])
        x = self.embedding(tokens) * self.scale
        for block in self.blocks:
            x = block(x, angles, cache)
        return self.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        logits, cap = linear(hidden, self.embedding.weight), self.config.logit_cap
        return cap * torch.tanh(logits / cap) if cap else logits

    def new_cache(self, batch_size: int, capacity: int) -> HybridCache:
        """Room for the last W positions' keys and values, and recurrent states."""
        self.check_context("capacity", capacity)
        c, weight = self.config, self.embedding.weight
        attention = KVCache(
            layers=c.mixers.count("a"), batch_size=batch_size, heads=c.n_kv_head, capacity=capacity,
            head_width=c.d_model // c.n_head, like=weight, window=c.window,
        )  # fmt: skip
        mixers = [block.mixer for block in self.blocks if isinstance(block.mixer, Recurrence)]
        return HybridCache(attention, StateCache([mixer.new_state(batch_size) for mixer in mixers]))


PRESETS = {
    "nano": HybridConfig(
        vocab_size=1024, context_length=128, n_layer=3, n_head=3, window=32, d_model=192, d_recurrent=192, d_ff=320
    ),
    "small": HybridConfig(
        vocab_size=8192, context_length=256, n_layer=6, n_head=6, window=64, d_model=384, d_recurrent=384, d_ff=1024
    ),
    "paper": HybridConfig(),
}


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="hybrid",
        summary="Griffin: two gated linear recurrences to each sliding-window attention, GeGLU, capped logits",
        paper="De et al. 2024, Griffin: Mixing Gated Linear Recurrences with Local Attention, arXiv:2402.19427",
        config=HybridConfig,
        presets=PRESETS,
    )


@hookimpl
def build(config: HybridConfig) -> nn.Module:
    return Hybrid(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    return next_token_step(state, batch)


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


def _published_names() -> dict[str, str | tuple[str, ...]]:
    layer, mixer = "model.layers.*", "model.layers.*.temporal_block"
    names: dict[str, str | tuple[str, ...]] = {
        "embedding.weight": "model.embed_tokens.weight",
        "norm.weight": "model.final_norm.weight",
        "blocks.*.mixer_norm.weight": f"{layer}.temporal_pre_norm.weight",
        "blocks.*.feed_forward_norm.weight": f"{layer}.channel_pre_norm.weight",
        "blocks.*.mixer.qkv.weight": tuple(f"{mixer}.{part}_proj.weight" for part in "qkv"),
        "blocks.*.mixer.recurrence.decay": f"{mixer}.rg_lru.recurrent_param",
    }
    for kind in ("weight", "bias"):
        names |= {
            f"blocks.*.mixer.out.{kind}": f"{mixer}.o_proj.{kind}",
            f"blocks.*.mixer.branches.{kind}": (f"{mixer}.linear_y.{kind}", f"{mixer}.linear_x.{kind}"),
            f"blocks.*.mixer.convolution.{kind}": f"{mixer}.conv_1d.{kind}",
            f"blocks.*.mixer.recurrence.input_gate.{kind}": f"{mixer}.rg_lru.input_gate_{kind}",
            f"blocks.*.mixer.recurrence.recurrence_gate.{kind}": f"{mixer}.rg_lru.recurrent_gate_{kind}",
            f"blocks.*.mixer.join.{kind}": f"{mixer}.linear_out.{kind}",
            f"blocks.*.feed_forward.gate_up.{kind}": tuple(
                f"{layer}.mlp_block.{p}_proj.{kind}" for p in ("gate", "up")
            ),
            f"blocks.*.feed_forward.down.{kind}": f"{layer}.mlp_block.down_proj.{kind}",
        }
    return names


PUBLISHED_NAMES = _published_names()
"""A parameter here -> in transformers' RecurrentGemmaForCausalLM."""


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: HybridConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = Hybrid(config).state_dict()
    return published_weights(
        state_dict, expected, PUBLISHED_NAMES, model="RecurrentGemmaForCausalLM", tied_head="lm_head.weight"
    )


@hookimpl
def export_weights(state_dict: Mapping[str, Tensor], config: HybridConfig) -> dict[str, Tensor]:
    keys = config.d_model // config.n_head * config.n_kv_head
    return exported_weights(
        state_dict, PUBLISHED_NAMES, rows={"blocks.*.mixer.qkv.weight": (config.d_model, keys, keys)}
    )


PUBLISHED_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "window": "attention_window_size",
    "d_model": "hidden_size",
    "d_recurrent": "lru_width",
    "d_conv": "conv1d_width",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "logit_cap": "logits_soft_cap",
}
"""A field here -> in RecurrentGemmaConfig, which has no longest position: exports write one."""

ONLY = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "embeddings_scale_by_sqrt_dim": True,
    "partial_rotary_factor": 0.5,
    "tie_word_embeddings": True,
}
"""Fields there that have one value here."""

BLOCKS = {"r": "recurrent", "a": "attention"}


@hookimpl
def import_config(published: Mapping[str, Any]) -> HybridConfig:
    fields = published_fields(
        published, PUBLISHED_FIELDS, model_type="recurrent_gemma",
        absent={
            "max_position_embeddings": 8192, "num_key_value_heads": published.get("num_attention_heads"),
            "attention_window_size": 2048, "lru_width": published.get("hidden_size"), "conv1d_width": 4,
            "rms_norm_eps": 1e-6, "logits_soft_cap": 30.0,
        },
        only=ONLY,
    )  # fmt: skip
    fields["d_ff"] //= 2  # gate and up together there
    width, D = published.get("head_dim"), fields["d_model"] // fields["n_head"]
    if width not in (None, D):
        raise unlike("head_dim", f"it is {width}, and hidden_size / num_attention_heads is {D}")
    kinds = {kind: letter for letter, kind in BLOCKS.items()}
    blocks = published.get("block_types") or ["recurrent", "recurrent", "attention"]
    if unknown := [kind for kind in blocks if kind not in kinds]:
        raise unlike("block_types", f"it names {unknown[0]!r}, but this architecture has only {', '.join(kinds)}")
    pattern = "".join(kinds[kind] for kind in blocks)
    return HybridConfig(**fields, pattern=pattern, rope_theta=published_rope_theta(published, rotated=0.5))


@hookimpl
def export_config(config: HybridConfig) -> dict[str, Any]:
    if not config.logit_cap:
        raise inexpressible(config, "logit_cap", "a RecurrentGemmaForCausalLM always caps its logits")
    fields = exported_fields(
        config, PUBLISHED_FIELDS | {"rope_theta": "rope_theta"}, model_type="recurrent_gemma",
        architectures="RecurrentGemmaForCausalLM", only=ONLY,
    )  # fmt: skip
    blocks = [BLOCKS[letter] for letter in config.pattern]
    return {**fields, "intermediate_size": 2 * config.d_ff, "block_types": blocks}
