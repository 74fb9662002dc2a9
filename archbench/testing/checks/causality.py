"""A position sees only itself and what came before it, in its own sequence.

Both are tested in two ways. By values: what a user would see, and what can be told apart from rounding. By gradient:
what is too faint to move a logit, as leaks through a normalisation or a routing often are at initial weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from archbench.testing.evaluation import Fault, NotApplicable, check
from archbench.testing.passes import Passes
from archbench.testing.subject import Difference, Subject, deviation

GRADIENT_TOLERANCE = 1e-5
"""Of the largest gradient. Masked attention, scans and cumulative sums leave exact zeros; convolutions by FFT leave
rounding, 1e-6 of the largest after 12 layers at 512 positions."""

SHORT, BATCH_POSITIONS = 128, 64
"""Positions read where the whole context would cost minutes of a large model: for the gradients and in training mode,
in which nothing is scored; and to see whether sequences mix, which any position shows."""

_FUTURE = "Look for a missing causal mask, a shift the wrong way, or a mean, softmax or sort over positions"
_BATCH = (
    "Look for a mean, a norm or a sort over the batch, for routing with a capacity, or for a view that mixes B and T"
)


@check(gate=True, needs=("logits",))
def check_causality(subject: Subject) -> str:
    """A position that sees later tokens is told the answer: its perplexity is no prediction, and generation differs."""
    if subject.T < 2:
        raise NotApplicable("it reads one position at a time")
    T, S = subject.T, min(subject.T, SHORT)
    tokens = subject.tokens(1, T)  # one sequence: what others do to it is for batch_invariance
    other = _other_tokens(subject, tokens)
    model = subject.model()
    passes = Passes(model, training=False)
    # From the last token on, and from an odd place, which is within a chunk of an even length.
    largest = _check_future_values(passes, tokens, other, {T // 2 + 1, T - 1})
    tokens, other = tokens[:, :S], other[:, :S]
    largest = max(largest, _check_future_values(passes, tokens, other, {1, S // 2}))
    seen = [_check_future_gradients(passes, tokens, min(S // 2 + 1, S - 1))]
    passes = Passes(model, training=True)
    largest = max(largest, _check_future_values(passes, tokens, other, {S // 2 + 1, S - 1}))
    seen.append(_check_future_gradients(passes, tokens, min(S // 2 + 1, S - 1)))
    return f"earlier logits move by at most {largest:.1g} of their standard deviation; {_by_gradient(seen)}"


@check(gate=True, needs=("logits",))
def check_batch_invariance(subject: Subject) -> str:
    """Logits that depend on the rest of the batch are different ones in training, scoring and serving, and may carry
    the answer over from a neighbour."""
    tokens = subject.tokens(3, min(subject.T, BATCH_POSITIONS))
    others = torch.cat([tokens[:1], _other_tokens(subject, tokens)[1:]])
    order = [2, 0, 1]
    model = subject.model()
    passes = Passes(model, training=False)
    base = passes.logits(tokens)
    spread = deviation(base)
    alone = passes.logits(tokens[:1])
    if not Difference.between(passes.logits(tokens[:1], seed=1), alone, spread).negligible:
        raise Fault(
            "one sequence read twice in evaluation mode gives different logits under different seeds, so nothing can "
            "be repeated. Look for dropout or noise that does not ask self.training"
        )
    permuted = "in another order of a batch's three sequences, the"
    largest = max(
        _assert_unmoved(permuted, passes.logits(tokens[order]), base[order], spread),
        _assert_unmoved("beside other sequences, the", passes.logits(others)[:1], base[:1], spread),
        _assert_unmoved("read alone instead of beside two others, the", alone, base[:1], spread),
    )
    seen = [_check_batch_gradients(passes, tokens[:2])]

    passes = Passes(model, training=True)  # in one order only: dropout's masks depend on the place in the batch
    expected, found = passes.logits(tokens[:2])[:1], passes.logits(others[:2])[:1]
    what = "in training mode, beside another sequence, the"
    largest = max(largest, _assert_unmoved(what, found, expected, deviation(expected)))
    seen.append(_check_batch_gradients(passes, tokens[:2]))
    return f"logits move by at most {largest:.1g} of their standard deviation; {_by_gradient(seen)}"


def _check_future_values(passes: Passes, tokens: Tensor, other: Tensor, starts: set[int]) -> float:
    """Fault where changing the tokens from one of ``starts`` on moves a logit before it; how far, in deviations."""
    base = passes.logits(tokens)
    spread, largest = deviation(base), 0.0
    for start in sorted(starts):
        if start >= tokens.shape[1]:
            continue
        found = passes.logits(_changed_from(start, tokens, other))
        difference = Difference.between(found[:, :start], base[:, :start], spread)
        largest = max(largest, difference.share)
        if not difference.negligible:
            raise Fault(_future_by_value(passes, tokens, other, base, start, difference.at[1]))
    return largest


def _future_by_value(passes: Passes, tokens: Tensor, other: Tensor, base: Tensor, start: int, position: int) -> str:
    """The sentence for a leak into ``position``, with the fewest changed tokens that show it."""
    T, spread = tokens.shape[1], deviation(base)

    def movement(changed: Tensor) -> Difference:
        here = slice(position, position + 1)
        return Difference.between(passes.logits(changed)[:, here], base[:, here], spread)

    moving, still = start, T  # changing the tokens from `moving` on moves the logits, from `still` on it does not
    while still - moving > 1:
        middle = (moving + still) // 2
        if movement(_changed_from(middle, tokens, other)).negligible:
            still = middle
        else:
            moving = middle
    single = tokens.clone()
    single[:, moving] = other[:, moving]
    what, moved = f"token {moving}", movement(single)
    if moved.negligible:
        what, moved = f"the tokens from {moving} on", movement(_changed_from(moving, tokens, other))
    return (
        f"in {passes.mode} mode, changing {what} of {T} (counted from 0) moves the logits of position {position} by "
        f"{moved.largest:.2g}, where their standard deviation is {spread:.2g}: it sees the future. {_FUTURE}"
    )


def _check_future_gradients(passes: Passes, tokens: Tensor, start: int) -> bool:
    """Fault where the logits before ``start`` depend on tokens from there on; whether there was a gradient to see."""
    before = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens) < start
    leaks = f"the future leaks, if too faintly at these weights to be seen in the logits. {_FUTURE}"
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


def _other_tokens(subject: Subject, tokens: Tensor) -> Tensor:
    """(B, T): another token at every place."""
    if subject.V < 2:
        raise NotApplicable("its vocabulary has one token, and there is none to change it for")
    generator = torch.Generator().manual_seed(subject.seed)
    steps = torch.randint(1, subject.V, tokens.shape, generator=generator).to(tokens.device)
    return (tokens + steps) % subject.V


def _changed_from(start: int, tokens: Tensor, other: Tensor) -> Tensor:
    return torch.cat([tokens[:, :start], other[:, start:]], dim=1)


def _by_gradient(seen: Iterable[bool]) -> str:
    if all(seen):
        return "no gradient flows to what they must not see"
    return "by values only: no lookup of the tokens was seen that the logits have a finite gradient to"
