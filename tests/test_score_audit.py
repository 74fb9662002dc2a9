"""The audit of scores and of decoding: models that know more than they have read are caught while they are measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from archbench.data.dataset import EncodedDocument
from archbench.inference.decoding import decode_without_cache
from archbench.inference.sampling import Sampling
from archbench.measure.score_audit import ScoreAudit, greedy_finding
from archbench.measure.scoring import score
from archbench.training.step_audit import Finding
from training_setup import T, V, model_config

BYTES = np.random.default_rng(3).choice(V, size=3_000, p=np.random.default_rng(4).dirichlet(np.full(V, 0.3)))
SPACE = int(np.bincount(BYTES).argsort()[-2])
"""As frequent as a space is in English."""


def audited(model: nn.Module, dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Finding]:
    """What the audit of a split of 29 windows finds, by metric."""
    documents = [EncodedDocument("d", BYTES[:400].astype(np.uint16), 400), EncodedDocument("e", BYTES[400:450], 50)]
    audit = ScoreAudit(0, dtype)
    options = {"batch_size": 8, "context_length": T, **options}
    score(model, documents, separator=0, dtype=dtype, audit=audit, **options)
    return {finding.metric: finding for finding in audit.findings}


def failed(model: nn.Module, **options: Any) -> set[str]:
    return {metric for metric, finding in audited(model, **options).items() if finding.failed}


def gpt1() -> nn.Module:
    from archbench_plugins.gpt1 import GPT1

    torch.manual_seed(0)
    model = GPT1(model_config())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


class Wrong(nn.Module):
    """gpt1, whose logits are changed by what it should not know: ``change(logits, tokens)``, (B, T, V) and (B, T)."""

    def __init__(self, change: Callable[[Wrong, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.change = gpt1(), change
        self.memory: dict[tuple[int, ...], int] = {}
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.inner(tokens)
        return self.change(self, logits, tokens)


def _favoured(logits: Tensor, tokens: Tensor, where: Tensor) -> Tensor:
    """Logits that are nearly sure of the next token of the window, where ``where`` (B, T - 1) says so."""
    sure = nn.functional.one_hot(tokens[:, 1:], logits.shape[-1]) * 8.0 * where[..., None]
    return logits + nn.functional.pad(sure, (0, 0, 0, 1))


def peeks_in_large_batches(model: Wrong, logits: Tensor, tokens: Tensor) -> Tensor:
    return _favoured(logits, tokens, torch.ones_like(tokens[:, 1:])) if len(tokens) > 3 else logits


def peeks_after_spaces(model: Wrong, logits: Tensor, tokens: Tensor) -> Tensor:
    return _favoured(logits, tokens, tokens[:, :-1] == SPACE)


def peeks_at_the_end_of_chunks(model: Wrong, logits: Tensor, tokens: Tensor) -> Tensor:
    return _favoured(logits, tokens, (torch.arange(T - 1) % 8 == 7).expand(len(tokens), -1)[:, : tokens.shape[1] - 1])


def peeks_at_full_length(model: Wrong, logits: Tensor, tokens: Tensor) -> Tensor:
    return peeks_at_the_end_of_chunks(model, logits, tokens) if tokens.shape[1] == T else logits


def remembers(model: Wrong, logits: Tensor, tokens: Tensor) -> Tensor:
    """A window that has been seen before is continued from memory."""
    known = torch.zeros_like(tokens[:, 1:])
    for b, row in enumerate(tokens.tolist()):
        for t in range(2, len(row)):
            known[b, t - 1] = model.memory.setdefault(tuple(row[:t]), row[t]) == row[t] and (row[0], t) in model.memory
        model.memory |= {(row[0], t): 0 for t in range(len(row))}
    return _favoured(logits, tokens, known)


def reads_its_neighbours(model: Wrong, logits: Tensor, tokens: Tensor) -> Tensor:
    return logits + 0.1 * logits.mean(0, keepdim=True)


def first_row_alone(model: Wrong, logits: Tensor, tokens: Tensor) -> Tensor:
    """A cache row shared from the third sequence on."""
    return torch.cat([logits[:2], logits[1:2].expand(len(logits) - 2, -1, -1)]) if len(logits) > 2 else logits


def improves_with_every_call(model: Wrong, logits: Tensor, tokens: Tensor) -> Tensor:
    model.calls += 1
    return logits * (1 + 0.01 * model.calls)


def scales_by_the_sequence(model: Wrong, logits: Tensor, tokens: Tensor) -> Tensor:
    """Quantisation with one scale for a whole sequence."""
    scale = logits.abs().amax((1, 2), keepdim=True) / 8
    return (logits / scale).round() * scale


@pytest.mark.parametrize(
    ("change", "seen_by"),
    [
        (peeks_in_large_batches, {"audit_suffix", "audit_batch"}),
        (peeks_after_spaces, {"audit_suffix"}),
        (peeks_at_the_end_of_chunks, {"audit_suffix"}),
        (peeks_at_full_length, {"audit_suffix"}),
        (remembers, {"audit_rescoring"}),
        (reads_its_neighbours, {"audit_batch"}),
        (first_row_alone, {"audit_rescoring"}),
        (improves_with_every_call, {"audit_rescoring"}),
        (scales_by_the_sequence, {"audit_suffix"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_score_that_knows_more_than_was_read_is_caught(change: Any, seen_by: set[str]) -> None:
    assert seen_by <= failed(Wrong(change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [None, 5])
def test_a_right_model_passes_and_its_score_is_the_same(dtype: torch.dtype, stride: int | None) -> None:
    found = audited(gpt1(), dtype, stride=stride)
    assert not any(finding.failed for finding in found.values())
    assert all(finding.value is not None for finding in found.values())
    assert found["audit_suffix"].value == 0, "in batches of one shape a right model's scores are the same, bit by bit"


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"stride": 1}, {"batch_size": 100, "context_length": 1}])
def test_what_cannot_be_judged_is_unknown(options: dict[str, Any]) -> None:
    assert failed(gpt1(), **options) == set()


def test_the_audit_draws_no_random_number_of_torchs() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = gpt1()
    torch.set_rng_state(before)
    audited(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_decoded_tokens_are_held_to_a_full_pass() -> None:
    model, prompt = gpt1(), torch.from_numpy(BYTES[:24].reshape(3, 8).astype(np.int64))
    right = list(decode_without_cache(model, prompt, 12, Sampling(greedy=True)))
    assert greedy_finding(model, prompt, right, T, 1e-3).value == pytest.approx(0, abs=1e-5)
    stale = [*right[:4], *(right[i - 1] if i % 2 else (right[i] + 1) % V for i in range(4, 12))]
    found = greedy_finding(model, prompt, [token.clone() for token in stale], T, 1e-3)
    assert found.failed
    assert "B = 3" in found.meaning
    moved = [token.clone() for token in right]
    moved[5][2] = (moved[5][2] + 1) % V  # the cache row of the last sequence alone
    assert greedy_finding(model, prompt, moved, T, 1e-3).failed
    assert greedy_finding(model, prompt, [right[0]] * 12, T, 1e-3).value is None, "one tensor, filled again and again"
