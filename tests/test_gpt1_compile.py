"""GPT-1 compiles as one graph, in training and in evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import archbench
from archbench.kernels import record_attention


def test_compiled_model_is_one_graph_with_the_same_logits_and_gradients() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    gpt1 = archbench.load("gpt1")
    model = gpt1.build(gpt1.config("nano", vocab_size=64))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    tokens = torch.randint(64, (2, 33))
    results = []
    for forward in (model, compiled):
        model.zero_grad()
        with record_attention() as ran:
            logits = forward(tokens[:, :-1])
        assert ran == {"sdpa"}
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        results.append([logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, atol=1e-6, rtol=1e-5)


def test_compiled_model_drops_out() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    gpt1 = archbench.load("gpt1")
    config = gpt1.config("nano", vocab_size=64, embd_dropout=0.1, resid_dropout=0.1, attn_dropout=0.1)
    compiled = torch.compile(gpt1.build(config), fullgraph=True, backend="aot_eager")
    tokens = torch.randint(64, (2, 32))
    assert not torch.equal(compiled(tokens), compiled(tokens))
