"""A position sees only itself and what came before it, in its own sequence.

Both are tested in two ways. By values: what a user would see, and what can be told apart from rounding. By gradient:
what is too faint to move a logit, as leaks through a normalisation or a routing often are at initial weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from archbench.protocols import CachedModel
from archbench.testing.evaluation import Fault, NotApplicable, check
from archbench.testing.future import FUTURE, Future, other_tokens
from archbench.testing.passes import Passes
from archbench.testing.subject import Difference, Subject, deviation, forward_flops

GRADIENT_TOLERANCE = 1e-5
"""Of the largest gradient. Masked attention, scans and cumulative sums leave exact zeros; convolutions by FFT leave
rounding, 1e-6 of the largest after 12 layers at 512 positions."""

SHORT, BATCH_POSITIONS, TRAINED_POSITIONS = 128, 48, 24
"""Positions read where the whole context would cost minutes of a large model: for the gradients in evaluation mode,
where values are held against each other too; and to see whether sequences mix, which any position shows."""

EVERY, EVERY_UNCACHED = 32, 64
"""Positions of a short sequence of which every one is held against its future. Those further on are compared with
decoding from a cache, one by one, where there is one."""

FLOPS_FOR_EVERY_CUT = 1 << 36
"""Most FLOPs to cut a whole context at every position, in a model that has no cache."""

_BATCH = (
    "Look for a mean, a norm or a sort over the batch, for routing with a capacity, or for a view that mixes B and T"
)


@check(gate=True, needs=("logits",))
def check_causality(subject: Subject) -> str:
    """A position that sees later tokens is told the answer: its perplexity is no prediction, and generation differs."""
    if subject.T < 2:
        raise NotApplicable("it reads one position at a time")
    T, model = subject.T, subject.model()
    tokens = subject.tokens(1, T)
    other_tokens(subject, tokens)
    cached = isinstance(model, CachedModel)
    future = Future(subject, Passes(model, training=False))
    largest = future.check_some_cuts(T)
    largest = max(largest, future.check_every_cut(min(max(2, T - 1), EVERY if cached else EVERY_UNCACHED)))
    if not cached and T > EVERY_UNCACHED and forward_flops(model, T * T) <= FLOPS_FOR_EVERY_CUT:
        largest = max(largest, future.check_every_cut(T))
    S = min(T, SHORT)
    seen = [_check_future_gradients(future.passes, tokens[:, :S], min(S // 2 + 1, S - 1))]
    future = Future(subject, Passes(model, training=True))
    largest = max(largest, *(future.check_some_cuts(length) for length in {T, max(2, min(T - 1, TRAINED_POSITIONS))}))
    seen.append(_check_future_gradients(future.passes, tokens, min(T // 2 + 1, T - 1)))
    return f"earlier logits move by at most {largest:.1g} of their standard deviation; {_by_gradient(seen)}"


@check(gate=True, needs=("logits",))
def check_batch_invariance(subject: Subject) -> str:
    """Logits that depend on the rest of the batch are different ones in training, scoring and serving, and may carry
    the answer over from a neighbour."""
    T, model = min(subject.T, BATCH_POSITIONS), subject.model()
    B = max(3, subject.rows(model, max(subject.batch_sizes), T))
    tokens = subject.probes(B, T)
    tokens[0] = subject.tokens(1, T)[0]
    others = torch.cat([tokens[:1], other_tokens(subject, tokens)[1:]])
    order = [*range(2, B), 0, 1]
    passes = Passes(model, training=False)
    base = passes.logits(tokens)
    spread = deviation(base)
    alone = passes.logits(tokens[:1])
    if not Difference.between(passes.logits(tokens[:1], seed=1), alone, spread).negligible:
        raise Fault(
            "one sequence read twice in evaluation mode gives different logits under different seeds, so nothing can "
            "be repeated. Look for dropout or noise that does not ask self.training"
        )
    largest = 0.0
    for b in sorted({1, *(size for size in subject.batch_sizes if size < B)}):
        found = alone if b == 1 else passes.logits(tokens[:b])
        what = f"read alone instead of beside {B - 1} others" if b == 1 else f"in a batch of {b} instead of {B}"
        largest = max(largest, _assert_unmoved(f"{what}, the", found, base[:b], spread))
    permuted = f"in another order of a batch's {B} sequences, the"
    largest = max(largest, _assert_unmoved(permuted, passes.logits(tokens[order]), base[order], spread))
    one = tokens[: max(2, *subject.batch_sizes[1:]), :1]  # as in decoding
    singly = torch.cat([passes.logits(one[row : row + 1]) for row in range(len(one))])
    what = f"with one token each, in a batch of {len(one)} instead of alone, the"
    largest = max(largest, _assert_unmoved(what, passes.logits(one), singly, spread))
    seen = [_check_batch_gradients(passes, subject.tokens(2, T))]

    passes = Passes(model, training=True)  # in one order only: dropout's masks depend on the place in the batch
    tokens, others = tokens[:, :TRAINED_POSITIONS], others[:, :TRAINED_POSITIONS]
    base = passes.logits(tokens)
    what = "in training mode, beside other sequences, the"
    for kept in (slice(1), slice(1, None)):
        mixed = others.clone() if kept.stop else torch.cat([other_tokens(subject, tokens[:1]), tokens[1:]])
        found = passes.logits(mixed)[kept]
        largest = max(largest, _assert_unmoved(what, found, base[kept], deviation(base)))
    seen.append(_check_batch_gradients(passes, subject.tokens(2, T)))
    return f"logits move by at most {largest:.1g} of their standard deviation; {_by_gradient(seen)}"


def _check_future_gradients(passes: Passes, tokens: Tensor, start: int) -> bool:
    """Fault where the logits before ``start`` depend on tokens from there on; whether there was a gradient to see."""
    before = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens) < start
    leaks = f"the future leaks, if too faintly at these weights to be seen in the logits. {FUTURE}"
    return _check_gradients(passes, tokens, before, f"the logits before position {start}", leaks)


def _check_batch_gradients(passes: Passes, tokens: Tensor) -> bool:
    """Fault where the logits of the first sequence depend on the others; whether there was a gradient to see."""
    first = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens) < 1
    leaks = f"the sequences of a batch see each other. {_BATCH}"
    return _check_gradients(passes, tokens, first, "the logits of sequence 0", leaks)


def _check_gradients(passes: Passes, tokens: Tensor, reading: Tensor, logits: str, leaks: str) -> bool:
    """Fault where the logits at ``reading`` (B, T) bool depend on other tokens; whether there was a gradient to see."""
    B, T = tokens.shape
    gradients = passes.gradients(tokens, reading)
    for gradient in gradients:  # (B, T)
        leaked = gradient.masked_fill(reading, 0)
        share = float(leaked.max() / gradient.max())
        if share > GRADIENT_TOLERANCE:
            row, position = divmod(int(leaked.argmax()), T)
            whose = f"token {position} of {T}" if B == 1 else f"token {position} of sequence {row}"
            raise Fault(
                f"in {passes.mode} mode, {logits} have a gradient with respect to what was looked up for {whose}, "
                f"{share:.1g} of the largest, where it has to be 0: {leaks}"
            )
    return bool(gradients)


def _assert_unmoved(what: str, found: Tensor, expected: Tensor, spread: float) -> float:
    """Fault where the logits of a sequence differ; by how much they do, as a share of ``spread``."""
    difference = Difference.between(found, expected, spread)
    if difference.negligible:
        return difference.share
    raise Fault(
        f"{what} logits of a sequence move by {difference.largest:.2g} at position {difference.at[1]}, where their "
        f"standard deviation is {spread:.2g}: they depend on the rest of the batch. {_BATCH}"
    )


def _by_gradient(seen: Iterable[bool]) -> str:
    if all(seen):
        return "no gradient flows to what they must not see"
    return "by values only: no lookup of the tokens was seen that the logits have a finite gradient to"
