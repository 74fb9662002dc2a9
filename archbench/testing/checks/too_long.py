"""A model that is given more than its context says so, or reads on correctly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archbench.errors import HookFailedError
from archbench.inference.sampling import Sampling
from archbench.protocols import CachedModel
from archbench.testing.evaluation import Fault, check
from archbench.testing.plugin_lines import raised
from archbench.testing.subject import Difference, Subject


@check(needs=("logits", "generate"))
def check_too_long(subject: Subject) -> str:
    """A model that reads past its context silently scores and decodes something else than what it was trained for."""
    model, T = subject.model(), subject.T
    tokens = subject.tokens(2, T + 1)
    longer: Tensor | None = None
    try:
        with torch.no_grad():
            longer = model(tokens)  # (B, T + 1, V)
    except ValueError as error:
        seen = f"forward raises {type(error).__name__}"
    except Exception as error:
        raise _unhelpful(f"{T + 1} tokens, one more than the context of {T}, forward", error) from error
    else:
        _check_longer_logits(model, tokens, longer)
        seen = "forward reads on"
    _check_cache(model, tokens[:1])
    _check_prompt(subject, model, tokens)
    return f"at position {T + 1} {seen}"


def _unhelpful(what: str, error: Exception) -> Fault:
    return Fault(
        f"given {what} raised {raised(error)}, which does not help whoever passed them: raise "
        "archbench.errors.UsageError, a ValueError, naming the position and the limit"
    )


def _check_longer_logits(model: nn.Module, tokens: Tensor, longer: Tensor) -> None:
    T = tokens.shape[1] - 1
    given = f"given {T + 1} tokens, one more than the context of {T}, forward"
    remedy = "Read on correctly, or raise archbench.errors.UsageError naming the position and the limit"
    with torch.no_grad():
        alone = model(tokens[:, :T])  # (B, T, V)
    if longer.shape != (alone.shape[0], T + 1, alone.shape[2]):
        raise Fault(f"{given} silently returned logits of shape {(*longer.shape,)}. {remedy}")
    if not bool(longer.isfinite().all()):
        position = int((~longer.isfinite()).any(-1).any(0).nonzero()[0])
        raise Fault(f"{given} returned logits that are not finite, from position {position + 1} on. {remedy}")
    difference = Difference.between(longer[:, :T], alone)
    if not difference.negligible:
        raise Fault(
            f"{given} returned other logits for the first {T} than for those alone: at position "
            f"{difference.at[1] + 1} {difference}, as if the first token were dropped or positions were counted from "
            f"the end. {remedy}"
        )


def _check_cache(model: nn.Module, tokens: Tensor) -> None:
    if not isinstance(model, CachedModel):
        return
    length = tokens.shape[1]
    what = f"new_cache(1, {length})"
    try:
        with torch.inference_mode():
            cache = model.new_cache(1, length)
            what = f"{length} tokens and the cache that new_cache(1, {length}) made, extend"
            logits = model.extend(tokens, cache)  # (B, V)
    except ValueError:
        return
    except Exception as error:
        raise _unhelpful(what, error) from error
    if not bool(logits.isfinite().all()):
        raise Fault(f"given {what} returned logits that are not finite: raise archbench.errors.UsageError in new_cache")


def _check_prompt(subject: Subject, model: nn.Module, prompt: Tensor) -> None:
    what = f"a prompt of {prompt.shape[1]} tokens, one more than the context, generate"
    try:
        first = next(subject.architecture.generate(model, prompt, 1, Sampling(greedy=True)), None)
    except ValueError:
        return
    except HookFailedError as error:
        if isinstance(error.__cause__, ValueError):
            return
        raise _unhelpful(what, error) from error
    did = "yielded nothing" if first is None else "yielded a token"
    raise Fault(
        f"given {what} {did} and raised no error, so nobody would know which tokens it left out. Raise "
        "archbench.errors.UsageError, as archbench.decode_with_cache and decode_without_cache do"
    )
