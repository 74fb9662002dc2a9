"""Whether what comes later moves the logits of a position, by values: the tokens from a cut on are replaced."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from archbench.testing.evaluation import Fault, NotApplicable
from archbench.testing.passes import Passes
from archbench.testing.probes import KINDS, kinds
from archbench.testing.subject import TOLERANCE, Difference, Subject, deviation

FUTURE = "Look for a missing causal mask, a shift the wrong way, or a mean, softmax or sort over positions"


class Future:
    """Cuts sequences, many in one pass, and replaces what follows.

    Attributes:
        passes: of the model, in one mode.
    """

    def __init__(self, subject: Subject, passes: Passes) -> None:
        self.subject = subject
        self.passes = passes

    def check_some_cuts(self, T: int) -> float:
        """Fault where a change moves an earlier logit in one of several sequences of T; how far, in deviations."""
        B = self.subject.rows(self.passes.model, len(KINDS), T)
        tokens = self.subject.probes(B, T, seed=T)
        # An early one, the middle, an odd one within a chunk of an even length, the last, chunks of 48, and any.
        chance = torch.randint(1, T, (2,), generator=torch.Generator().manual_seed(self.subject.seed)).tolist()
        wanted = [T // 2 + 1, T - 1, T // 2, 1, 48 if T > 48 else chance[1], chance[0]]
        cuts = torch.tensor([min(cut, T - 1) for cut in wanted[:B]], device=tokens.device)
        other = self._others(tokens)
        base = self.passes.logits(tokens)
        found = self.passes.logits(_changed(cuts, tokens, other))
        return self._judge(found, base, cuts, tokens, other)

    def check_every_cut(self, T: int) -> float:
        """The same for a text of T tokens cut before each position, in batches of the size that is scored."""
        B = self.subject.rows(self.passes.model, self.subject.batch_sizes[0], T)
        text = self.subject.probes(3, T, seed=T + 1)[2:]
        largest = 0.0
        for start in range(1, T, B - 1):
            # The first sequence has no cut, and is what the others are held against.
            cuts = torch.tensor([T, *range(start, min(T, start + B - 1))], device=text.device)
            tokens = text.expand(len(cuts), T)
            other = self._others(tokens)
            found = self.passes.logits(_changed(cuts, tokens, other))
            largest = max(largest, self._judge(found, found[:1].expand_as(found), cuts, tokens, other))
        return largest

    def _others(self, tokens: Tensor) -> Tensor:
        """(B, T): another token at every place; every other sequence is padded with one as far as that goes."""
        others = other_tokens(self.subject, tokens)
        separator, V = self.subject.separator, self.subject.V
        pads = tokens.new_tensor([0 if separator is None else separator % V, 0, V - 1])
        like = others.clone()
        like[0::2] = pads[torch.arange(len(like[0::2])) % len(pads)][:, None]
        return torch.where(like == tokens, others, like)

    def _judge(self, found: Tensor, base: Tensor, cuts: Tensor, tokens: Tensor, other: Tensor) -> float:
        """Compare logits before each sequence's cut: by how much they differ at most, as a share of the deviation."""
        spread = deviation(base)
        T = tokens.shape[1]
        moved = (found - base).abs().amax(-1).nan_to_num(nan=torch.inf, posinf=torch.inf)  # (B, T)
        moved = moved.masked_fill(torch.arange(T, device=cuts.device) >= cuts[:, None], 0)
        if float(moved.max()) > TOLERANCE * spread:
            row = int(moved.amax(-1).argmax())
            finding = self._finding(row, int(cuts[row]), tokens, other)
            if finding is not None:
                raise Fault(finding)
        return float(moved.max()) / spread

    def _finding(self, row: int, cut: int, tokens: Tensor, other: Tensor) -> str | None:
        """The sentence for a leak, in the simplest case that shows it; None where the rest of the batch is at fault."""
        B, T = tokens.shape
        plain = self.subject.tokens(1, T)

        def alone(changed: Tensor) -> Tensor:
            return self.passes.logits(changed)

        def beside(changed: Tensor) -> Tensor:
            batch = tokens.expand(B, T).clone()
            batch[row] = changed[0]
            return self.passes.logits(batch)[row : row + 1]

        one, another = tokens[row : row + 1], other[row : row + 1]
        cases: list[tuple[str, Tensor, Tensor, Callable[[Tensor], Tensor]]] = [
            ("", plain, other_tokens(self.subject, plain), alone),
            (f"in {_kind(one, tokens, row)}, ", one, another, alone),
            (f"in a batch of {B} sequences, ", one, another, beside),
        ]
        for where, these, those, logits in cases:
            sentence = self._smallest(where, these, those, logits, cut)
            if sentence:
                return sentence
        return None

    def _smallest(self, where: str, tokens: Tensor, other: Tensor, logits: Callable[[Tensor], Tensor], cut: int) -> str:
        """The sentence for a leak over ``cut`` with the fewest changed tokens; "" where there is none."""
        base = logits(tokens)
        T, spread = tokens.shape[1], deviation(base)

        def changed_from(start: int) -> Tensor:
            return torch.cat([tokens[:, :start], other[:, start:]], dim=1)

        first = Difference.between(logits(changed_from(cut))[:, :cut], base[:, :cut], spread)
        if first.negligible:
            return ""
        position = first.at[1]

        def movement(changed: Tensor) -> Difference:
            here = slice(position, position + 1)
            return Difference.between(logits(changed)[:, here], base[:, here], spread)

        moving, still = cut, T  # changing the tokens from `moving` on moves the logits, from `still` on it does not
        while still - moving > 1:
            middle = (moving + still) // 2
            if movement(changed_from(middle)).negligible:
                still = middle
            else:
                moving = middle
        single = tokens.clone()
        single[:, moving] = other[:, moving]
        what, moved = f"token {moving}", movement(single)
        if moved.negligible:
            what, moved = f"the tokens from {moving} on", movement(changed_from(moving))
        return (
            f"in {self.passes.mode} mode, {where}changing {what} of {T} (counted from 0) moves the logits of position "
            f"{position} by {moved.largest:.2g}, where their standard deviation is {spread:.2g}: it sees the future. "
            f"{FUTURE}"
        )


def _kind(one: Tensor, tokens: Tensor, row: int) -> str:
    """What a sequence is; all are one text where they are the same."""
    if len(tokens) > 1 and torch.equal(tokens[0], tokens[-1]):
        return "text"
    return kinds(len(tokens))[row]


def other_tokens(subject: Subject, tokens: Tensor) -> Tensor:
    """(B, T): another token at every place."""
    if subject.V < 2:
        raise NotApplicable("its vocabulary has one token, and there is none to change it for")
    generator = torch.Generator().manual_seed(subject.seed)
    steps = torch.randint(1, subject.V, tokens.shape, generator=generator).to(tokens.device)
    return (tokens + steps) % subject.V


def _changed(cuts: Tensor, tokens: Tensor, other: Tensor) -> Tensor:
    """(B, T): each sequence with other tokens from its cut on."""
    return torch.where(torch.arange(tokens.shape[1], device=cuts.device) < cuts[:, None], tokens, other)
