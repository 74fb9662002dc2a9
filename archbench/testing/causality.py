"""Does a position see only itself and what came before it, in its own sequence?

Each is asked twice. By values: what a user would see, and what can be told apart from rounding. By gradient: it finds
what is too faint to move a logit, as leaks through a normalisation or a routing often are at initial weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from archbench.testing.checks import Check, Fault, NotApplicable
from archbench.testing.subject import TOLERANCE, Subject
from archbench.testing.token_gradients import token_gradients

GRADIENT_TOLERANCE = 1e-5
"""Of the largest gradient. Masked attention, scans and cumulative sums leave exact zeros; convolutions by FFT leave
rounding, 1e-6 of the largest after 12 layers at 512 positions."""

SHORT, BATCH_POSITIONS = 128, 64
"""Positions read where the whole context would cost minutes of a large model: for the gradients and in training mode,
which nothing is scored in; and to see whether sequences mix, which does not wait for a late position."""

_FUTURE = "Look for a missing causal mask, a shift the wrong way, or a mean, softmax or sort over positions"
_COMPANY = (
    "Look for a mean, a norm or a sort over the batch, for routing with a capacity, or for a view that mixes B and T"
)


class Passes:
    """Forward passes of one model that differ in nothing but their tokens: not in the seed, nor in the buffers.

    Attributes:
        mode: ``evaluation`` or ``training``.
    """

    def __init__(self, model: nn.Module, *, training: bool) -> None:
        self.mode = "training" if training else "evaluation"
        self.model = model.train(training)
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def logits(self, tokens: Tensor, seed: int = 0) -> Tensor:
        """(B, T, V) float32."""
        self._begin(seed)
        with torch.no_grad():
            logits: Tensor = self.model(tokens.clone())
        return logits.float()

    def gradients(self, tokens: Tensor, positions: Tensor) -> list[Tensor]:
        """See :func:`archbench.testing.token_gradients.token_gradients`."""
        self._begin(0)
        return token_gradients(self.model, tokens.clone(), positions)

    def _begin(self, seed: int) -> None:
        torch.manual_seed(seed)  # the same dropout
        with torch.no_grad():
            for buffer, value in self._buffers:  # running statistics move in training mode
                buffer.copy_(value)


def check_causality(subject: Subject) -> str:
    if subject.T < 2:
        raise NotApplicable("it reads one position at a time")
    T, S = subject.T, min(subject.T, SHORT)
    tokens = subject.tokens(1, T)  # one sequence: what others do to it is batch_invariance's to say
    other = _other_tokens(subject, tokens)
    model = subject.model()
    passes = Passes(model, training=False)
    # From the last token on, and from an odd place, where chunks of an even length are under way.
    largest = _check_future_values(passes, tokens, other, {T // 2 + 1, T - 1})
    tokens, other = tokens[:, :S], other[:, :S]
    largest = max(largest, _check_future_values(passes, tokens, other, {1, S // 2}))
    seen = [_check_future_gradients(passes, tokens, min(S // 2 + 1, S - 1))]
    passes = Passes(model, training=True)
    largest = max(largest, _check_future_values(passes, tokens, other, {S // 2 + 1, S - 1}))
    seen.append(_check_future_gradients(passes, tokens, min(S // 2 + 1, S - 1)))
    return f"earlier logits move by at most {largest:.1g} of their standard deviation; {_joined(seen)}"


def check_batch_invariance(subject: Subject) -> str:
    tokens = subject.tokens(3, min(subject.T, BATCH_POSITIONS))
    others = torch.cat([tokens[:1], _other_tokens(subject, tokens)[1:]])
    order = [2, 0, 1]
    model = subject.model()
    passes = Passes(model, training=False)
    base = passes.logits(tokens)
    spread = _spread(base)
    again = passes.logits(tokens[:1], seed=1)
    alone = passes.logits(tokens[:1])
    if not _moved(again, alone).max() <= TOLERANCE * spread:
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
    seen = [_check_company_gradients(passes, tokens[:2])]

    passes = Passes(model, training=True)  # in one order only: masks of dropout go by the place in the batch
    expected, found = passes.logits(tokens[:2])[:1], passes.logits(others[:2])[:1]
    what = "in training mode, beside another sequence, the"
    largest = max(largest, _assert_unmoved(what, found, expected, _spread(expected)))
    seen.append(_check_company_gradients(passes, tokens[:2]))
    return f"logits move by at most {largest:.1g} of their standard deviation; {_joined(seen)}"


def _check_future_values(passes: Passes, tokens: Tensor, other: Tensor, starts: set[int]) -> float:
    """Fault where changing the tokens from one of ``starts`` on moves a logit before it; how far, in deviations."""
    base = passes.logits(tokens)
    spread, largest = _spread(base), 0.0
    for start in sorted(starts):
        if start >= tokens.shape[1]:
            continue
        moved = _moved(passes.logits(_changed_from(start, tokens, other)), base)[0, :start]
        largest = max(largest, float(moved.max()) / spread)
        if not moved.max() <= TOLERANCE * spread:  # NaN is a fault too
            position = int(moved.nan_to_num(torch.inf).argmax())
            raise Fault(_future_by_value(passes, tokens, other, base, start, position))
    return largest


def _future_by_value(passes: Passes, tokens: Tensor, other: Tensor, base: Tensor, start: int, position: int) -> str:
    """The sentence of a leak into ``position``, with the fewest changed tokens that show it."""
    T = tokens.shape[1]
    tolerance = TOLERANCE * _spread(base)

    def movement(changed: Tensor) -> float:
        return float(_moved(passes.logits(changed), base)[0, position])

    moving, still = start, T  # changing the tokens from `moving` on moves the logits, from `still` on it does not
    while still - moving > 1:
        middle = (moving + still) // 2
        if movement(_changed_from(middle, tokens, other)) <= tolerance:
            still = middle
        else:
            moving = middle
    single = tokens.clone()
    single[:, moving] = other[:, moving]
    what, size = f"token {moving}", movement(single)
    if size <= tolerance:
        what, size = f"the tokens from {moving} on", movement(_changed_from(moving, tokens, other))
    return (
        f"in {passes.mode} mode, changing {what} of {T} (counted from 0) moves the logits of position {position} by "
        f"{size:.2g}, where their standard deviation is {_spread(base):.2g}: it sees the future. {_FUTURE}"
    )


def _check_future_gradients(passes: Passes, tokens: Tensor, start: int) -> bool:
    """Fault where the logits before ``start`` depend on tokens from there on; whether there was a gradient to see."""
    T = tokens.shape[1]
    before = torch.arange(T, device=tokens.device).expand_as(tokens) < start
    gradients = passes.gradients(tokens, before)
    for gradient in gradients:
        leaked = gradient[0, start:]
        share = float(leaked.max() / gradient.max())
        if share > GRADIENT_TOLERANCE:
            raise Fault(
                f"in {passes.mode} mode, the logits before position {start} have a gradient with respect to what was "
                f"looked up for token {start + int(leaked.argmax())} of {T}, {share:.1g} of the largest, where it has "
                f"to be 0: the future leaks, if too faintly at these weights to be seen in the logits. {_FUTURE}"
            )
    return bool(gradients)


def _check_company_gradients(passes: Passes, tokens: Tensor) -> bool:
    """Fault where the logits of the first sequence depend on the others; whether there was a gradient to see."""
    first = torch.zeros_like(tokens, dtype=torch.bool)
    first[0] = True
    gradients = passes.gradients(tokens, first)
    for gradient in gradients:
        leaked = gradient[1:]
        share = float(leaked.max() / gradient.max())
        if share > GRADIENT_TOLERANCE:
            row, position = divmod(int(leaked.argmax()), tokens.shape[1])
            raise Fault(
                f"in {passes.mode} mode, the logits of sequence 0 have a gradient with respect to what was looked up "
                f"for token {position} of sequence {row + 1}, {share:.1g} of the largest, where it has to be 0: the "
                f"sequences of a batch see each other. {_COMPANY}"
            )
    return bool(gradients)


def _assert_unmoved(what: str, found: Tensor, expected: Tensor, spread: float) -> float:
    """Fault where the logits of a sequence differ; by how much they do, as a share of ``spread``."""
    moved = _moved(found, expected)  # (rows, T)
    if moved.max() <= TOLERANCE * spread:
        return float(moved.max()) / spread
    row, position = divmod(int(moved.nan_to_num(torch.inf).argmax()), moved.shape[1])
    raise Fault(
        f"{what} logits of a sequence move by {float(moved[row, position]):.2g} at position {position}, where their "
        f"standard deviation is {spread:.2g}: they depend on the rest of the batch. {_COMPANY}"
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


def _moved(found: Tensor, expected: Tensor) -> Tensor:
    """(B, T): how far each position's logits are apart, at most."""
    return (found - expected).abs().amax(-1)


def _spread(logits: Tensor) -> float:
    return max(float(logits.std()), 1e-30)


def _joined(seen: Iterable[bool]) -> str:
    if all(seen):
        return "no gradient flows to what they must not see"
    return "by values only: no lookup of the tokens was seen that the logits have a finite gradient to"


CAUSALITY = Check(
    "causality",
    "A position that sees later tokens is told the answer: its perplexity is no prediction, and generation differs.",
    check_causality,
    gate=True,
    needs=("logits",),
)
BATCH_INVARIANCE = Check(
    "batch_invariance",
    "Logits that depend on the rest of the batch are other ones in training, scoring and serving, and may carry the "
    "answer over from a neighbour.",
    check_batch_invariance,
    gate=True,
    needs=("logits",),
)
