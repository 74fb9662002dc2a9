"""``generate`` yields what it promises, one token at a time, and leaves the prompt and the model as they were."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from archbench.inference.sampling import Sampling
from archbench.testing.checks import Check, Fault
from archbench.testing.subject import Subject

GREEDY = Sampling(greedy=True)
B = 2
_PROMPT, _NEW = 4, 8
_AHEAD = 1.5
"""Operations before the first token when many are asked for, at most, as a multiple of those when two are."""
_FOR_NOTHING = 1 / 3
"""Operations for a later token, at least, as a part of the mean; a window that grows by a token makes no such odds."""


def check_generate(subject: Subject) -> str:
    model = subject.model()
    P, new = _sizes(subject.T)
    prompt = subject.tokens(B, P)
    tokens, work = _generate(subject, model, prompt, new, GREEDY)  # (B, new)
    _check_greedy(subject, model, prompt, tokens)
    _check_small(subject, model)
    _check_streaming(subject, model, prompt, work)
    _check_end(subject, model, prompt, tokens)
    _check_modes(subject, model, prompt, tokens)
    _check_sampling(subject, model, prompt, new)
    return f"{new} tokens after {P}, as soon as they are known"


def _sizes(T: int) -> tuple[int, int]:
    """Prompt length and new tokens that stay within the context: past it is the matter of cached_decode."""
    P = max(1, min(_PROMPT, T - _NEW + 1))
    return P, max(1, min(_NEW, T - P + 1))


def _generate(
    subject: Subject, model: nn.Module, prompt: Tensor, new_tokens: int, sampling: Sampling
) -> tuple[Tensor, list[int]]:
    """The new tokens (B, N), checked one by one; and torch operations done for each of them."""
    B = prompt.shape[0]
    given = prompt.clone()
    raw: list[Tensor] = []
    kept: list[Tensor] = []
    work = []
    case = f"with a prompt of shape {(*prompt.shape,)} and max_new_tokens = {new_tokens}"
    with _Counting() as counting:
        for token in islice(subject.architecture.generate(model, given, new_tokens, sampling), new_tokens + 1):
            work.append(counting.taken())
            _check_token(token, subject, B, len(raw) + 1, case)
            raw.append(token)
            kept.append(token.clone())
            counting.taken()
    if not torch.equal(given, prompt):
        raise Fault(f"generate changes the prompt that it is given ({case}): copy it before writing to it")
    count = len(raw)
    if count > new_tokens or (count < new_tokens and sampling.eos is None) or not count:
        how_many = f"more than {new_tokens}" if count > new_tokens else str(count)
        raise Fault(f"{case} generate yields {how_many} tokens: it has to yield {new_tokens}")
    for index, (token, before) in enumerate(zip(raw, kept, strict=True)):
        if not torch.equal(token, before):
            raise Fault(
                f"the tensor that generate yielded as token {index + 1} was overwritten by a later one: yield a new "
                "tensor each time, since the caller keeps them"
            )
        if token.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():
            raise Fault(f"token {index + 1} that generate yields lies in the caller's prompt: copy the prompt first")
    return torch.stack(kept, dim=1), work


def _check_token(token: Tensor, subject: Subject, B: int, number: int, case: str) -> None:
    if not isinstance(token, Tensor) or token.shape != (B,) or token.dtype != torch.int64:
        found = f"shape {(*token.shape,)}, {token.dtype}" if isinstance(token, Tensor) else type(token).__name__
        raise Fault(f"{case} token {number} is of {found}: every one has to be a tensor of shape ({B},), int64")
    if token.device.type != subject.device.type:
        raise Fault(f"{case} token {number} is on {token.device}: it has to stay on {subject.device}, with the model")
    if bool(((token < 0) | (token >= subject.V)).any()):
        raise Fault(f"{case} token {number} is {token.tolist()}: ids have to be from 0 to V - 1 = {subject.V - 1}")


def _check_greedy(subject: Subject, model: nn.Module, prompt: Tensor, tokens: Tensor) -> None:
    """Greedy decoding is no matter of chance, nor of how many tokens are asked for."""
    with torch.random.fork_rng(enabled=True):
        torch.manual_seed(1)
        again, _ = _generate(subject, model, prompt, tokens.shape[1], GREEDY)
    if not torch.equal(again, tokens):
        raise Fault(
            f"with Sampling(greedy=True) token {_first_other(again, tokens)} differs between two calls on the same "
            "prompt: choose by sampling.pick, and let no state of the first call stay on the model"
        )
    if tokens.shape[1] > 2:
        two, _ = _generate(subject, model, prompt, 2, GREEDY)
        if not torch.equal(two, tokens[:, :2]):
            raise Fault(
                f"with Sampling(greedy=True) token {_first_other(two, tokens)} depends on max_new_tokens: it is "
                f"{two.tolist()} for 2, and begins {tokens[:, :2].tolist()} for {tokens.shape[1]}"
            )


def _check_small(subject: Subject, model: nn.Module) -> None:
    """One sequence, a prompt of one token, one new token."""
    for batch_size, new in ((1, 1), (B, 1), (1, min(2, subject.T))):
        _generate(subject, model, subject.tokens(batch_size, 1, seed=3), new, GREEDY)


def _check_streaming(subject: Subject, model: nn.Module, prompt: Tensor, work: list[int]) -> None:
    """Each token's work is done when that token is asked for: what is timed between tokens is their cost."""
    if len(work) < 4:
        return
    _, two = _generate(subject, model, prompt, 2, GREEDY)
    if work[0] > _AHEAD * two[0]:
        raise Fault(
            f"before its first token generate does {work[0]} operations when asked for {len(work)} tokens, and "
            f"{two[0]} when asked for 2: it works ahead, and the time to the first token would be that of them all. "
            "Yield each token as soon as it is known"
        )
    later = work[1:]
    idle = min(range(len(later)), key=lambda index: later[index])
    if later[idle] < _FOR_NOTHING * sum(later) / len(later):
        raise Fault(
            f"generate does {later[idle]} operations for token {idle + 2} and {max(later)} for another: it computes "
            "several tokens at a time, and the time between tokens would be that of handing them out. Yield each token "
            "as soon as it is known"
        )


def _check_end(subject: Subject, model: nn.Module, prompt: Tensor, tokens: Tensor) -> None:
    """A sequence that has ended repeats ``eos``, or the iterator ends when all have; the others go on as ever."""
    new = tokens.shape[1]
    eos = int(tokens[0, 0])
    sampling = Sampling(greedy=True, eos=eos)
    found, _ = _generate(subject, model, prompt, new, sampling)
    expected = tokens.clone()
    for row in expected:
        ends = (row == eos).nonzero()
        if len(ends):
            row[int(ends[0]) :] = eos
    count = found.shape[1]
    if not torch.equal(found, expected[:, :count]):
        position = _first_other(found, expected)
        row = int((found[:, position - 1] != expected[:, position - 1]).nonzero()[0])
        wrong, right = int(found[row, position - 1]), int(expected[row, position - 1])
        raise Fault(
            f"with Sampling(eos={eos}), which ends sequence 0 at its first token, sequence {row} has {wrong} as "
            f"token {position} instead of {right}: "
            + ("it has ended, and has to repeat eos" if right == eos else "it has not ended")
        )
    if count < new and not bool((found == eos).any(dim=1).all()):
        going = int((~(found == eos).any(dim=1)).nonzero()[0])
        raise Fault(
            f"with Sampling(eos={eos}) generate stops after {count} tokens of {new}, although sequence {going} has not "
            "ended: stop when all have"
        )


def _check_modes(subject: Subject, model: nn.Module, prompt: Tensor, tokens: Tensor) -> None:
    """Training mode: off while tokens are chosen, and afterwards for each module as it was."""
    if model.training:
        raise Fault("generate leaves the model in training mode, although it was in evaluation mode before")
    model.train()
    for module in list(model.children())[:1]:
        module.eval()  # restored means each as it was, and not all alike
    modes = _modes(model)
    found, _ = _generate(subject, model, prompt, tokens.shape[1], GREEDY)
    _check_restored(model, modes, "after its last token")
    with torch.random.fork_rng(enabled=True):
        stream: Any = subject.architecture.generate(model, prompt.clone(), tokens.shape[1], GREEDY)
        next(stream)
        if hasattr(stream, "close"):
            stream.close()
    _check_restored(model, modes, "closed after its first token")
    model.eval()
    if not torch.equal(found, tokens):
        raise Fault(
            f"token {_first_other(found, tokens)} is another one if the model is in training mode: generate has to put "
            "it in evaluation mode while it decodes, or dropout decides"
        )


def _modes(model: nn.Module) -> dict[str, bool]:
    return {name or "the model itself": module.training for name, module in model.named_modules()}


def _check_restored(model: nn.Module, modes: dict[str, bool], when: str) -> None:
    names = {True: "training", False: "evaluation"}
    for name, training in _modes(model).items():
        if modes[name] != training:
            raise Fault(
                f"{when} generate leaves {name} in {names[training]} mode, and it was in {names[modes[name]]} mode: "
                "put each module back, in a 'finally' so that it also happens when the caller stops early"
            )


def _check_sampling(subject: Subject, model: nn.Module, prompt: Tensor, new: int) -> None:
    """Samples come from ``sampling.generator``: the same seed the same ones, others others."""

    def sample(seed: int) -> Tensor:
        # So hot that all tokens are nearly equally likely, whatever the model says.
        sampling = Sampling(temperature=1e3, generator=torch.Generator(subject.device).manual_seed(seed))
        return _generate(subject, model, prompt, new, sampling)[0]

    first, again = sample(1), sample(1)
    if not torch.equal(first, again):
        raise Fault(
            f"token {_first_other(first, again)} differs between two samples with the same seed: draw from "
            "sampling.generator, as sampling.pick does"
        )
    if subject.V > 1 and all(torch.equal(first, sample(seed)) for seed in (2, 3, 4)):
        raise Fault(
            "samples with four seeds at temperature 1,000 are all the same: choose by the sampling that is given, as "
            "sampling.pick does"
        )


def _first_other(found: Tensor, expected: Tensor) -> int:
    """Number, from 1, of the first token (B, N) in which two differ."""
    count = min(found.shape[1], expected.shape[1])
    return int((found[:, :count] != expected[:, :count]).any(dim=0).nonzero()[0]) + 1


class _Counting(TorchFunctionMode):
    """Counts calls of torch functions, in which a model's work is done; a look at a shape or device is no such call."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "__get__":
            self._calls += 1
        return func(*args, **(kwargs or {}))

    def taken(self) -> int:
        """Calls since this was last asked."""
        calls, self._calls = self._calls, 0
        return calls


GENERATE = Check(
    "generate",
    "Decoding speed is measured token by token through this hook: it has to do each token's work when that token is "
    "asked for, and all of it.",
    check_generate,
    gate=True,
    needs=("logits",),
)
