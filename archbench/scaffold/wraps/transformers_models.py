"""Four families of transformers (pip install transformers), each at a small size, with its static cache."""

from typing import Literal

from pydantic import Field
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from archbench import ArchitectureInfo, ModelConfig, decode_with_cache, hookimpl, next_token_step
from archbench.errors import UsageError

OPTIONS = {
    "qwen3": {"head_dim": 8, "num_key_value_heads": 2},
    "gemma3_text": {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gpt_neox": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}
"""Family -> fields of its configuration besides those that all have."""


class Config(ModelConfig):
    family: Literal["qwen3", "gemma3_text", "gpt_neox", "olmoe"] = Field(
        "qwen3", description="transformers' model_type"
    )
    n_layer: int = Field(2, gt=0, description="L, blocks")
    n_head: int = Field(4, gt=0, description="H, query heads, a divisor of C")
    d_model: int = Field(32, gt=0, description="C, width")
    d_ff: int = Field(64, gt=0, description="F, width of the feed-forward layer")


class Cache:
    def __init__(self, published, batch_size, capacity, like):
        self.static = StaticCache(config=published, max_cache_len=capacity)
        heads = getattr(published, "num_key_value_heads", None) or published.num_attention_heads
        width = getattr(published, "head_dim", None) or published.hidden_size // published.num_attention_heads
        # Otherwise it allocates at the first token, and its size could not be told from a new cache.
        self.static.early_initialization(batch_size, heads, width, like.dtype, like.device)
        self.length = 0

    def tensors(self):
        return [tensor for layer in self.static.layers for tensor in (layer.keys, layer.values)]  # (B, G, S, D) each


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        published = AutoConfig.for_model(
            config.family, vocab_size=config.vocab_size, max_position_embeddings=config.context_length,
            num_hidden_layers=config.n_layer, num_attention_heads=config.n_head, hidden_size=config.d_model,
            intermediate_size=config.d_ff, bos_token_id=None, eos_token_id=None, pad_token_id=None,
            **OPTIONS[config.family],
        )  # fmt: skip
        self.inner = AutoModelForCausalLM.from_config(published, attn_implementation="sdpa")

    def forward(self, tokens, *, logits=True):  # (B, T) int64
        x = self.hidden(tokens)
        return self.head(x) if logits else x  # (B, T, V) or (B, T, C)

    def hidden(self, tokens):
        self._check_length(tokens.shape[1])
        return self.inner.base_model(tokens, use_cache=False).last_hidden_state

    def head(self, x):
        return self.inner.get_output_embeddings()(x)

    def head_parameters(self):
        head = self.inner.get_output_embeddings()
        return head.weight, head.bias

    def new_cache(self, batch_size, capacity):
        self._check_length(capacity)
        return Cache(self.inner.config, batch_size, capacity, like=self.head_parameters()[0])

    def extend(self, tokens, cache):
        end = cache.length + tokens.shape[1]
        self._check_length(end)
        states = self.inner.base_model(tokens, cache=cache.static, use_cache=True).last_hidden_state
        cache.length = end
        return self.head(states[:, -1])

    def inactive_parameters(self):
        """Of experts that a token is not sent to."""
        published = self.inner.config
        experts = [module.experts for module in self.inner.modules() if hasattr(module, "experts")]
        size = sum(parameter.numel() for part in experts for parameter in part.parameters())
        return size * (published.num_experts - published.num_experts_per_tok) // published.num_experts if size else 0

    def uncounted_flops(self, batch_size, context_length):
        """The experts' rows are found by a running sum over a few counts."""
        return {"aten::cumsum": 0.0} if self.config.family == "olmoe" else {}

    def _check_length(self, positions):
        T = self.config.context_length
        if positions > T:
            raise UsageError("tokens", f"{positions} are more than the context", f"Pass {T} at most")


@hookimpl
def describe():
    presets = {
        name: Config(vocab_size=257, context_length=64, family=family)
        for name, family in {"nano": "qwen3", "gemma3": "gemma3_text", "gpt_neox": "gpt_neox", "olmoe": "olmoe"}.items()
    }
    return ArchitectureInfo("my-arch", "Models of transformers", "github.com/huggingface/transformers", Config, presets)


@hookimpl
def build(config):
    return Model(config)


@hookimpl
def train_step(state, batch):
    return next_token_step(state, batch)


@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
    return decode_with_cache(model, prompt, max_new_tokens, sampling)
