"""Mixtral, the decoder of Jiang et al. 2024: Mistral's blocks with eight experts in place of each feed-forward layer.

Paper: Mixtral of Experts (arXiv:2401.04088), section 2. Each token is sent to two of a layer's eight experts, so that
of the published 46.7 billion parameters 12.9 billion are active.
Reference implementation: MixtralForCausalLM of transformers, with which logits, losses and gradients are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, linear_cross_entropy
from archbench.nn import (
    LLAMA_ATTENTION_FIELDS,
    LLAMA_FIELDS,
    LLAMA_NAMES,
    DecoderOnly,
    KVCache,
    RMSNorm,
    Rotary,
    RotaryAttention,
    Routing,
    SparseExperts,
    exported_fields,
    exported_weights,
    llama_rows,
    load_balancing_loss,
    published_fields,
    published_rope_theta,
    published_weights,
)

if TYPE_CHECKING:
    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch
    from archbench.nn.published import Source


class MixtralConfig(ModelConfig):
    """Sizes of a Mixtral; the defaults are those of the published 8x7B."""

    vocab_size: int = Field(default=32_000, gt=0, description="V, number of token ids")
    context_length: int = Field(default=32_768, gt=0, description="T, positions it is trained on and the most it reads")
    n_layer: int = Field(default=32, gt=0, description="L, blocks")
    n_head: int = Field(default=32, gt=0, description="H, query heads")
    n_kv_head: int = Field(default=8, gt=0, description="G, key/value heads, a divisor of H")
    d_model: int = Field(default=4096, gt=0, description="C, width of the hidden states")
    d_head: int = Field(default=128, gt=0, description="D, width of a head, even")
    d_ff: int = Field(default=14_336, gt=0, description="F, width of one expert")
    n_expert: int = Field(default=8, gt=0, description="E, experts of a layer")
    n_active: int = Field(default=2, gt=0, description="experts that a token is sent to, at most E")
    window: int | None = Field(default=None, gt=0, description="W, positions that each position sees; null for all")
    rope_theta: float = Field(default=1_000_000.0, gt=0, description="base of the rotary frequencies, without a unit")
    norm_eps: float = Field(default=1e-5, gt=0, description="added to the mean square in RMSNorm")
    router_aux_loss_coef: float = Field(default=0.02, ge=0, description="weight of the balancing loss, without a unit")


class Block(nn.Module):
    """Attention and experts, each on a normalised copy of the residual stream and added to it (pre-norm)."""

    def __init__(self, config: MixtralConfig, layer: int) -> None:
        super().__init__()
        c = config
        self.attention_norm = RMSNorm(c.d_model, c.norm_eps)
        self.attention = RotaryAttention(c.d_model, c.n_head, c.n_kv_head, c.d_head, layer=layer, window=c.window)
        self.experts_norm = RMSNorm(c.d_model, c.norm_eps)
        self.experts = SparseExperts(c.d_model, c.d_ff, c.n_expert, c.n_active, F.silu)  # SwiGLU

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: KVCache | None) -> tuple[Tensor, Routing]:
        x = x + self.attention(self.attention_norm(x), angles, cache)
        mixed, routing = self.experts(self.experts_norm(x))
        return x + mixed, routing


class Mixtral(DecoderOnly):
    """tokens (B, T) int64 -> logits (B, T, V)."""

    config: MixtralConfig

    def __init__(self, config: MixtralConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.rotary = Rotary(config.d_head, config.context_length, config.rope_theta)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(  # type: ignore[override]  # a pair where the balancing loss is asked for
        self, tokens: Tensor, *, logits: bool = True, balance: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, T, V), or hidden states (B, T, C); with ``balance`` also the balancing loss, shape ()."""
        hidden, routings = self.read(tokens)
        out = self.head(hidden) if logits else hidden
        return (out, load_balancing_loss(routings)) if balance else out

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        return self.read(tokens, cache)[0]

    def read(self, tokens: Tensor, cache: KVCache | None = None) -> tuple[Tensor, list[Routing]]:
        """:meth:`hidden`, and where each layer sent the tokens."""
        start = self.start(tokens, cache)
        angles = self.rotary(start, start + tokens.shape[1])
        x, routings = self.embedding(tokens), []
        for block in self.blocks:
            x, routing = block(x, angles, cache)
            routings.append(routing)
        return self.norm(x), routings

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Room for the keys and values of ``capacity`` positions, or of the last W where there is a window."""
        self.check_context("capacity", capacity)
        c = self.config
        return KVCache(
            layers=c.n_layer, batch_size=batch_size, heads=c.n_kv_head, capacity=capacity, head_width=c.d_head,
            like=self.embedding.weight, window=c.window,
        )  # fmt: skip


PRESETS = {
    "nano": MixtralConfig(
        vocab_size=1024, context_length=128, n_layer=2, n_head=6, n_kv_head=2, d_model=192, d_head=32, d_ff=192
    ),
    "small": MixtralConfig(
        vocab_size=8192, context_length=256, n_layer=6, n_head=6, n_kv_head=2, d_model=384, d_head=64, d_ff=512
    ),
    "paper": MixtralConfig(),
}


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="mixtral",
        summary="Mistral's blocks with a sparse mixture of experts: each token is sent to two of eight",
        paper="Jiang et al. 2024, Mixtral of Experts, arXiv:2401.04088",
        config=MixtralConfig,
        presets=PRESETS,
    )


@hookimpl
def build(config: MixtralConfig) -> nn.Module:
    return Mixtral(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    """One update on the cross-entropy plus a share of the balancing loss, which is not in the loss reported."""
    model = state.module
    assert isinstance(model, Mixtral)
    mean_loss = torch.zeros((), device=state.device)
    for micro in state.split(batch):
        with state.autocast():
            hidden, balance = state.model(micro.inputs, logits=False, balance=True)  # (B, T, C), ()
            loss = linear_cross_entropy(hidden, model.head_parameters()[0], micro.targets)
        share = micro.targets.numel() / batch.targets.numel()
        state.backward(loss + model.config.router_aux_loss_coef * balance, share)
        mean_loss += share * loss.detach()
    state.update()
    return mean_loss


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


PUBLISHED_NAMES: dict[str, Source] = {
    **LLAMA_NAMES,
    "blocks.*.experts_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "blocks.*.experts.router.weight": "model.layers.*.mlp.gate.weight",
    "blocks.*.experts.gate_up": "model.layers.*.mlp.experts.gate_up_proj",
    "blocks.*.experts.down": "model.layers.*.mlp.experts.down_proj",
}
"""A parameter here -> in a MixtralForCausalLM of transformers 5, which holds a layer's experts in one tensor."""


def checkpoint_names(n_expert: int) -> dict[str, Source]:
    """A parameter here -> in the published files, which hold each expert by itself: w1 its gate, w3 up, w2 down."""
    layer = "model.layers.*.block_sparse_moe"
    experts = [f"{layer}.experts.{expert}" for expert in range(n_expert)]
    return {
        **PUBLISHED_NAMES,
        "blocks.*.experts.router.weight": f"{layer}.gate.weight",
        "blocks.*.experts.gate_up": [(f"{expert}.w1.weight", f"{expert}.w3.weight") for expert in experts],
        "blocks.*.experts.down": [(f"{expert}.w2.weight",) for expert in experts],
    }


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: MixtralConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = Mixtral(config).state_dict()
    apart = any(".block_sparse_moe." in name for name in state_dict)
    names = checkpoint_names(config.n_expert) if apart else PUBLISHED_NAMES
    return published_weights(state_dict, expected, names, model="MixtralForCausalLM")


PUBLISHED_FIELDS = {
    **LLAMA_FIELDS,
    "n_kv_head": "num_key_value_heads",
    "n_expert": "num_local_experts",
    "n_active": "num_experts_per_tok",
    "router_aux_loss_coef": "router_aux_loss_coef",
}
"""A field here -> in transformers' MixtralConfig."""

ONLY = {"hidden_act": "silu", "tie_word_embeddings": False, "router_jitter_noise": 0.0}
"""Fields there that have one value here."""


@hookimpl
def import_config(published: Mapping[str, Any]) -> MixtralConfig:
    fields = published_fields(
        published, PUBLISHED_FIELDS, model_type="mixtral", absent={"router_aux_loss_coef": 0.001}, only=ONLY
    )  # fmt: skip
    fields["window"] = published.get("sliding_window")
    fields["d_head"] = published.get("head_dim") or fields["d_model"] // fields["n_head"]
    return MixtralConfig(**fields, rope_theta=published_rope_theta(published, absent=1_000_000.0))


@hookimpl
def export_weights(state_dict: Mapping[str, Tensor], config: MixtralConfig) -> dict[str, Tensor]:
    return exported_weights(state_dict, checkpoint_names(config.n_expert), rows=llama_rows(config))


@hookimpl
def export_config(config: MixtralConfig) -> dict[str, Any]:
    fields = {**PUBLISHED_FIELDS, **LLAMA_ATTENTION_FIELDS, "window": "sliding_window"}
    return exported_fields(config, fields, model_type="mixtral", architectures="MixtralForCausalLM", only=ONLY)
