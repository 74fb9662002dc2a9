"""In bfloat16 the model gives the same logits and losses, up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archbench.protocols import CachedModel
from archbench.testing.evaluation import Fault, check
from archbench.testing.plugin_lines import raised
from archbench.testing.subject import Subject

POSITIONS = 128
"""Most positions read: enough for rounding to grow along a sequence."""

TOLERANCE = 0.05
"""Of the logits' standard deviation. bfloat16 keeps 8 bits: attention, selective scans, linear attention and experts of
8 layers end up 1 % off, a model that breaks in it 100 %."""

SHARE = 0.75
"""Positions that have to be within it: where two experts are nearly level, rounding may change the choice."""

LOSS_TOLERANCE = 0.02
"""Of the loss: it is a mean over positions, in which roundings of a few percent of the logits' deviation cancel."""


@check(needs=("logits", "generate", "train_step"))  # it decodes from the cache, and trains
def check_bfloat16(subject: Subject) -> str:
    """Most models are trained and served in bfloat16: one that breaks in it is measured as another model."""
    T = min(subject.T, POSITIONS)
    tokens, model = subject.tokens(2, T), subject.model()
    exact, exact_decoded = _read(model, tokens)
    model.to(torch.bfloat16)
    try:
        rounded, decoded = _read(model, tokens)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise Fault(
            f"with its weights in bfloat16 the model raised {raised(error)}. Look for tensors made in "
            "float32 or with a dtype of their own: give them the dtype of a weight, as in x.to(self.weight.dtype)"
        ) from error
    off = _assert_near("the logits", rounded, exact)
    if decoded is not None and exact_decoded is not None:
        _assert_near("the logits of extend", decoded, exact_decoded)
    loss, rounded_loss = _loss(subject, torch.float32), _loss(subject, torch.bfloat16)
    if not abs(loss - rounded_loss) <= LOSS_TOLERANCE * abs(loss):
        raise Fault(
            f"trained under autocast to bfloat16, the loss of the first step is {rounded_loss:.4g}, and {loss:.4g} in "
            "float32. Take logarithms, exponentials and long sums in float32: x.float()"
        )
    return f"logits are off by {off:.1%} of their deviation, the loss by {abs(rounded_loss / loss - 1):.2%}"


def _read(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits (B, T, V), and those (B, V) of the last position from a cache where the model has one."""
    with torch.no_grad():
        logits: Tensor = model(tokens)
        if not isinstance(model, CachedModel):
            return logits, None
        cached: CachedModel = model
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
    torch.manual_seed(subject.seed)
    loss = float(subject.architecture.train_step(state, subject.batch(2, min(subject.T, POSITIONS))))
    for name, parameter in model.named_parameters():
        if parameter.dtype != dtypes[name]:
            raise Fault(f"training turned {name} from {dtypes[name]} into {parameter.dtype}: leave that to autocast")
        if dtype == torch.bfloat16 and not bool(parameter.isfinite().all()):
            raise Fault(f"after one training step under autocast to bfloat16, {name} is not finite")
    return loss
