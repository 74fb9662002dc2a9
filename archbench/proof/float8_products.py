"""Products in float8 on the device: against their definition, in the loss of a training, and in time."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from archbench.kernels import linear_cross_entropy
from archbench.kernels.float8_linear import (
    E4M3,
    E5M2,
    Float8Products,
    Which,
    quantise,
    reference_product,
    scaled_product,
    why_not_float8,
)
from archbench.proof.continued_training import nano_losses
from archbench.proof.gpt1_race import seconds_in_turns, training_step
from archbench.proof.statements import Bench, Statement, Statements, judged, not_run, noted

SIZES = ((1024, 768, 2304), (1000, 768, 40_478), (37, 40, 101), (4096, 4096, 4096))
"""M, K and N of products: GPT-1's, odd ones, large ones."""

EXACT, INEXACT = 2e-3, 1e-2
"""Relative differences from the definition, whose sums are float32's: of gradients, and of outputs, which are summed
inexactly and rounded to bfloat16. Tensor cores of an H100 keep about 14 bits of a sum (DeepSeek-AI 2024, DeepSeek-V3,
arXiv:2412.19437, section 3.3.2)."""

WAYS: tuple[Which, ...] = ("none", "head", "all")
STEPS, SEEDS = 150, 3


def float8(bench: Bench) -> Statements:
    """Each of the three products; the loss of ``gpt1`` nano; times of GPT-1's head and of its updates."""
    if (reason := why_not_float8(bench.device, torch.bfloat16)) is not None:
        yield not_run("products in float8", reason[0])
        return
    for sizes in SIZES:
        yield from _products(*sizes, bench)
    yield from _losses(bench)
    yield _times("GPT-1's head with its loss and gradients, 32 × 512", _head(bench), bench)
    steps = {which: training_step(bench, which) for which in WAYS}
    yield _times("an update of GPT-1 paper, 32 × 512", steps, bench)


def _products(M: int, K: int, N: int, bench: Bench) -> Statements:
    generator = torch.Generator(bench.device).manual_seed(0)
    shapes = ((M, K), (N, K), (M, N))
    x, weight, gradient = (torch.randn(shape, generator=generator, device=bench.device) for shape in shapes)
    x8, w8, e8 = quantise(x, E4M3), quantise(weight, E4M3), quantise(gradient, E5M2)
    for what, operands, dtype, bound in (
        ("output", (x8.operand, w8.operand), torch.bfloat16, INEXACT),
        ("input's gradient", (e8.operand, w8.turned), torch.float32, EXACT),
        ("weight's gradient", (e8.turned, x8.turned), torch.float32, EXACT),
    ):
        found = scaled_product(*operands, dtype, inexact=what == "output").double()
        exact = reference_product(*operands, torch.float32).double()
        norm = float(exact.norm())
        away = float((found - exact).norm()) / norm if norm else float("inf")
        claim = f"{M} × {K} × {N}, float8: the {what} from the definition's"
        yield judged(claim, away <= bound, f"≤ {bound:g}", f"{away:.1e}")


def _losses(bench: Bench) -> Statements:
    """The last losses, against bfloat16's of the same seed; what seeds differ by is the measure."""

    def last(which: Which, seed: int) -> float:
        history = nano_losses(bench, dropout=False, dtype="bfloat16", float8=which, seed=seed, steps=STEPS)
        return sum(record.loss for record in history.steps[-10:]) / 10

    usual = [last("none", seed) for seed in range(SEEDS)]
    spread = max(usual) - min(usual)
    for which in ("head", "all"):
        away = abs(last(which, 0) - usual[0])
        what = f"gpt1 nano, float8 {which}: the loss after {STEPS} updates, from bfloat16's {usual[0]:.4f}"
        yield judged(what, away <= spread, f"≤ {spread:.4f}, which seeds differ by", f"{away:.4f}")


def _head(bench: Bench) -> dict[Which, Callable[[], object]]:
    N, C, V = 32 * 512, 768, 40_478
    generator = torch.Generator(bench.device).manual_seed(0)
    hidden = torch.randn(N, C, generator=generator, device=bench.device).bfloat16().requires_grad_()
    head = nn.Linear(C, V, bias=False, device=bench.device)
    head.head_parameters = lambda: (head.weight, None)  # type: ignore[assignment]
    targets = torch.randint(V, (N,), generator=generator, device=bench.device)
    products = Float8Products("head", head, bench.device, torch.bfloat16)

    def loss() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            torch.autograd.grad(linear_cross_entropy(hidden, head.weight, targets), [hidden, head.weight])

    def in_float8() -> None:
        with products.used():
            loss()

    return {"none": loss, "head": in_float8}


def _times(what: str, ways: dict[Which, Callable[[], object]], bench: Bench) -> Statement:
    """Milliseconds of each in turns, the host's submission included."""
    seconds = seconds_in_turns(ways, bench)
    usual = median(seconds["none"])
    shown = [
        f"{which} {median(each) * 1e3:.2f} ms" + ("" if which == "none" else f" ({usual / median(each):.2f} × as fast)")
        for which, each in seconds.items()
    ]
    return noted(f"{what}, by float8", ", ".join(shown))
