"""Residual with LayerNorm, and cross-entropy: values, gradients, memory, wrong kernels and the order of programs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from kernel_mutants import Mutant, copied
from row_cases import (
    FLOAT8_CASES,
    LOSS_CASES,
    NORM_CASES,
    SEED,
    Finding,
    NormCase,
    examine_float8,
    examine_loss,
    examine_norm,
)  # fmt: skip
from test_repeats import backwards, from_the_middle, refused
from triton.runtime.interpreter import InterpreterBuilder

from archbench.kernels.dropout_bits import reference_keep
from archbench.kernels.fused import row_launches
from archbench.kernels.fused.launches import fused_backward, fused_forward

MUTANTS = [
    Mutant("the mask is of the wrong neighbour", "randomness", "tl.join(low, high)", "tl.join(high, low)"),
    Mutant("halves change places", "randomness", "tl.join(low.to(tl.int8), high", "tl.join(high.to(tl.int8), low"),
    Mutant("one level more is dropped", "randomness", "low = (word & 0xFFFF).to(tl.int32) >= dropped",
           "low = (word & 0xFFFF).to(tl.int32) >= dropped + 655"),
    Mutant("every row has the first one's mask", "randomness", "which = rows[:, None]", "which = 0 * rows[:, None]"),
    Mutant("kept elements are not scaled", "residual_rows", "values * scale, 0.0", "values, 0.0"),
    Mutant("the variance is of the sample", "residual_rows",
           "centred * centred, 0) / C", "centred * centred, 0) / (C - 1)"),
    Mutant("padding counts in the variance", "residual_rows",
           "tl.where(inside, summed - centre, 0.0)", "summed - centre"),
    Mutant("eps is forgotten", "residual_rows", "/ C + eps)", "/ C)"),
    Mutant("the narrow gradient is forgotten", "residual_rows",
           "gradient += tl.load(grad_narrow", "gradient += 0.0 * tl.load(grad_narrow"),
    Mutant("the gradient through the mean is forgotten", "residual_rows", "scaled - through_mean -", "scaled -"),
    Mutant("the gradient through the deviation is forgotten", "residual_rows",
           "- normed * through_deviation", ""),
    Mutant("the residual's gradient is dropped too", "residual_rows",
           "tl.store(grad_x + places, back, mask=inside)\n        if DROPOUT:", "if DROPOUT:"),
    Mutant("a row too many", "residual_rows", "tl.minimum((program + 1) * rows_each, N)", "(program + 1) * rows_each"),
    Mutant("rows past the width are written", "residual_rows", "tl.store(out + places, normed, mask=inside)",
           "tl.store(out + places, normed)"),
    Mutant("sums of y's gradient before dropout", "residual_rows", "for_y += back", "for_y += scaled"),
    Mutant("the target is no class", "loss_rows", "-others / total, errors)", "errors, errors)"),
    Mutant("the target's gradient is 1 - 1", "loss_rows", "-others / total, errors)", "errors - 1.0, errors)"),
    Mutant("ignored rows are trained", "loss_rows", "return tl.where(counts, errors, 0.0)", "return errors"),
    Mutant("ignored rows cost", "loss_rows", "tl.where(counts, loss, 0.0)", "loss"),
    Mutant("sums are not rescaled", "loss_rows", "others * tl.exp(maximum - highest)", "others"),
    Mutant("the last block is not cut off", "loss_rows",
           "tl.store(first + whole + columns, errors.to(logits.dtype.element_ty), mask=inside)",
           "tl.store(first + whole + columns, errors.to(logits.dtype.element_ty))"),
    Mutant("a tile is not turned", "float8_tiles", "tl.trans(rounded)", "rounded"),
    Mutant("nothing is filled up", "float8_tiles", "mask=inside, other=0.0)", "mask=inside, other=1.0)"),
    Mutant("the scale is no power of two", "float8_tiles", "& 0x7F800000", ""),
    Mutant("it is not scaled", "float8_tiles", "tile / divisor", "tile"),
]  # fmt: skip


@pytest.mark.matrix
@pytest.mark.memory_safety
@pytest.mark.parametrize("case", NORM_CASES, ids=str)
def test_the_norms_values_and_gradients_are_the_definitions(case: NormCase) -> None:
    assert list(examine_norm(case, row_launches)) == []


@pytest.mark.matrix
@pytest.mark.memory_safety
@pytest.mark.parametrize(("rows", "width", "dtype", "trained"), LOSS_CASES)
def test_losses_and_their_gradients_are_the_definitions(
    rows: int, width: int, dtype: torch.dtype, trained: bool
) -> None:
    assert list(examine_loss(rows, width, dtype, trained, row_launches)) == []


@pytest.mark.matrix
@pytest.mark.memory_safety
@pytest.mark.parametrize(("M", "K", "dtype", "float8"), FLOAT8_CASES)
def test_float8_is_the_definitions_along_rows_and_along_columns(
    M: int, K: int, dtype: torch.dtype, float8: torch.dtype
) -> None:
    assert list(examine_float8(M, K, dtype, float8, row_launches)) == []


def findings(kernels: Any) -> Iterator[Finding]:
    for case in NORM_CASES:
        yield from examine_norm(case, kernels)
    for one in LOSS_CASES:
        yield from examine_loss(*one, kernels)
    for each in FLOAT8_CASES:
        yield from examine_float8(*each, kernels)


@pytest.mark.mutants
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # wrong kernels divide by zero
@pytest.mark.parametrize("mutant", [None, *MUTANTS], ids=lambda mutant: mutant.name if mutant else "unmutated")
def test_the_cases_kill_the_mutant(mutant: Mutant | None, tmp_path: Path) -> None:
    with copied(tmp_path, "mutated_rows", mutant):
        found = next(findings(importlib.import_module("mutated_rows.row_launches")), None)
    assert (found is None) == (mutant is None), found


def test_the_order_of_the_programs_changes_no_bit() -> None:
    random = torch.Generator().manual_seed(0)
    x, y, gradient = torch.randn(3, 40, 24, generator=random)
    weight = torch.rand(24, generator=random)
    logits, targets = torch.randn(9, 300, generator=random), torch.randint(300, (9,), generator=random)

    def everything(seed: int | torch.Tensor = SEED) -> list[torch.Tensor]:
        out, total, grad_x, grad_y = (torch.empty_like(x) for _ in range(4))
        mean, deviation, losses = torch.empty(40), torch.empty(40), torch.empty(9)
        sums, errors = torch.empty(6, 3, 24), logits.clone()
        launches = [
            row_launches.residual_norm_launch(
                x, y, weight, None, out, None, total, mean, deviation, eps=1e-5, seed=seed, dropped=6554
            ),
            row_launches.residual_norm_gradient_launch(
                gradient, None, total, mean, deviation, weight, grad_x, grad_y, sums, seed=seed, dropped=6554
            ),
            row_launches.cross_entropy_launch(errors, targets, losses, ignored=-100, trained=True),
        ]
        with patch.multiple(InterpreterBuilder, create_atomic_rmw=refused, create_atomic_cas=refused):
            for launch in launches:
                launch.run()
        return [out, grad_x, grad_y, sums, losses, errors]

    first = everything()
    for order in (backwards, from_the_middle):
        with patch.object(InterpreterBuilder, "set_grid_idx", order):
            assert all(map(torch.equal, everything(), first))
    assert all(map(torch.equal, everything(torch.tensor(SEED)), first)), "a seed in memory is the same seed"


def test_rows_are_shared_so_that_every_program_has_some() -> None:
    for rows in (1, 511, 512, 513, 1030, 16384):
        programs = row_launches.gradient_programs(rows)
        each = -(-rows // programs)
        assert programs <= row_launches.PROGRAMS
        assert (programs - 1) * each < rows <= programs * each


def test_a_target_that_is_no_column_makes_the_loss_nan() -> None:
    for target in (300, -7):
        losses = torch.empty(1)
        row_launches.cross_entropy_launch(
            torch.zeros(1, 300), torch.tensor([target]), losses, ignored=-100, trained=True
        ).run()
        assert losses.isnan().all()


def test_a_tenth_is_dropped_and_masks_of_rows_and_seeds_are_unlike() -> None:
    kept = reference_keep(SEED, 2, 300, 300, 6554, torch.device("cpu")).float()
    assert abs(1 - kept.mean().item() - 6554 / 65536) < 0.004
    others = (kept[1], kept[0].roll(1, 0), kept[0].roll(8, 1), kept[0].roll(1, 1))
    for other in (*others, reference_keep(SEED + 1, 1, 300, 300, 6554, torch.device("cpu"))[0].float()):
        assert abs(torch.corrcoef(torch.stack([kept[0].flatten(), other.flatten()]))[0, 1]) < 0.02


def test_attention_as_it_is_called_has_one_mask_forward_and_backward() -> None:
    """The functions that run the launches, against the operators' closed form."""
    random = torch.Generator().manual_seed(0)
    q, k, v, grad_out = torch.randn(4, 1, 2, 40, 16, generator=random)
    how: dict[str, Any] = {"window": None, "scale": 0.3, "precision": "ieee"}
    out, lse = fused_forward(q, k, v, **how, seed=SEED, dropped=20_000)
    gradients = fused_backward(grad_out, q, k, v, out, lse, **how, seed=SEED, dropped=20_000)
    in_memory: dict[str, Any] = {"seed": torch.tensor(SEED), "dropped": 20_000}
    assert torch.equal(fused_forward(q, k, v, **how, **in_memory)[0], out)
    assert all(map(torch.equal, fused_backward(grad_out, q, k, v, out, lse, **how, **in_memory), gradients))
    given = (*how.values(), torch.tensor(SEED), 20_000)
    wanted, sums = torch.ops.archbench.causal_attention_forward(q, k, v, *given)
    torch.testing.assert_close(out, wanted)
    expected = torch.ops.archbench.causal_attention_backward(grad_out, q, k, v, wanted, sums, *given)
    torch.testing.assert_close(gradients, tuple(expected), rtol=1e-4, atol=1e-4)
