"""Published weights are read by the names transformers gives them, or an error names the tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import archbench
from archbench.errors import CheckpointError

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 100, "context_length": 16, "n_layer": 2, "n_head": 2, "d_model": 8, "d_ff": 32}


@pytest.fixture
def published() -> dict[str, Tensor]:
    torch.manual_seed(0)
    config = transformers.OpenAIGPTConfig(vocab_size=100, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    return dict(transformers.OpenAIGPTLMHeadModel(config).state_dict())


def imported(weights: dict[str, Tensor], **changes: int) -> dict[str, Tensor]:
    gpt1 = archbench.load("gpt1")
    return gpt1.import_weights(weights, gpt1.config("paper", **{**SIZES, **changes}))


def test_weights_with_and_without_the_prefix_the_head_and_the_masks_are_the_same(published: dict[str, Tensor]) -> None:
    expected = imported(published)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in published.items()}
    headless = {name: tensor for name, tensor in bare.items() if name != "lm_head.weight"}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16) for layer in range(2)} | {
        "position_ids": torch.arange(16)
    }
    only_head = {("lm_head.weight" if "tokens_embed" in name else name): tensor for name, tensor in headless.items()}
    for variant in (bare, headless, headless | masks, only_head):
        weights = imported(variant)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_missing_tensor_is_named(published: dict[str, Tensor]) -> None:
    del published["transformer.h.1.mlp.c_fc.weight"]
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight: it is missing"):
        imported(published)


def test_unexpected_tensor_is_named(published: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"h\.1\.\S+: a model of this configuration has no such tensor"):
        imported(published, n_layer=1)


def test_tensor_of_another_shape_is_named_with_both_shapes(published: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"tokens_embed\.weight: .*\(100, 8\).*\(99, 8\)"):
        imported(published, vocab_size=99)
    published["transformer.h.0.attn.c_attn.weight"] = torch.zeros(24, 8)  # (out, in), as nn.Linear has it
    with pytest.raises(CheckpointError, match=r"c_attn\.weight: as \S*attention\.qkv\.weight its shape is"):
        imported(published)


def test_head_that_is_not_the_embedding_is_refused(published: dict[str, Tensor]) -> None:
    published["lm_head.weight"] = published["lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: it differs"):
        imported(published)
