"""Softmax cross-entropy of a row of logits, and its gradient in their place: two reads and one write."""

from __future__ import annotations

import triton
import triton.language as tl

LOSS_BLOCK = 4096


@triton.jit
def add_scores(maximum, others, scores, own):
    """The maximum, and the sum of exp(score - maximum) of all but the target, after a block more."""
    highest = tl.maximum(maximum, tl.max(scores, 0))
    weights = tl.where(own, 0.0, tl.exp(scores - highest))
    return highest, others * tl.exp(maximum - highest) + tl.sum(weights, 0)


@triton.jit
def errors_of(scores, own, maximum, others, total, counts):
    """Softmax minus one-hot of a block; zero in a row that does not count."""
    errors = tl.exp(scores - maximum) / total
    errors = tl.where(own, -others / total, errors)
    return tl.where(counts, errors, 0.0)


@triton.jit(do_not_specialize=["V", "row_stride", "ignored"])
def cross_entropy_kernel(
    logits, targets, losses, row_stride, V, ignored,
    BLOCK: tl.constexpr, STRIDE_UNIT: tl.constexpr, TRAINED: tl.constexpr,
):  # fmt: skip
    """losses (R,) float32 of logits (R, V), one row per program; if TRAINED, logits become softmax minus one-hot.

    A row whose target is ``ignored`` has loss and gradient zero; one whose target is no column has loss NaN.
    """
    row = tl.program_id(0)
    first = logits + row.to(tl.int64) * row_stride * STRIDE_UNIT  # from which the compiler knows the alignment
    target = tl.load(targets + row)
    counts = target != ignored
    columns = tl.arange(0, BLOCK)
    maximum = -float("inf")
    others = 0.0  # the sum of all but the target's: 1 - its probability, without cancellation
    known = (target >= 0) & (target < V)
    own = tl.load(first + target, mask=known, other=float("nan")).to(tl.float32)
    whole = V // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):  # without a mask, which would make loads narrow
        scores = tl.load(first + start + columns).to(tl.float32)
        maximum, others = add_scores(maximum, others, scores, start + columns == target)
    if whole < V:
        scores = tl.load(first + whole + columns, mask=whole + columns < V, other=-float("inf")).to(tl.float32)
        maximum, others = add_scores(maximum, others, scores, whole + columns == target)
    total = others + tl.exp(own - maximum)
    loss = maximum - own + tl.log(total)
    tl.store(losses + row, tl.where(counts, loss, 0.0))
    if TRAINED:
        for start in range(0, whole, BLOCK):
            scores = tl.load(first + start + columns).to(tl.float32)
            errors = errors_of(scores, start + columns == target, maximum, others, total, counts)
            tl.store(first + start + columns, errors.to(logits.dtype.element_ty))
        if whole < V:
            inside = whole + columns < V
            scores = tl.load(first + whole + columns, mask=inside, other=-float("inf")).to(tl.float32)
            errors = errors_of(scores, whole + columns == target, maximum, others, total, counts)
            tl.store(first + whole + columns, errors.to(logits.dtype.element_ty), mask=inside)
