"""The model returns finite, repeatable logits (B, T, V) for any batch, length and vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archbench.errors import ArchbenchError, ConfigError
from archbench.testing.evaluation import Fault, check
from archbench.testing.passes import Passes
from archbench.testing.plugin_lines import raised
from archbench.testing.subject import Difference, Subject, seed_generators


@check(gate=True, needs=("hooks",))
def check_logits(subject: Subject) -> str:
    """Every quality is computed from the logits, by one function for all models: they have to be there for each token
    id and position, in each batch."""
    T = subject.T
    shapes = sorted({(3, min(T, 7)), (1, 1), (1, T)}, reverse=True)  # the most informative one first
    model = subject.build().eval()
    _check_logits(model, subject.tokens(*shapes[0]), subject.V, "at initial weights")
    del model  # of the largest, memory holds one
    model = subject.model()
    for B, length in shapes:
        _check_logits(model, subject.tokens(B, length), subject.V, "with a little noise on every parameter")
    _check_logits(model.train(), subject.tokens(*shapes[0]), subject.V, "in training mode")
    tokens = subject.tokens(max(3, *subject.batch_sizes), min(T, 7))
    _check_repeats(model, tokens)
    _check_forgets(model, tokens, (tokens + 1) % subject.V)
    del model
    _check_other_vocabulary(subject)
    return f"(B, T, V) for {', '.join(f'{B} × {length}' for B, length in shapes)} tokens, finite"


def _check_repeats(model: nn.Module, tokens: Tensor) -> None:
    """Logits do not depend on chance in evaluation mode, and on torch's generator alone in training mode."""
    cases = (
        (False, (1, 2), "does not ask self.training, and for state that one call leaves to the next"),
        (True, (1, 1), "is not drawn from torch's generator: random and numpy are not seeded"),
    )
    for training, seeds, which in cases:
        passes = Passes(model, training=training)
        first, second = (passes.logits(tokens, seed) for seed in seeds)
        difference = Difference.between(second, first)
        if not difference.negligible:
            seeded = " under the same seed" if training else ""
            raise Fault(
                f"the same tokens, read twice in {passes.mode} mode{seeded}, have logits that differ {difference}. "
                f"Look for dropout or noise that {which}"
            )


def _check_forgets(model: nn.Module, tokens: Tensor, other: Tensor) -> None:
    """What was read before leaves no trace, not even before sequences of the same shape that begin alike."""
    passes = Passes(model, training=False)
    changed = tokens.clone()
    start = tokens.shape[1] // 2
    changed[:, start:] = other[:, start:]
    before, after = passes.logits(tokens)[:, start:], passes.logits(changed)[:, start:]
    alone = passes.logits(changed[:2])[:, start:]  # of another shape
    difference = Difference.between(after[:2], alone)
    if torch.equal(before, after) and not difference.negligible:
        raise Fault(
            f"other tokens from position {start} on, read after a batch of the same shape, have that batch's logits, "
            f"bit for bit, which differ from their own {difference}. Look for logits or states that are kept and "
            "looked up by shape, by place in memory or by the first tokens"
        )


def _check_other_vocabulary(subject: Subject) -> None:
    V = 257 if subject.V != 257 else 300
    when = f"with vocab_size = {V} instead of {subject.V}"
    try:
        config = subject.config.override(vocab_size=V)
    except ConfigError as error:
        raise Fault(
            f"the configuration cannot be had {when} ({error.cause}), and a run takes the vocabulary of its tokenizer: "
            "accept any number, and pad tables within the model where that helps"
        ) from error
    seed_generators(subject.seed, subject.device)
    try:
        model = subject.architecture.build(config).to(subject.device).eval()
    except ArchbenchError as error:
        raise Fault(f"{when} no model can be built: {raised(error)}. A run takes its tokenizer's vocabulary") from error
    tokens = subject.tokens(2, min(subject.T, 3)) % V
    tokens[0, 0] = V - 1
    _check_logits(model, tokens, V, when)


def _check_logits(model: nn.Module, tokens: Tensor, V: int, when: str) -> None:
    B, T = tokens.shape
    case = f"for tokens (B, T) = {(B, T)} {when}"
    try:
        with torch.no_grad():
            logits: object = model(tokens)
    except Exception as error:
        raise Fault(f"{case} the forward pass raised {raised(error)}") from error
    if not isinstance(logits, Tensor):
        raise Fault(f"{case} forward returned a {type(logits).__name__}: it has to return the logits alone, a tensor")
    if logits.shape != (B, T, V):
        raise Fault(
            f"{case} the logits have shape {(*logits.shape,)} instead of (B, T, V) = {(B, T, V)}: "
            f"{_shape_hint(logits, B, T, V)}"
        )
    if not logits.is_floating_point():
        raise Fault(f"the logits are of dtype {dtype_name(logits)}: they have to be floating-point numbers")
    weights = {parameter.dtype for parameter in model.parameters()}
    if weights == {torch.float32} and logits.dtype != torch.float32:
        raise Fault(
            f"the logits of float32 weights are of dtype {dtype_name(logits)}: leave the precision to archbench, which "
            "sets it alike for all architectures, and cast nothing"
        )
    bad = ~logits.isfinite()
    if bool(bad.any()):
        b, t, v = (int(i) for i in bad.nonzero()[0])
        raise Fault(
            f"{case} logits[{b}, {t}, {v}] is {float(logits[b, t, v])}, and {int(bad.any(-1).sum())} of the {B * T} "
            "positions have such logits: look for a division by zero, a logarithm or root of nothing, or a softmax "
            "whose every entry is masked"
        )


def _shape_hint(logits: Tensor, B: int, T: int, V: int) -> str:
    known = {
        (B, V): "these are one position's, and those of every position are needed",
        (T, B, V): "batch and positions are swapped",
        (B, V, T): "vocabulary and positions are swapped",
        (B * T, V): "batch and positions were flattened, and not unflattened",
    }
    shape = tuple(logits.shape)
    if shape in known:
        return known[shape]
    if shape[:-1] == (B, T):
        return f"the head gives {shape[-1]} numbers and not {V}, config.vocab_size"
    return "return one logit a token id, for every position"


def dtype_name(tensor: Tensor) -> str:
    """``float32``."""
    return str(tensor.dtype).removeprefix("torch.")
