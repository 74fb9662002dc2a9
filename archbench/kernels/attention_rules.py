"""Which attention is the fastest: on a GPU as measured there (``archbench kernels``) or as published for its chip.

Published figures are TFLOP/s of causal attention without a window in half precision, of others' kernels on others'
machines: of Triton's tutorial 06 (python/tutorials/06-fused-attention.py), whose algorithm ours has, of torch's
FlashAttention-2 and of cuDNN. FlashAttention-3's were read from transcriptions of its figures and FlashAttention-4's
from summaries: see the papers before you quote them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MEASURED, PUBLISHED, FIXED = "measured", "published", "fixed"
"""The rules by which ``auto`` chooses: a measurement on this GPU; :data:`PUBLISHED_FIGURES`; one without figures."""

WITHOUT_CUDNN = ("sdpa-flash", "sdpa-efficient", "sdpa-math")
CUDNN_FIRST = ("sdpa-cudnn", *WITHOUT_CUDNN)
TRITON_FIRST = ("triton", *WITHOUT_CUDNN)


@dataclass(frozen=True)
class Ranking:
    """Backends, the fastest first, and why: ``rule`` is one of MEASURED, PUBLISHED and FIXED, ``reason`` a clause."""

    names: tuple[str, ...]
    rule: str
    reason: str


@dataclass(frozen=True)
class Figures:
    """What is published of one kind of chip.

    Attributes:
        training: the fastest in forward and backward together, for D up to 64 and for wider heads.
        inference: the fastest forward without cuDNN, whose plans cost more than they save where lengths vary.
        short_inference: the same for T up to 512; None for the same.
        source: where the figures are from.
    """

    training: tuple[tuple[str, ...], tuple[str, ...]]
    inference: tuple[tuple[str, ...], tuple[str, ...]]
    source: str
    short_inference: tuple[str, ...] | None = None


_FA3 = "FlashAttention-3, arXiv:2407.08608, figures 5 and 6, H100 SXM5"
_FA4 = "FlashAttention-4, arXiv:2603.05451, B200: it is up to 1.3 times as fast as cuDNN 9.13, 2.7 times as Triton"
_A100 = "Dao-AILab/flash-attention issue 1556, A100: Triton's tutorial is faster at D = 64, slower at D = 128"
_SM86 = (
    "pytorch/pytorch pull request 192799: cuDNN is 23 % faster than FlashAttention-2 forward, 4 to 16 % with backward"
)

PUBLISHED_FIGURES = {
    # Forward, causal, T 512 to 16k. D 64: FlashAttention-2 180 to 299, Triton 152 to 376, cuDNN 225 to 388. D 128:
    # 191 to 335, 146 to 378, 315 to 539. (Without a mask: Triton 403 and 395, cuDNN 413 and 595.) Backward at 16k: D 64
    # FlashAttention-2 291 and cuDNN 433, D 128 322 and 516; none of Triton.
    "sm_90": Figures((CUDNN_FIRST, CUDNN_FIRST), (TRITON_FIRST, TRITON_FIRST), _FA3, short_inference=WITHOUT_CUDNN),
    "sm_100": Figures((CUDNN_FIRST, CUDNN_FIRST), (TRITON_FIRST, TRITON_FIRST), _FA4),
    # There cuDNN is no faster than FlashAttention-2: 135 and 136 forward, 69 and 79 with backward (that pull request).
    "sm_80": Figures((TRITON_FIRST, WITHOUT_CUDNN), (TRITON_FIRST, WITHOUT_CUDNN), _A100),
    "sm_86": Figures((CUDNN_FIRST, CUDNN_FIRST), (TRITON_FIRST, WITHOUT_CUDNN), f"{_SM86}; {_A100}"),
    "sm_89": Figures((CUDNN_FIRST, CUDNN_FIRST), (TRITON_FIRST, WITHOUT_CUDNN), f"{_SM86}; {_A100}"),
}
"""By chip; of others no figure is published that has more than one of the backends."""

NARROW, SHORT = 64, 512


@dataclass(frozen=True)
class MeasuredCase:
    """Backends by their median time in one case of ``archbench kernels`` on this GPU, the fastest first.

    Attributes:
        dtype: as in ``bfloat16``.
        D: head width.
        octave: least n with T <= 2^n.
        windowed: whether there was a window.
        forward, both: by the forward pass, and by forward and backward together.
    """

    dtype: str
    D: int
    octave: int
    windowed: bool
    forward: tuple[str, ...]
    both: tuple[str, ...]


_measured: dict[tuple[object, ...], MeasuredCase] = {}


def use_measured(cases: list[MeasuredCase]) -> None:
    """Let ``auto`` choose by these cases from now on; an empty list: by what is published."""
    from archbench.kernels.attention_backends import forget_decisions

    _measured.clear()
    _measured.update({(case.dtype, case.D, case.octave, case.windowed): case for case in cases})
    forget_decisions()


def octave_of(T: int) -> int:
    """The least n with T <= 2^n. By comparisons alone: torch.compile guards on each, and T may stay a symbol."""
    octave = 0
    while 1 << octave < T:
        octave += 1
    return octave


LEAST_CHANNELS, LEAST_WINDOW, LENGTHS = 768, 256, range(320, 513)
LEAST_DROPOUT_LENGTH, LEAST_DROPOUT_WEIGHTS = 512, 6 * 2**20
"""Where attention by blocks is the fastest on a CPU (EPYC of the Zen 4 generation, two cores, T 32 to 2,048, D 32 to
128, B · H 4 to 96; docs/explanation/decisions.md has the figures): at least so much of B · H · D, below which calls
cost more than products, and of W; T without a window; with dropout at least so much of T and of weights, B · H · T²."""


def blocks_are_fastest(
    dtype: torch.dtype, heads: int, T: int, S: int, D: int, window: int | None, dropout: float
) -> bool:
    """Whether attention by blocks is faster on a CPU than torch's and than the reference; ``heads`` is B · H."""
    if dtype != torch.float32 or T != S or heads * D < LEAST_CHANNELS:
        return False
    if dropout:
        return T >= LEAST_DROPOUT_LENGTH and heads * T * T >= LEAST_DROPOUT_WEIGHTS
    return T in LENGTHS if window is None or window >= T else window >= LEAST_WINDOW


def ranking(chip: str, dtype: torch.dtype, D: int, octave: int, shape: str, *, training: bool) -> Ranking:
    """The backends in the order in which ``auto`` tries them on a GPU.

    Args:
        chip: ``sm_90`` …
        dtype: of the queries.
        D: head width.
        octave: :func:`octave_of` T.
        shape: as :func:`archbench.kernels.attention_sdpa.shape_of` says.
        training: whether there will be a backward pass. Only then is cuDNN among them: training repeats one shape, and
            cuDNN builds a plan for each.
    """
    if shape == "single":
        reason = "for a single query torch's attention divides the keys among programs"
        return Ranking(WITHOUT_CUDNN, FIXED, reason)
    case = _measured.get((str(dtype).removeprefix("torch."), D, octave, shape == "masked"))
    if case is not None:
        fastest = case.both if training else tuple(name for name in case.forward if name != "sdpa-cudnn")
        if fastest:
            return Ranking(fastest, MEASURED, "measured on this GPU by archbench kernels")
    if shape == "masked":
        reason = "it skips what a mask hides, which no kernel of torch's does"
        return Ranking(TRITON_FIRST, FIXED, reason)
    figures = PUBLISHED_FIGURES.get(chip)
    if figures is None or dtype not in (torch.float16, torch.bfloat16):
        return Ranking(TRITON_FIRST, FIXED, f"no figures are published for {chip} in this precision")
    if not training and figures.short_inference and octave <= octave_of(SHORT):
        return Ranking(figures.short_inference, PUBLISHED, figures.source)
    narrow, wide = figures.training if training else figures.inference
    return Ranking(narrow if D <= NARROW else wide, PUBLISHED, figures.source)
