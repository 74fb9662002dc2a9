"""Autotuning times at most six configurations once, keeps the fastest, and none of them changes what attention is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_reference import attend
from torch import Tensor
from triton.runtime.errors import OutOfResources

from archbench.kernels.fused import launches, tuning
from archbench.kernels.fused.configurations import FAMILIES, KERNELS, Configuration, configuration_for
from archbench.kernels.fused.tuning import candidates

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # rows past the end are calculated and thrown away: 0 / 0
]

HEAD_WIDTHS = (16, 64, 80, 128, 256)
DTYPES = (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("chip", FAMILIES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_are_the_tables_choice_at_most_five_legal_neighbours_and_persistent_ones(
    chip: str, kernel: str
) -> None:
    for D in HEAD_WIDTHS:
        for dtype in DTYPES:
            options = candidates(chip, kernel, D, dtype)
            persistent = [option for option in options if option.programs]
            assert options[0] == configuration_for(chip, kernel, D, dtype)
            assert 1 < len(options) - len(persistent) <= 6
            offered = kernel == "forward" and D in (64, 128) and dtype == torch.bfloat16
            assert len(persistent) == (offered and {"sm_90": 2, "sm_100": 1}.get(chip, 0))
            assert all(options.count(option) == 1 for option in options)
            for option in options:
                for block in (option.block_t, option.block_s):
                    assert block >= 16, option
                    assert block.bit_count() == 1, option
                assert option.warps in (4, 8), option
                assert option.stages >= 1, option
                assert not option.tma or (D.bit_count() == 1 and chip in ("sm_90", "sm_100")), option


class Scripted:
    """Stands for the GPU's clock: the real launch is run, and takes as long as the script says.

    Attributes:
        script: seconds, or the error raised, of each call in turn; one second when it is used up.
        calls: how many calls were timed.
    """

    def __init__(self) -> None:
        self.script: list[float | Exception] = []
        self.calls = 0

    def __call__(self, call: Callable[[], None]) -> float:
        self.calls += 1
        said = self.script.pop(0) if self.script else 1.0
        if isinstance(said, Exception):
            raise said
        call()
        return said


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """Autotuning is on, as on a GPU, with an empty cache; only the clock is not real."""
    scripted = Scripted()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(launches, "autotunes", lambda device_type: True)
    monkeypatch.setattr(tuning, "seconds", scripted)
    tuning._choices.clear()
    yield scripted
    tuning._choices.clear()


def forget() -> None:
    """What a process knows; not the cache folder."""
    tuning._choices.clear()


def make(T: int = 20, S: int = 30, D: int = 32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and an upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    q, grad_out = torch.randn(2, 1, 2, T, D, generator=generator)
    k, v = torch.randn(2, 1, 1, S, D, generator=generator)
    return q, k, v, grad_out


HOW: dict[str, Any] = {"window": 7, "scale": 0.2, "precision": "ieee"}


def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return launches.fused_forward(q, k, v, **HOW)


def chosen() -> list[Configuration]:
    return list(tuning._choices.values())


def test_the_fastest_is_chosen_for_each_of_the_three_kernels(clock: Scripted) -> None:
    q, k, v, grad_out = make()
    options = {kernel: candidates("sm_80", kernel, 32, torch.float32) for kernel in KERNELS}
    places = dict(zip(KERNELS, (1, 2, 0), strict=True))
    for kernel in KERNELS:
        clock.script += [0.5 if number == places[kernel] else 2.0 for number in range(len(options[kernel]))]
    out, lse = forward(q, k, v)
    launches.fused_backward(grad_out, q, k, v, out, lse, **HOW)
    assert chosen() == [options[kernel][places[kernel]] for kernel in KERNELS]


def test_what_was_chosen_is_what_is_launched(clock: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, grad_out = make()
    forms = {kernel: candidates("sm_80", kernel, 32, torch.float32) for kernel in KERNELS}
    for options in forms.values():
        clock.script += [3.0] * (len(options) - 1) + [0.1]
    out, lse = forward(q, k, v)
    launches.fused_backward(grad_out, q, k, v, out, lse, **HOW)
    ran = []
    run = launches.Launch.run
    monkeypatch.setattr(launches.Launch, "run", lambda launch: (ran.append(launch), run(launch))[1])
    out, lse = forward(q, k, v)
    launches.fused_backward(grad_out, q, k, v, out, lse, **HOW)
    assert [launch.name for launch in ran] == ["forward", "delta", "key_gradient", "query_gradient"]
    for launch in ran:
        if launch.name != "delta":
            wanted = forms[launch.name][-1]
            assert (launch.arguments["BLOCK_T"], launch.arguments["BLOCK_S"]) == (wanted.block_t, wanted.block_s)


def test_a_choice_is_timed_once_and_then_comes_from_memory_or_the_cache_folder(clock: Scripted) -> None:
    q, k, v, _ = make()
    clock.script = [2.0, 2.0, 0.1]
    forward(q, k, v)
    (first,), timed = chosen(), clock.calls
    assert timed == len(candidates("sm_80", "forward", 32, torch.float32))
    forward(q, k, v)
    forget()
    forward(q, k, v)
    assert chosen() == [first]
    assert clock.calls == timed


def test_lengths_are_tuned_by_powers_of_two_and_kinds_each_for_themselves(clock: Scripted) -> None:
    q, k, v, _ = make(T=20, S=30)
    forward(q, k, v)
    timed = clock.calls
    forward(*make(T=17, S=32)[:3])
    assert clock.calls == timed
    forward(*make(T=33, S=64)[:3])
    forward(q.bfloat16(), k.bfloat16(), v.bfloat16())
    launches.fused_forward(q, k, v, **{**HOW, "window": None})
    launches.fused_forward(q, k, v, **{**HOW, "precision": "tf32"})
    assert len(chosen()) == 5


@pytest.mark.parametrize(
    "error", [OutOfResources(240_000, 101_376, "shared memory"), RuntimeError("PassManager::run failed")], ids=repr
)
def test_a_candidate_that_the_chip_cannot_run_is_passed_over(
    clock: Scripted, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    options = candidates("sm_80", "forward", 32, torch.float32)
    clock.script = [2.0, error, *[3.0] * len(options)]
    with caplog.at_level("INFO", logger="archbench"):
        forward(*make()[:3])
    assert chosen() == [options[0]]
    assert f"{options[1]} cannot run here ({error})" in caplog.text


def test_where_none_can_run_the_tables_choice_is_launched_for_its_error_and_nothing_is_kept(
    clock: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = candidates("sm_80", "forward", 32, torch.float32)
    clock.script = [OutOfResources(240_000, 101_376, "shared memory") for _ in options]

    def refuse(launch: launches.Launch) -> None:
        raise OutOfResources(launch.arguments["BLOCK_T"], launch.arguments["BLOCK_S"], "as on a chip too small")

    monkeypatch.setattr(launches.Launch, "run", refuse)
    with pytest.raises(OutOfResources, match=f"Required: {options[0].block_t}, Hardware limit: {options[0].block_s}"):
        forward(*make()[:3])
    assert clock.calls == len(options)
    assert chosen() == []
    assert not list(tmp_path.rglob(tuning.FILE))


def test_a_candidate_that_computes_something_else_is_no_choice(
    clock: Scripted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The two fastest: one that writes nothing, one that writes numbers a little too large."""
    options = candidates("sm_80", "forward", 32, torch.float32)
    clock.script = [2.0, 0.1, 0.2, *[3.0] * len(options)]
    run, runs = launches.Launch.run, iter(range(100))

    def wrong(launch: launches.Launch) -> Any:
        number = next(runs)
        if number != 1:
            run(launch)
        if number == 2:
            launch.arguments["out"].mul_(1.03)

    monkeypatch.setattr(launches.Launch, "run", wrong)
    forward(*make()[:3])
    assert chosen() == [options[0]]
    assert [f"{option} computes something else" in caplog.text for option in options] == [False, True, True] + [
        False
    ] * (len(options) - 3)


def test_any_other_error_is_no_verdict_on_a_candidate(clock: Scripted) -> None:
    clock.script = [1.0, RuntimeError("CUDA error: an illegal memory access was encountered")]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        forward(*make()[:3])
    assert chosen() == []


@pytest.mark.parametrize("D", [64, 80])
@pytest.mark.parametrize("chip", ["sm_80", "sm_90"])
def test_attention_is_right_with_every_candidate(chip: str, D: int) -> None:
    """One candidate of each shape of blocks, with and without TMA: the interpreter knows no warps and stages."""
    T, S, window, scale = 70, 150, 60, D**-0.5
    q, k, v, grad_out = make(T, S, D)
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    expected, _, logits = attend(*wide, window, scale)
    wanted = dict(zip("qkv", torch.autograd.grad(expected, wide, grad_out.double()), strict=True))
    how: dict[str, Any] = {"window": window, "scale": scale, "precision": "ieee", "chip": chip}

    def close(found: Tensor, exact: Tensor) -> None:
        # float32 sums of up to 150 products of normal numbers, and a logit's rounding in the exponential.
        torch.testing.assert_close(found.double(), exact.detach(), atol=2e-5, rtol=1e-5)

    out, lse, delta = torch.empty_like(q), torch.empty(q.shape[:3]), torch.empty(q.shape[:3])
    for option in distinct(chip, "forward", D):
        launches.forward_launch(q, k, v, out.fill_(math.nan), lse.fill_(math.nan), **how, configuration=option).run()
        close(out, expected)
        close(lse, logits.logsumexp(-1) * math.log2(math.e))
    for kernel, names in (("key_gradient", "kv"), ("query_gradient", "q")):
        for option in distinct(chip, kernel, D):
            gradients = {name: torch.full_like(x, math.nan) for name, x in zip("qkv", (q, k, v), strict=True)}
            for launch in launches.backward_launches(
                grad_out, q, k, v, out, lse, delta, *gradients.values(), **how, configurations={kernel: option}
            ):
                if launch.name in ("delta", kernel):
                    launch.run()
            for name in names:
                close(gradients[name], wanted[name])


def distinct(chip: str, kernel: str, D: int) -> list[Configuration]:
    """The candidates for half precision, whose blocks are the larger ones, that differ in what the interpreter sees."""
    options = [replace(one, warps=4, stages=1) for one in candidates(chip, kernel, D, torch.bfloat16)]
    return [one for number, one in enumerate(options) if one not in options[:number]]
