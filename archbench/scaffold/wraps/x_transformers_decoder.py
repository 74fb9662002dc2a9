"""A decoder of x-transformers (pip install x-transformers).

Its cache grows by concatenation, which is no cache of a fixed capacity, so it decodes without one.
"""

from pydantic import Field
from torch import nn
from x_transformers import Decoder, TransformerWrapper

from archbench import ArchitectureInfo, ModelConfig, decode_without_cache, hookimpl, next_token_step
from archbench.errors import UsageError


class Config(ModelConfig):
    depth: int = Field(2, gt=0, description="L, blocks")
    heads: int = Field(4, gt=0, description="H, heads")
    dim: int = Field(32, gt=0, description="C, width")


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        layers = Decoder(
            dim=config.dim, depth=config.depth, heads=config.heads, attn_dim_head=config.dim // config.heads,
            rotary_pos_emb=True, ff_glu=True, use_rmsnorm=True, attn_flash=True,
        )  # fmt: skip
        self.wrapper = TransformerWrapper(
            num_tokens=config.vocab_size, max_seq_len=config.context_length, attn_layers=layers, use_abs_pos_emb=False
        )

    def forward(self, tokens):  # (B, T) int64 -> (B, T, V)
        T = tokens.shape[1]
        if self.config.context_length < T:
            raise UsageError("tokens", f"{T} are more than the context", f"Pass {self.config.context_length} at most")
        return self.wrapper(tokens)


@hookimpl
def describe():
    presets = {"nano": Config(vocab_size=257, context_length=64)}
    source = "github.com/lucidrains/x-transformers"
    return ArchitectureInfo("my-arch", "A decoder of x-transformers", source, Config, presets)


@hookimpl
def build(config):
    return Model(config)


@hookimpl
def train_step(state, batch):
    return next_token_step(state, batch)


@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
    return decode_without_cache(model, prompt, max_new_tokens, sampling)
