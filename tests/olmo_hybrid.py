"""transformers' OLMo Hybrid as a Gated DeltaNet: it consists of the same blocks, beside its attention."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def published_model(config: Any) -> nn.Module:
    """transformers' OlmoHybridForCausalLM of a Gated DeltaNet's ``config``, without its attention layer.

    Its linear-attention blocks are those of flash-linear-attention's GatedDeltaNetForCausalLM: pre-norm, with separate
    projections of q, k, v, g, a and b. A configuration without attention is refused, so that the layer is taken out.
    """
    import transformers

    c = config
    theirs = transformers.OlmoHybridConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.n_layer + 1,
        num_attention_heads=c.n_head,
        head_dim=8,
        layer_types=["linear_attention"] * c.n_layer + ["full_attention"],
        linear_num_key_heads=c.n_head,
        linear_num_value_heads=c.n_head,
        linear_key_head_dim=c.d_head,
        linear_value_head_dim=c.d_value,
        linear_conv_kernel_dim=c.d_conv,
        linear_allow_neg_eigval=False,
        rms_norm_eps=c.norm_eps,
        tie_word_embeddings=c.tied_head,
        pad_token_id=None,
        eos_token_id=None,
    )
    with without_fla():
        model = transformers.OlmoHybridForCausalLM(theirs)
    del model.model.layers[-1]
    for layer in model.model.layers:
        # OLMo fixes the heads' epsilon at 1e-5; flash-linear-attention's GatedDeltaNet gives them norm_eps too.
        layer.linear_attn.o_norm.variance_epsilon = c.norm_eps
    return model


def published_names(tensors: dict[str, Tensor], key_width: int) -> dict[str, Tensor]:
    """Weights or gradients of :func:`published_model` by the names that flash-linear-attention has for them.

    They are views: what is written to them is written to the model.
    """
    names = {
        "embed_tokens": "embeddings",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "mlp_norm",
        "linear_attn": "attn",
    }
    renamed = {}
    for name, tensor in tensors.items():
        name = ".".join(names.get(part, part) for part in name.split("."))
        if ".conv1d." in name:
            parts = tensor.split([key_width, key_width, tensor.shape[0] - 2 * key_width])
            renamed |= {name.replace("conv1d", f"{x}_conv1d"): part for x, part in zip("qkv", parts, strict=True)}
        else:
            renamed[name] = tensor
    return renamed


@contextmanager
def without_fla() -> Iterator[None]:
    """While its modules are imported, transformers looks for fla, whose kernels it would call on a CPU too."""
    hidden = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "fla"}
    sys.modules["fla"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["fla"]
        sys.modules.update(hidden)
