"""The checks of causality and batch invariance find what sees the future or the rest of the batch, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from archbench.testing.checks import check_batch_invariance, check_causality
from archbench.testing.evaluation import Check, run_check
from archbench.testing.token_gradients import token_gradients
from edited_plugins import plugin, tiny


@pytest.mark.parametrize("check", [check_causality, check_batch_invariance], ids=lambda check: check.name)
@pytest.mark.parametrize("name", ["gpt1", "bigram", "with dropout"])
def test_right_models_pass_by_values_and_by_gradient(check: Check, name: str, tmp_path: Path) -> None:
    result = run_check(check, plugin(tmp_path) if name == "with dropout" else tiny(name))
    assert result.status == "passed", result.evidence
    assert "no gradient flows to what they must not see" in result.evidence


NEXT = "torch.cat([x[:, 1:], x[:, -1:]], 1)"
SEES_THE_FUTURE = {
    "the next token": (
        f"x = x + {NEXT}",
        r"in evaluation mode, changing token 20 of 24 \(counted from 0\) moves the logits of position 19 by \d\.\d+, "
        r"where their standard deviation is 0\.\d+: it sees the future",
    ),
    "the token two ahead": (f"x = {NEXT}\nx = {NEXT}", "changing token 20 of 24 .* the logits of position 18"),
    "the next token of its chunk": (
        "t = torch.arange(x.shape[1])\nx = x[:, (t // 4 * 4 + 3 - t % 4).clamp(max=len(t) - 1)]",
        "changing token 7 of 24 .* the logits of position 4",
    ),
    "the first position alone": (
        "x = torch.cat([x[:, :1] + x[:, 1:2].sum(1, keepdim=True), x[:, 1:]], 1)",
        "changing token 1 of 24 .* the logits of position 0",
    ),
    "the last token alone": (
        "x = torch.cat([x[:, :-2], x[:, -2:-1] + x[:, -1:], x[:, -1:]], 1)",
        "changing token 23 of 24 .* the logits of position 22",
    ),
    "the mean of the sequence": ("x = x + x.mean(1, keepdim=True)", "changing token 23 of 24"),
    "a norm over positions": ("x = F.layer_norm(x.mT, (x.shape[1],)).mT", "changing token 23 of 24"),
    "in training mode only": (
        "if self.training:\n    x = x + x.mean(1, keepdim=True)",
        "in training mode, changing token 23 of 24",
    ),
    "too faintly for a value": (
        f"x = x + 1.6e-5 * {NEXT}",
        "in evaluation mode, the logits before position 13 have a gradient with respect to what was looked up for "
        "token 13 of 24, [12]e-05 of the largest",
    ),
    "too faintly for a value, in training mode": (
        f"if self.training:\n    x = x + 1.6e-5 * {NEXT}",
        "in training mode, the logits before position 13 have a gradient",
    ),
    "the experts' choice among positions": (
        """
        chosen = x[..., 0].topk((x.shape[1] + 3) // 6, dim=1).indices  # (B, K), Zhou et al. 2022
        x = x.scatter_add(1, chosen[..., None].expand(-1, -1, 16), torch.ones(*chosen.shape, 16))
        """,
        "it sees the future",
    ),
}


@pytest.mark.parametrize("name", SEES_THE_FUTURE)
def test_what_sees_the_future_fails_causality_alone(name: str, tmp_path: Path) -> None:
    forward, message = SEES_THE_FUTURE[name]
    subject = plugin(tmp_path, forward)
    result = run_check(check_causality, subject)
    assert result.status == "failed"
    assert re.search(message, result.evidence), result.evidence
    assert run_check(check_batch_invariance, subject).status == "passed"


SEES_THE_BATCH = {
    "batch norm at each position": (
        "x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1)",
        "depend on the rest of the batch",
    ),
    "routing with a capacity, first come first served": (
        """
        wants = (x[..., 0] > 0).flatten()  # (B T), one sequence after another
        served = wants & (wants.cumsum(0) <= 0.4 * x.shape[1])
        x = x + served.view(x.shape[:2])[..., None].float()
        """,
        "in another order of a batch's 16 sequences, the logits of a sequence move by",
    ),
    "in training mode only": (
        "if self.training:\n    x = x - x.mean(0)",
        "in training mode, beside other sequences, the logits of a sequence move by",
    ),
    "too faintly for a value": (
        "x = x + 2e-5 * x.mean(0)",
        "the logits of sequence 0 have a gradient with respect to what was looked up for token",
    ),
    "too faintly for a value, in training mode": (
        "if self.training:\n    x = x + 3e-5 * x.mean(0)",
        "in training mode, the logits of sequence 0 have a gradient with respect to what was looked up for token",
    ),
    "the number of sequences": (
        "x = x * (1 + 0.1 * len(x))",
        "read alone instead of beside 15 others, the logits of a sequence move by",
    ),
    "dropout in evaluation mode": ("x = F.dropout(x, 0.1)", "dropout or noise that does not ask self.training"),
}


@pytest.mark.parametrize("name", SEES_THE_BATCH)
def test_what_sees_the_batch_fails_batch_invariance_alone(name: str, tmp_path: Path) -> None:
    forward, message = SEES_THE_BATCH[name]
    subject = plugin(tmp_path, forward)
    result = run_check(check_batch_invariance, subject)
    assert result.status == "failed"
    assert message in result.evidence, result.evidence
    causality = run_check(check_causality, subject)
    assert causality.status == "passed", causality.evidence


def test_statistics_that_move_while_training_are_no_leak(tmp_path: Path) -> None:
    """Two passes of one model differ in them, whatever their tokens."""
    forward = """
    x = x - self.mean.clone()
    if self.training:
        self.mean.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
    """
    subject = plugin(tmp_path, forward)
    for check in (check_causality, check_batch_invariance):
        result = run_check(check, subject)
        assert result.status == "passed", result.evidence


LOOKUPS = {
    "embedding": "F.embedding(tokens, W)",
    "indexing": "W[tokens]",
    "index_select": "W.index_select(0, tokens.flatten()).view(*tokens.shape, -1)",
    "one-hot": "F.one_hot(tokens, 61).float() @ W",
    "time first": "W[tokens.t()].transpose(0, 1)",
    "changed in place": "W[tokens].add_(1)",
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_gradients_reach_the_tokens_however_they_are_looked_up(name: str) -> None:
    """Of a model that adds up the past, each token's gradient is its own way to the logits and not 0 after it."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(61, 8))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            positions = torch.arange(tokens.shape[1])
            looked_up = eval(LOOKUPS[name], {"F": torch.nn.functional, "W": self.weight, "tokens": tokens})
            return looked_up.cumsum(1) + self.weight[positions]

    torch.manual_seed(0)
    model, tokens = Model(), torch.randint(61, (2, 5))
    asked = torch.tensor([[False, True, False, False, False], [False] * 5])
    (gradient,) = token_gradients(model, tokens, asked)  # that of the positions is not asked for
    assert (gradient > 0).tolist() == [[True, True, False, False, False], [False] * 5]
    assert model.weight.requires_grad


def test_a_model_without_a_lookup_is_judged_by_values_and_says_so(tmp_path: Path) -> None:
    subject = plugin(tmp_path, "x = x.detach()")
    for check in (check_causality, check_batch_invariance):
        result = run_check(check, subject)
        assert result.status == "passed"
        assert "by values only" in result.evidence


def test_a_context_of_one_position_has_no_future() -> None:
    subject = tiny("bigram", context_length=1)
    assert run_check(check_causality, subject).status == "not applicable"
    assert run_check(check_batch_invariance, subject).status == "passed"
