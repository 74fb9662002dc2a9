"""What a plugin promises by its interface: usable hooks, logits for every token, a clear word when asked too much."""

from __future__ import annotations

import time
import traceback

import torch
from torch import Tensor, nn

from archbench.config import ModelConfig
from archbench.errors import ArchbenchError, ConfigError, HookFailedError, one_line
from archbench.inference.sampling import Sampling
from archbench.protocols import CachedModel
from archbench.testing.causality import Passes
from archbench.testing.checks import Check, Fault
from archbench.testing.frames import plugin_line
from archbench.testing.subject import TOLERANCE, Subject

CHEAP_SECONDS = 0.5
"""Of describe(), which does nothing but return what is written down: 10,000 times what it takes."""


def check_hooks(subject: Subject) -> str:
    presets = _check_describe(subject)
    model, again = subject.build(), subject.build()
    if again is model:
        raise Fault(
            "build returned the same module twice: it has to make a new one at each call, or a second run would go on "
            "with the weights that the first has trained"
        )
    parameters = dict(model.named_parameters())
    if not parameters:
        raise Fault(
            "the model has no parameters, so there is nothing to train: make tensors nn.Parameter, and keep modules as "
            "attributes or in nn.ModuleList; those in a plain list are not seen"
        )
    homes = {tensor.data_ptr(): name for name, tensor in parameters.items() if tensor.numel()}
    for name, tensor in again.named_parameters():
        if tensor.numel() and tensor.data_ptr() in homes:
            raise Fault(
                f"two models from build share the memory of parameter {name!r}, so training one changes the other: "
                "make parameters within build, not once for all"
            )
    _check_registered(model)
    _check_config(model, subject.config)
    return f"presets {', '.join(presets)}"


def _check_describe(subject: Subject) -> list[str]:
    """The presets' names."""
    info = subject.architecture.info
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        again = subject.architecture.describe()
        seconds.append(time.perf_counter() - start)
        for part in ("name", "summary", "paper", "config", "presets"):
            first, second = getattr(info, part), getattr(again, part)
            if first != second:
                hint = ": define the class once, at module level" if part == "config" else ""
                raise Fault(f"describe() gives another {part} at each call, {first!r} and then {second!r}{hint}")
    if min(seconds) > CHEAP_SECONDS:
        raise Fault(
            f"describe() took {min(seconds):.2g} s, and 'archbench list' asks every plugin: build no model there, and "
            "read no file"
        )
    bare = [name for name, field in info.config.model_fields.items() if not (field.description or "").strip()]
    if bare:
        raise Fault(
            f"{info.config.__name__}.{bare[0]} has no description{more(bare)}, and 'archbench show' would have nothing "
            'to say of it: write Field(..., description="…, with its unit")'
        )
    for name, preset in info.presets.items():
        try:
            preset.override()
        except ConfigError as error:
            raise Fault(f"preset {name!r} is not valid by its own config type: {error}") from error
    return list(info.presets)


def _check_registered(model: nn.Module) -> None:
    """No module or parameter is kept where torch does not look: in a plain list, tuple or dict."""
    known = {*map(id, model.modules()), *map(id, model.parameters())}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            for item in value.values() if isinstance(value, dict) else value:
                if isinstance(item, nn.Module | nn.Parameter) and id(item) not in known:
                    path = f"{name}.{attribute}" if name else attribute
                    kind = "modules" if isinstance(item, nn.Module) else "parameters"
                    raise Fault(
                        f"model.{path} is a plain {type(value).__name__} of {kind}, where torch does not look: they "
                        "are neither trained nor saved nor moved with the model. Make it an nn.ModuleList, "
                        "nn.ModuleDict or nn.ParameterList"
                    )


def _check_config(model: nn.Module, asked: ModelConfig) -> None:
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise Fault(
            "the model has no attribute config that is a ModelConfig: write self.config = config in its __init__, for "
            "decoding reads vocab_size and context_length there"
        )
    if config != asked:
        kept, wanted = dict(config), dict(asked)
        fields = [name for name in wanted if kept.get(name) != wanted[name]]
        detail = f"in its {fields[0]}, {kept.get(fields[0])!r} for {wanted[fields[0]]!r}" if fields else "in its type"
        raise Fault(
            f"model.config differs from what build was given {detail}: keep that one, or what is measured is not what "
            "was asked for"
        )


def check_logits(subject: Subject) -> str:
    T = subject.T
    shapes = sorted({(3, min(T, 7)), (1, 1), (1, T)}, reverse=True)  # the most telling one first
    model = subject.build().eval()
    _check_logits(model, subject.tokens(*shapes[0]), subject.V, "at initial weights")
    del model  # of the largest, memory holds one
    model = subject.model()
    for B, length in shapes:
        _check_logits(model, subject.tokens(B, length), subject.V, "with a little noise on every parameter")
    _check_logits(model.train(), subject.tokens(*shapes[0]), subject.V, "in training mode")
    _check_repeats(model, subject.tokens(*shapes[0]))
    del model
    _check_other_vocabulary(subject)
    return f"(B, T, V) for {', '.join(f'{B} × {length}' for B, length in shapes)} tokens, finite"


def _check_repeats(model: nn.Module, tokens: Tensor) -> None:
    """Logits are no matter of chance in evaluation mode, and of torch's generator alone in training mode."""
    cases = (
        (False, (1, 2), "does not ask self.training, and for state that one call leaves to the next"),
        (True, (1, 1), "is not drawn from torch's generator: random and numpy are not seeded"),
    )
    for training, seeds, which in cases:
        passes = Passes(model, training=training)
        first, second = (passes.logits(tokens, seed) for seed in seeds)
        difference = float((second - first).abs().max())
        if difference > TOLERANCE * float(first.std()):
            seeded = " under the same seed" if training else ""
            raise Fault(
                f"the same tokens, read twice in {passes.mode} mode{seeded}, have logits that differ by up to "
                f"{difference:.2g} (their standard deviation is {float(first.std()):.2g}). Look for dropout or noise "
                f"that {which}"
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
    torch.manual_seed(subject.seed)
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
            f"{case} the logits have shape {(*logits.shape,)}, and (B, T, V) = {(B, T, V)} is what is asked for: "
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
        where = bad.any(-1).sum()
        raise Fault(
            f"{case} logits[{b}, {t}, {v}] is {float(logits[b, t, v])}, and {int(where)} of the {B * T} positions have "
            "such logits: look for a division by zero, a logarithm or root of nothing, or a softmax whose every entry "
            "is masked"
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


def check_too_long(subject: Subject) -> str:
    model, T = subject.model(), subject.T
    tokens = subject.tokens(2, T + 1)
    longer: Tensor | None = None
    try:
        with torch.no_grad():
            longer = model(tokens)  # (B, T + 1, V)
    except ValueError as error:
        seen = f"forward raises {type(error).__name__}"
    except Exception as error:
        raise _untyped(f"{T + 1} tokens, one more than the context of {T}, forward", error) from error
    else:
        _check_reads_on(model, tokens, longer)
        seen = "forward reads on"
    _check_long_cache(model, tokens[:1])
    _check_long_prompt(subject, model, tokens)
    return f"at position {T + 1} {seen}"


def _untyped(what: str, error: Exception) -> Fault:
    return Fault(
        f"given {what} raised {raised(error)}, which says nothing to who passed them: raise "
        "archbench.errors.UsageError, a ValueError, naming the position and the limit"
    )


def _check_reads_on(model: nn.Module, tokens: Tensor, longer: Tensor) -> None:
    T = tokens.shape[1] - 1
    given = f"given {T + 1} tokens, one more than the context of {T}, forward"
    remedy = "Read on rightly, or raise archbench.errors.UsageError naming the position and the limit"
    with torch.no_grad():
        alone = model(tokens[:, :T])  # (B, T, V)
    if longer.shape != (alone.shape[0], T + 1, alone.shape[2]):
        raise Fault(f"{given} silently returned logits of shape {(*longer.shape,)}. {remedy}")
    if not bool(longer.isfinite().all()):
        position = int((~longer.isfinite()).any(-1).any(0).nonzero()[0])
        raise Fault(f"{given} returned logits that are not finite, from position {position + 1} on. {remedy}")
    differences = (longer[:, :T] - alone).abs().amax(-1).amax(0)  # (T,)
    if float(differences.max()) > TOLERANCE * float(alone.float().std()):
        position = int(differences.argmax())
        raise Fault(
            f"{given} returned other logits for the first {T} than for those alone: by {float(differences.max()):.2g} "
            f"at position {position + 1} (their standard deviation is {float(alone.float().std()):.2g}), as if the "
            f"first token were dropped or positions were counted from the end. {remedy}"
        )


def _check_long_cache(model: nn.Module, tokens: Tensor) -> None:
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
        raise _untyped(what, error) from error
    if not bool(logits.isfinite().all()):
        raise Fault(f"given {what} returned logits that are not finite: raise archbench.errors.UsageError in new_cache")


def _check_long_prompt(subject: Subject, model: nn.Module, prompt: Tensor) -> None:
    what = f"a prompt of {prompt.shape[1]} tokens, one more than the context, generate"
    try:
        tokens = subject.architecture.generate(model, prompt, 1, Sampling(greedy=True))
        first = next(tokens, None)
    except ValueError:
        return
    except HookFailedError as error:
        if isinstance(error.__cause__, ValueError):
            return
        raise _untyped(what, error) from error
    goes_on = "yielded nothing" if first is None else "yielded a token"
    raise Fault(
        f"given {what} {goes_on} and raised no error: which tokens it left out nobody would know. Raise "
        "archbench.errors.UsageError, as archbench.decode_with_cache and decode_without_cache do"
    )


def raised(error: BaseException) -> str:
    """What a plugin raised, as a clause: ``IndexError: index out of range (my_arch.py:34: return self.table[i])``."""
    if isinstance(error, HookFailedError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ArchbenchError):
        return one_line(error)  # it names its culprit itself
    frames = traceback.extract_tb(error.__traceback__)
    return one_line(error) + plugin_line((frame.filename, frame.lineno) for frame in reversed(frames))


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def more(names: list[str]) -> str:
    return f", and so for {len(names) - 1} more" if len(names) > 1 else ""


HOOKS = Check(
    "hooks",
    "A run builds many models from one plugin and looks things up in their configuration: what they share or get wrong "
    "there, no measurement shows.",
    check_hooks,
    gate=True,
)

LOGITS = Check(
    "logits",
    "Every quality is computed from the logits, by one function for all models: they have to be there, for each token "
    "id and position, in each batch.",
    check_logits,
    gate=True,
    needs=("hooks",),
)

TOO_LONG = Check(
    "too_long",
    "A model that reads past its context silently scores and decodes something else than what it was trained for.",
    check_too_long,
    needs=("logits", "generate"),
)
