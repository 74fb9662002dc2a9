"""In bfloat16 the model gives the same logits and losses, up to rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from archbench.errors import ArchbenchError
from archbench.protocols import CachedModel
from archbench.testing.evaluation import Fault, check
from archbench.testing.plugin_lines import raised
from archbench.testing.subject import Difference, Subject, logits_of, seed_generators

DECODED, POSITIONS, LONG = 32, 128, 512
"""Most positions decoded; trained on, enough for rounding to grow along a sequence; and read at once: bfloat16 tells
whole numbers apart up to 256, and positions are such."""

GROWTH, GROWN = 2.0, 0.01
"""Most times that the logits may be further off late in a long sequence than early, where they are by more than that
share of their standard deviation."""

TOLERANCE = 0.05
"""Of the logits' standard deviation. bfloat16 keeps 8 bits: attention, selective scans, linear attention and experts of
8 layers end up 1 % off, a model that breaks in it 100 %."""

HALF = "with its weights in bfloat16"

SHARE = 0.75
"""Positions that have to be within it: where two experts are nearly level, rounding may change the choice."""

LOSS_TOLERANCE = 0.02
"""Of the loss: it is a mean over positions, in which roundings of a few percent of the logits' deviation cancel."""


@check(needs=("logits", "generate", "train_step"))  # it decodes from the cache, and trains
def check_bfloat16(subject: Subject) -> str:
    """Most models are trained and served in bfloat16: one that breaks in it is measured as another model."""
    T, longer = min(subject.T, DECODED), _longer(subject)
    tokens, model = longer.tokens(1, min(longer.T, LONG)), longer.model()
    exact, exact_decoded = _read(model, tokens, T)
    autocast = subject.device.type, torch.bfloat16
    with torch.autocast(*autocast):
        _check_future("under autocast to bfloat16", model, tokens[:, :T])
        _check_late("under autocast to bfloat16", logits_of(model, tokens), exact)
    model.to(torch.bfloat16)
    try:
        rounded, decoded = _read(model, tokens, T)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise Fault(
            f"with its weights in bfloat16 the model raised {raised(error)}. Look for tensors made in "
            "float32 or with a dtype of their own: give them the dtype of a weight, as in x.to(self.weight.dtype)"
        ) from error
    _check_future(HALF, model, tokens[:, :T])
    off = _assert_near("the logits", rounded[:, :POSITIONS], exact[:, :POSITIONS])
    _check_late(HALF, rounded, exact)
    if decoded is not None and exact_decoded is not None:
        _assert_near("the logits of extend", decoded, exact_decoded)
    loss, rounded_loss = _loss(subject, torch.float32), _loss(subject, torch.bfloat16)
    if not abs(loss - rounded_loss) <= LOSS_TOLERANCE * abs(loss):
        raise Fault(
            f"trained under autocast to bfloat16, the loss of the first step is {rounded_loss:.4g}, and {loss:.4g} in "
            "float32. Take logarithms, exponentials and long sums in float32: x.float()"
        )
    return f"logits are off by {off:.1%} of their deviation, the loss by {abs(rounded_loss / loss - 1):.2%}"


def _longer(subject: Subject) -> Subject:
    """The same architecture with a context of :data:`LONG`, if it has none and accepts it."""
    if subject.T >= LONG:
        return subject
    try:
        longer = Subject(
            subject.architecture, subject.config.override(context_length=LONG), subject.device, seed=subject.seed
        )
        longer.model()
    except ArchbenchError:
        return subject
    return longer


def _check_future(when: str, model: nn.Module, tokens: Tensor) -> None:
    """Fault where later tokens move earlier logits, as where a faster path forgets its mask."""
    T = tokens.shape[1]
    changed = tokens.clone()
    changed[:, T // 2 :] = tokens[:, : T - T // 2].flip(1)
    difference = Difference.between(logits_of(model, changed)[:, : T // 2], logits_of(model, tokens)[:, : T // 2])
    if T > 1 and TOLERANCE < difference.share < math.inf:
        raise Fault(
            f"{when}, changing the tokens from {T // 2} on of {T} moves the logits of position {difference.at[1]} by "
            f"{difference.share:.0%} of their standard deviation, and not so in float32: it sees the future. Look for "
            "an attention or a mask that depends on the dtype"
        )


def _check_late(when: str, rounded: Tensor, exact: Tensor) -> None:
    """Fault where rounding grows along a long sequence (B, T, V): positions or angles are rounded."""
    T = exact.shape[1]
    off = (rounded.float() - exact).square().mean((0, 2)).sqrt() / exact.std()  # (T,)
    early, late = float(off[T // 8 : T // 4].median()), float(off[T // 2 :].median())
    if T >= LONG and not late <= max(GROWN, GROWTH * early):
        raise Fault(
            f"{when}, the logits are off by {late:.1%} of their standard deviation past position {T // 2} and by "
            f"{early:.1%} up to {T // 4}: bfloat16 tells whole numbers apart up to 256. Compute positions, angles and "
            "long sums in float32, and keep frequencies where rounding the weights does not round them"
        )


def _read(model: nn.Module, tokens: Tensor, T: int) -> tuple[Tensor, Tensor | None]:
    """Logits (B, ·, V), and those (B, V) of position T from a cache where the model has one."""
    with torch.no_grad():
        logits: Tensor = model(tokens)
        if not isinstance(model, CachedModel):
            return logits, None
        cached: CachedModel = model
        tokens = tokens[:, :T]
        cache = cached.new_cache(*tokens.shape)
        if tokens.shape[1] > 1:
            cached.extend(tokens[:, :-1], cache)
        return logits, cached.extend(tokens[:, -1:], cache)


def _assert_near(what: str, rounded: Tensor, exact: Tensor) -> float:
    """Fault where bfloat16 made other logits; how far off they are, as a share of their standard deviation."""
    if rounded.dtype not in (torch.bfloat16, torch.float32):
        raise Fault(f"with its weights in bfloat16, {what} are {rounded.dtype}. Return them in bfloat16 or float32")
    if not bool(rounded.isfinite().all()):
        raise Fault(
            f"with its weights in bfloat16, {int((~rounded.isfinite()).sum())} of {rounded.numel()} of {what} are not "
            "finite. Look for a small epsilon, a large mask value, or a division by what rounds to 0"
        )
    error = (rounded.float() - exact).square().mean(-1).sqrt().flatten()  # of each position
    off = float(error.kthvalue(max(1, round(SHARE * len(error)))).values / exact.std())
    if not off <= TOLERANCE:
        raise Fault(
            f"with its weights in bfloat16, {what} are off by {off:.0%} of their standard deviation or more at a "
            f"quarter of the positions; up to {TOLERANCE:.0%} would be rounding. Keep angles, decays, sums "
            "and norms in float32: x.float()"
        )
    return off


def _loss(subject: Subject, dtype: torch.dtype) -> float:
    """The loss of one training step; the parameters keep their dtype and stay finite."""
    model = subject.build().train()
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    state = subject.state(model, dtype="bfloat16" if dtype == torch.bfloat16 else "float32")
    seed_generators(subject.seed, subject.device)
    loss = float(subject.architecture.train_step(state, subject.batch(2, min(subject.T, POSITIONS))))
    for name, parameter in model.named_parameters():
        if parameter.dtype != dtypes[name]:
            raise Fault(f"training turned {name} from {dtypes[name]} into {parameter.dtype}: leave that to autocast")
        if dtype == torch.bfloat16 and not bool(parameter.isfinite().all()):
            raise Fault(f"after one training step under autocast to bfloat16, {name} is not finite")
    return loss
