"""Tokens are drawn from the distribution that the arguments describe."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from archbench import Sampling

LOGITS = torch.tensor([1.0, 3.0, 0.5, 2.0, -1.0, 2.5])


def expected_probabilities(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Written out from the definitions, in float64."""
    probabilities = torch.softmax(LOGITS.double() / temperature, dim=0)
    kept: list[int] = []
    total = 0.0
    for token in sorted(range(len(LOGITS)), key=lambda token: -LOGITS[token]):
        if (top_k is not None and len(kept) == top_k) or (top_p is not None and total >= top_p):
            break
        kept.append(token)
        total += probabilities[token].item()
    chosen = torch.zeros_like(probabilities)
    chosen[kept] = probabilities[kept] / total
    return chosen


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.1},
        {"top_p": 0.5},
        {"top_p": 0.9, "temperature": 1.5},
        {"top_p": 1.0},
    ],
)
def test_frequencies_follow_the_described_distribution(arguments: dict[str, float]) -> None:
    n = 40_000
    sampling = Sampling(**arguments, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    counts = torch.bincount(sampling.pick(LOGITS.expand(n, -1)), minlength=len(LOGITS)).double()
    expected = n * expected_probabilities(**arguments)  # type: ignore[arg-type]
    possible = expected > 0
    assert not counts[~possible].any(), "a token outside the kept set was drawn"
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum().item()
    freedom = int(possible.sum()) - 1
    assert chi_square <= freedom + 5 * math.sqrt(2 * freedom), "five standard deviations of chi-square"


def test_token_that_crosses_top_p_is_kept() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    sampling = Sampling(top_p=0.6, generator=torch.Generator().manual_seed(0))
    assert set(sampling.pick(logits.expand(500, -1)).tolist()) == {0, 1}


def test_greedy_takes_the_most_likely_token_of_every_row() -> None:
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    assert Sampling(greedy=True).pick(logits).tolist() == [1, 4]


def test_same_generator_seed_gives_the_same_tokens_without_touching_torchs_own() -> None:
    logits = LOGITS.expand(20, -1)
    state = torch.get_rng_state()
    first, again = (Sampling(generator=torch.Generator().manual_seed(3)).pick(logits) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())


def test_tokens_are_int64_whatever_the_dtype_of_the_logits() -> None:
    for arguments in ({"greedy": True}, {"top_k": 2}, {"top_p": 0.5}, {}):
        tokens = Sampling(**arguments).pick(LOGITS.bfloat16().expand(3, -1))  # type: ignore[arg-type]
        assert (tokens.dtype, tokens.shape) == (torch.int64, (3,))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": -3}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"top_k": 5, "top_p": 0.9}, "top_k and top_p"),
        ({"eos": -1}, "eos"),
    ],
)
def test_arguments_out_of_range_are_value_errors_that_name_them(arguments: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        Sampling(**arguments)  # type: ignore[arg-type]
