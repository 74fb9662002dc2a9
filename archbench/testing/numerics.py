"""Do numbers repeat, and do they survive another dtype and a compiler?"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archbench.inference.sampling import Sampling
from archbench.kernels.triton_guard import without_triton
from archbench.protocols import CachedModel
from archbench.testing.checks import Check, Fault
from archbench.testing.frames import plugin_line
from archbench.testing.interface import raised
from archbench.testing.subject import Subject

POSITIONS = 128
"""Positions read, at most: enough to see rounding grow along a sequence."""

STEPS, NEW_TOKENS = 3, 8

BFLOAT16_TOLERANCE = 0.05
"""Of the logits' standard deviation. bfloat16 keeps 8 bits: attention, selective scans, linear attention and experts of
8 layers end up 1 % off, a model that is lost in it 100 %."""

BFLOAT16_SHARE = 0.75
"""Positions that have to be as near. Where two experts are nearly level, rounding may send a token to the other one."""

LOSS_TOLERANCE = 0.02
"""Of the loss: it is a mean over positions, in which roundings of a few percent of the logits' deviation cancel."""

COMPILED_TOLERANCE = 1e-4
"""Of the logits' standard deviation, or of a parameter's largest gradient: a compiler may sum in another order."""

COMPILED_ZERO = 1e-6
"""Of the largest gradient of all: what is 0 but for rounding, as that of a key's bias, has no digits to agree on."""


@dataclass
class _Course:
    """What a model is, learns and says under one seed."""

    initial: dict[str, Tensor]
    losses: list[float]
    trained: dict[str, Tensor]
    samples: list[list[int]]


def check_seed(subject: Subject) -> str:
    first, second = _course(subject), _course(subject)
    if name := _first_difference(first.initial, second.initial):
        raise Fault(
            f"built twice under seed {subject.seed}, the initial values of {name} differ. Draw them from torch's "
            "global generator: those of numpy and random are not seeded"
        )
    if subject.device.type == "cpu":  # on a GPU sums by atomic additions differ from run to run
        for step, (loss, again) in enumerate(zip(first.losses, second.losses, strict=True)):
            if loss != again:
                raise Fault(
                    f"trained twice from the same weights on the same batches, the loss of step {step} is {loss!r} and "
                    f"then {again!r}. Look for randomness that is not torch's own, or state kept outside the model"
                )
        if name := _first_difference(first.trained, second.trained):
            raise Fault(f"trained twice with the same losses for {STEPS} steps, the values of {name} differ")
        if first.samples != second.samples:
            place = next(i for i in range(NEW_TOKENS) if first.samples[i : i + 1] != second.samples[i : i + 1])
            raise Fault(
                f"generate, called twice with the same seeds, samples other tokens from new token {place} on. Draw "
                "from sampling.generator, or from torch's own generator where that is None"
            )
    if not _first_difference(first.initial, subject.build(subject.seed + 1).state_dict()):
        if all(bool((tensor == tensor.flatten()[:1]).all()) for tensor in first.initial.values()):
            return "every initial value is a constant, so that all seeds begin alike"
        raise Fault(
            f"seeds {subject.seed} and {subject.seed + 1} give the same initial weights, so that repeats over seeds "
            "tell nothing of chance. Draw from torch's global generator, and set no seed"
        )
    if subject.device.type != "cpu":
        return "initial weights are the same bit for bit; training was not compared, for a GPU's sums are not"
    return f"initial weights, {STEPS} training steps and sampled tokens are the same bit for bit"


def _course(subject: Subject) -> _Course:
    model = subject.build()
    initial = _copied(model)
    T = min(subject.T, POSITIONS)
    state = subject.state(model.train())
    torch.manual_seed(subject.seed)
    losses = [float(subject.architecture.train_step(state, subject.batch(2, T, seed=step))) for step in range(STEPS)]
    trained = _copied(model)
    # Both generators, whichever it draws from: that it is the one it was given is for another check.
    torch.manual_seed(subject.seed)
    sampling = Sampling(generator=torch.Generator(subject.device).manual_seed(subject.seed))
    prompt = subject.tokens(2, max(1, T // 2))
    tokens = subject.architecture.generate(model, prompt, NEW_TOKENS, sampling)
    return _Course(initial, losses, trained, [token.tolist() for token in tokens])


def check_bfloat16(subject: Subject) -> str:
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
        B, T = tokens.shape
        cache = cached.new_cache(B, T)
        if T > 1:
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
    off = float(error.kthvalue(max(1, round(BFLOAT16_SHARE * len(error)))).values / exact.std())
    if not off <= BFLOAT16_TOLERANCE:
        raise Fault(
            f"with its weights in bfloat16, {what} are off by {off:.0%} of their standard deviation or more at a "
            f"quarter of the positions; up to {BFLOAT16_TOLERANCE:.0%} would be rounding. Keep angles, decays, sums "
            "and norms in float32: x.float()"
        )
    return off


def _loss(subject: Subject, dtype: torch.dtype) -> float:
    """Of one training step, its parameters looked at."""
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


def check_compile(subject: Subject) -> str:
    lengths = sorted({min(subject.T, POSITIONS), max(1, min(subject.T, POSITIONS) // 2 + 1)}, reverse=True)
    model = subject.model()
    # Torch asks for Triton when its compiler is loaded, and no process that stays on a CPU is to load it.
    with without_triton() if subject.device.type == "cpu" else nullcontext():
        import torch._dynamo  # here, for it takes a second to import

        torch._dynamo.reset()
        try:
            compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
            off = max(_compare_compiled(subject, model, compiled, T) for T in lengths)
        finally:
            torch._dynamo.reset()
    return f"one graph; compiled logits are off by {off:.1g} of their standard deviation"


def _compare_compiled(subject: Subject, model: nn.Module, compiled: Callable[[Tensor], Tensor], T: int) -> float:
    """Fault where compiling changes logits or gradients at ``T`` positions; how far off the logits are."""
    tokens = subject.tokens(2, T)
    expected, expected_gradients = _with_gradients(model, model, tokens)
    try:
        found, found_gradients = _with_gradients(model, compiled, tokens)
    except Exception as error:  # the model itself has just read the same: whatever this is, compiling brought it
        raise Fault(_uncompiled(error)) from error
    off = float((found - expected).abs().max() / expected.std())
    if not off <= COMPILED_TOLERANCE:
        raise Fault(
            f"compiled, its logits of {T} positions are off by {off:.2g} of their standard deviation. Look for state "
            "that forward keeps outside its arguments, or custom operators whose fake kernel is another one"
        )
    largest = max((float(gradient.abs().max()) for gradient in expected_gradients.values()), default=0.0)
    for name, gradient in expected_gradients.items():
        if name not in found_gradients:
            raise Fault(f"compiled, {name} gets no gradient. Look at custom autograd functions and operators")
        difference = float((found_gradients[name] - gradient).abs().max())
        if not difference <= COMPILED_TOLERANCE * float(gradient.abs().max()) + COMPILED_ZERO * largest:
            raise Fault(
                f"compiled, the gradient of {name} is off by {difference:.2g}, where the largest is "
                f"{float(gradient.abs().max()):.2g}. Look at custom autograd functions and operators"
            )
    return off


def _with_gradients(
    model: nn.Module, forward: Callable[[Tensor], Tensor], tokens: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (B, T, V), and the parameters' gradients of a random sum of them."""
    model.zero_grad()
    torch.manual_seed(0)
    logits = forward(tokens)
    weights = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(0)).to(logits)
    torch.autograd.backward((logits @ weights).square().sum())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def _uncompiled(error: Exception) -> str:
    """What torch's compiler says, in a sentence: its headline, its explanation, and the plugin's line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    explained = [line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")]
    said = ": ".join(line.rstrip(".:") for line in [lines[0], *explained[:1]])
    frames = [(match[1], int(match[2])) for match in re.finditer(r'File "(.+?)", line (\d+), in', str(error))]
    where = plugin_line(reversed(frames))
    return (
        f"torch.compile makes no one graph of it: {said}{where}. Without fullgraph=True it would fall back to Python "
        "there: write that line with tensor operations, and without printing or values taken out of tensors"
    )


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _first_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> str:
    """The name of the first tensor that is not the same bit for bit; "" for none."""
    return next((name for name, tensor in first.items() if not torch.equal(tensor, second[name])), "")


SEED = Check(
    "seed",
    "A run that cannot be repeated cannot be checked, and repeats over seeds are to show the role of chance.",
    check_seed,
    needs=("logits", "side_effects"),
)
BFLOAT16 = Check(
    "bfloat16",
    "Most models are trained and served in bfloat16: one that breaks in it is measured as another model.",
    check_bfloat16,
    needs=("logits", "generate", "train_step"),  # it decodes from the cache, and trains
)
COMPILE = Check(
    "compile",
    "With --compile every other architecture is traced whole; one that is not is slower for a reason of its own.",
    check_compile,
    needs=("logits",),
)
