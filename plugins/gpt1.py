"""GPT-1, the decoder-only transformer of Radford et al. 2018: the baseline that everything else is compared with.

Paper: Improving Language Understanding by Generative Pre-Training, section 4.1.
Published code: openai/finetune-transformer-lm, train.py. What differs from it: docs/gpt1.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from archbench import ArchitectureInfo, ModelConfig, causal_attention, decode_with_cache, hookimpl, next_token_step
from archbench.errors import CheckpointError, ConfigError, UsageError
from archbench.kernels import linear
from archbench.nn import Dropout, KVCache, Linear, published_fields

if TYPE_CHECKING:
    from archbench import Sampling, TrainState
    from archbench.data.batches import Batch


class GPT1Config(ModelConfig):
    """Sizes and rates of a GPT-1; the defaults are the published ones."""

    vocab_size: int = Field(default=40_478, gt=0, description="V, number of token ids")
    context_length: int = Field(default=512, gt=0, description="T, positions with an embedding, the most it reads")
    n_layer: int = Field(default=12, gt=0, description="L, blocks")
    n_head: int = Field(default=12, gt=0, description="H, attention heads of width D = d_model / n_head")
    d_model: int = Field(default=768, gt=0, description="C, width of the hidden states")
    d_ff: int = Field(default=3072, gt=0, description="F, width of the feed-forward layer")
    embd_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on the sum of the two embeddings")
    resid_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on what each sublayer adds")
    attn_dropout: float = Field(default=0.1, ge=0, lt=1, description="probability, on the attention weights")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.d_model % self.n_head:
            cause = f"{self.n_head} heads do not divide d_model = {self.d_model}"
            raise ConfigError("GPT1Config.n_head", cause, "Choose one of its divisors")
        return self


class Block(nn.Module):
    """Attention and feed-forward, each added to its input and normalised after the sum (post-LN)."""

    def __init__(self, config: GPT1Config, layer: int) -> None:
        super().__init__()
        C = config.d_model
        self.layer, self.n_head, self.attn_dropout = layer, config.n_head, config.attn_dropout
        self.attn_in = Linear(C, 3 * C)  # queries, keys and values in one product
        self.attn_out = Linear(C, C)
        self.attn_norm = nn.LayerNorm(C, eps=1e-5)
        self.ff_in = Linear(C, config.d_ff)
        self.ff_out = Linear(config.d_ff, C)
        self.ff_norm = nn.LayerNorm(C, eps=1e-5)
        self.resid_dropout = Dropout(config.resid_dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = self.attn_norm(x + self.resid_dropout(self.attention(x, cache)))
        y: Tensor = self.ff_norm(x + self.resid_dropout(self.feed_forward(x)))
        return y

    def attention(self, x: Tensor, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.attn_in(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D), S positions read so far
        x = causal_attention(q, k, v, dropout=self.attn_dropout if self.training else 0.0)  # (B, H, T, D)
        return self.attn_out(x.transpose(1, 2).reshape(B, T, C))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.ff_out(F.gelu(self.ff_in(x), approximate="tanh"))


class GPT1(nn.Module):
    """tokens (B, T) int64 -> logits (B, T, V). The output head is the token embedding; no norm precedes it."""

    def __init__(self, config: GPT1Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.embd_dropout = Dropout(config.embd_dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, *, logits: bool = True) -> Tensor:
        hidden = self.hidden(tokens)
        return self.head(hidden) if logits else hidden

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) -> last hidden states (B, T, C); with a cache, the positions after those in it."""
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        if end > self.config.context_length:
            cause = f"position {end} is past the {self.config.context_length} that have an embedding"
            raise UsageError("tokens", cause, "Pass at most the context length")
        positions = self.position_embedding.weight[start:end]  # (T, C)
        x = self.embd_dropout(self.token_embedding(tokens) + positions)
        for block in self.blocks:
            x = block(x, cache)
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """hidden states (..., C) -> logits (..., V)."""
        return linear(hidden, self.token_embedding.weight)

    def head_parameters(self) -> tuple[Tensor, None]:
        """The head's weight (V, C) and its bias; see :class:`archbench.protocols.LinearHeadModel`."""
        return self.token_embedding.weight, None

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Room for the keys and values of ``capacity`` positions; see :class:`archbench.protocols.CachedModel`."""
        if capacity > self.config.context_length:
            cause = f"{capacity} is more positions than the {self.config.context_length} that have an embedding"
            raise UsageError("capacity", cause, "Ask for at most the context length")
        return KVCache(
            layers=self.config.n_layer,
            batch_size=batch_size,
            heads=self.config.n_head,
            capacity=capacity,
            head_width=self.config.d_model // self.config.n_head,
            like=self.token_embedding.weight,
        )

    def extend(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Read tokens (B, T) after those in the cache; logits (B, V) after the last one."""
        x = self.hidden(tokens, cache)
        cache.advance(tokens.shape[1])
        return self.head(x[:, -1])

    def forward_flops(self, batch_size: int, context_length: int) -> int:
        """Model FLOPs of a forward pass on tokens (B, T); see :class:`archbench.protocols.FlopsModel`.

        2 a multiply–add. Attention counts over the whole T × T square, by convention.
        """
        c = self.config
        C = c.d_model
        block = 3 * C * C + C * C + C * c.d_ff + c.d_ff * C  # weights: queries, keys, values; attn_out; ff_in; ff_out
        square = 2 * context_length * C  # a position's scores with T keys, and its mixture of T values, in all heads
        head = C * c.vocab_size
        return batch_size * context_length * 2 * (c.n_layer * (block + square) + head)


PRESETS = {
    "nano": GPT1Config(
        vocab_size=1024, context_length=128, n_layer=2, n_head=6, d_model=192, d_ff=768,
        embd_dropout=0.0, resid_dropout=0.0, attn_dropout=0.0,
    ),
    "small": GPT1Config(vocab_size=8192, context_length=256, n_layer=6, n_head=6, d_model=384, d_ff=1536),
    "paper": GPT1Config(),
}  # fmt: skip


@hookimpl
def describe() -> ArchitectureInfo:
    return ArchitectureInfo(
        name="gpt1",
        summary="Post-LN decoder-only transformer with learned positions: the baseline",
        paper="Radford et al. 2018, Improving Language Understanding by Generative Pre-Training",
        config=GPT1Config,
        presets=PRESETS,
    )


@hookimpl
def build(config: GPT1Config) -> nn.Module:
    return GPT1(config)


@hookimpl
def train_step(state: TrainState, batch: Batch) -> Tensor:
    return next_token_step(state, batch)


@hookimpl
def generate(model: nn.Module, prompt: Tensor, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    return decode_with_cache(model, prompt, max_new_tokens, sampling)


PUBLISHED_NAMES = {
    "token_embedding": "tokens_embed",
    "position_embedding": "positions_embed",
    "blocks": "h",
    "attn_in": "attn.c_attn",
    "attn_out": "attn.c_proj",
    "attn_norm": "ln_1",
    "ff_in": "mlp.c_fc",
    "ff_out": "mlp.c_proj",
    "ff_norm": "ln_2",
}
"""A module's name here -> in transformers' OpenAIGPTLMHeadModel, whose checkpoints hold the published weights."""


@hookimpl
def import_weights(state_dict: Mapping[str, Tensor], config: GPT1Config) -> dict[str, Tensor]:
    """The weights of an OpenAIGPTLMHeadModel, or of its ``transformer`` alone, as a state dict of :class:`GPT1`.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape than ``config`` asks for, or an untied head.
    """
    given = {name.removeprefix("transformer."): tensor for name, tensor in state_dict.items()}
    given = {
        name: tensor for name, tensor in given.items() if not name.endswith((".attn.bias", "position_ids"))
    }  # masks
    head = given.pop("lm_head.weight", None)
    if head is not None and not torch.equal(given.setdefault("tokens_embed.weight", head), head):
        raise _unusable("lm_head.weight", "it differs from tokens_embed.weight, and GPT-1's head is tied to it")
    with torch.device("meta"):
        expected = GPT1(config).state_dict()
    published = {".".join(PUBLISHED_NAMES.get(part, part) for part in name.split(".")): name for name in expected}
    if missing := sorted(published.keys() - given.keys()):
        raise _unusable(missing[0], f"it is missing, one of {len(missing)} that are")
    if unexpected := sorted(given.keys() - published.keys()):
        raise _unusable(unexpected[0], f"a GPT-1 of {config.n_layer} layers has no such tensor")
    weights = {}
    for name, ours in published.items():
        # The published projections are stored (in, out), as the 1x1 convolutions that they are in the code.
        tensor = given[name].t().contiguous() if ".c_" in name and given[name].dim() == 2 else given[name]
        if tensor.shape != expected[ours].shape:
            raise _unusable(
                name, f"as {ours} its shape is {(*tensor.shape,)}, the configuration's {(*expected[ours].shape,)}"
            )
        weights[ours] = tensor
    return weights


def _unusable(name: str, cause: str) -> CheckpointError:
    remedy = "Pass the weights of an OpenAIGPTLMHeadModel, and --set the sizes (vocab_size, n_layer, …) that they have"
    return CheckpointError(f"gpt1's weights, tensor {name}", cause, remedy)


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
"""A field here -> in transformers' OpenAIGPTConfig."""


@hookimpl
def import_config(published: Mapping[str, Any]) -> GPT1Config:
    fields = published_fields(
        published, PUBLISHED_FIELDS, model_type="openai-gpt",
        absent={"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1},
        # afn "gelu" is the tanh form there; newer files leave the tied head unsaid.
        only={"afn": "gelu", "layer_norm_epsilon": 1e-5, "n_special": 0, "tie_word_embeddings": True},
    )  # fmt: skip
    return GPT1Config(**fields, d_ff=4 * fields["d_model"])
