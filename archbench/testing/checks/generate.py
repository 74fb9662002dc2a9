"""``generate`` yields what it promises, one token at a time, and leaves the prompt and the model as they were."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from archbench.inference.sampling import Sampling
from archbench.testing.evaluation import Fault, check
from archbench.testing.subject import Subject, seed_generators
from archbench.training.generators import forked_generators

GREEDY = Sampling(greedy=True)
HOT = 1e3
"""A temperature at which all tokens are nearly equally likely, whatever the model says."""
B = 2
_PROMPT, _NEW, _SAMPLED = 4, 8, 4
_AHEAD = 1.5
"""Most operations before the first token when many are asked for, as a multiple of those when two are."""
_FOR_NOTHING = 1 / 3
"""Fewest operations for a later token, as a share of the mean; a window that grows by a token stays well above it."""


@check(gate=True, needs=("logits", "batch_invariance"))
def check_generate(subject: Subject) -> str:
    """Decoding speed is measured token by token through this hook: it has to do each token's work when that token is
    asked for, and all of it."""
    P = max(1, min(_PROMPT, subject.T - _NEW + 1))  # within the context: cached_decode goes past it
    new = max(1, min(_NEW, subject.T - P + 1))
    decoder = _Decoder(subject, subject.model(), subject.tokens(B, P), new)
    tokens, work = decoder.decode()  # (B, new)
    two = _check_greedy(decoder, tokens)
    for batch_size, count in ((1, 1), (B, 1), (1, min(2, subject.T))):
        decoder.decode(subject.tokens(batch_size, 1, seed=3), count)
    _check_streaming(work, two)
    _check_end(decoder, tokens)
    _check_modes(decoder, tokens)
    _check_sampling(decoder, tokens[:, :_SAMPLED])
    return f"{new} tokens after {P}, as soon as they are known"


@dataclass
class _Decoder:
    """Calls ``generate`` and checks every token that it yields."""

    subject: Subject
    model: nn.Module
    prompt: Tensor  # (B, P)
    new: int

    def decode(
        self, prompt: Tensor | None = None, new: int | None = None, sampling: Sampling = GREEDY
    ) -> tuple[Tensor, list[int]]:
        """New tokens (B, N), and the torch operations done for each of them; ``prompt`` and ``new`` as given first."""
        prompt, new = self.prompt if prompt is None else prompt, self.new if new is None else new
        given = prompt.clone()
        raw: list[Tensor] = []
        kept: list[Tensor] = []
        work = []
        case = f"with a prompt of shape {(*prompt.shape,)} and max_new_tokens = {new}"
        with _Counting() as counting:
            for token in islice(self.subject.architecture.generate(self.model, given, new, sampling), new + 1):
                work.append(counting.taken())
                self._check_token(token, len(prompt), f"{case} token {len(raw) + 1}")
                raw.append(token)
                kept.append(token.clone())
                counting.taken()
        if not torch.equal(given, prompt):
            raise Fault(f"generate changes the prompt that it is given ({case}): copy it before writing to it")
        count = len(raw)
        if count > new or (count < new and sampling.eos is None) or not count:
            how_many = f"more than {new}" if count > new else str(count)
            raise Fault(f"{case} generate yields {how_many} tokens: it has to yield {new}")
        for number, (token, before) in enumerate(zip(raw, kept, strict=True), 1):
            if not torch.equal(token, before):
                raise Fault(
                    f"the tensor that generate yielded as token {number} was overwritten by a later one: yield a new "
                    "tensor each time, since the caller keeps them"
                )
            if token.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():
                raise Fault(f"token {number} that generate yields lies in the caller's prompt: copy the prompt first")
        return torch.stack(kept, dim=1), work

    def _check_token(self, token: Tensor, B: int, what: str) -> None:
        V, device = self.subject.V, self.subject.device
        if not isinstance(token, Tensor) or token.shape != (B,) or token.dtype != torch.int64:
            found = f"shape {(*token.shape,)}, {token.dtype}" if isinstance(token, Tensor) else type(token).__name__
            raise Fault(f"{what} is of {found}: every one has to be a tensor of shape ({B},), int64")
        if token.device.type != device.type:
            raise Fault(f"{what} is on {token.device}: it has to stay on {device}, with the model")
        if bool(((token < 0) | (token >= V)).any()):
            raise Fault(f"{what} is {token.tolist()}: ids have to be from 0 to V - 1 = {V - 1}")


def _check_greedy(decoder: _Decoder, tokens: Tensor) -> list[int]:
    """Greedy decoding depends neither on chance nor on how many tokens are asked for; the work for two of them."""
    with forked_generators(decoder.subject.device):
        seed_generators(1, decoder.subject.device)
        again, _ = decoder.decode()
    if not torch.equal(again, tokens):
        raise Fault(
            f"with Sampling(greedy=True) token {_first_other(again, tokens)} differs between two calls on the same "
            "prompt: choose by sampling.pick, and let no state of the first call stay on the model"
        )
    if tokens.shape[1] <= 2:
        return []
    two, work = decoder.decode(new=2)
    if not torch.equal(two, tokens[:, :2]):
        raise Fault(
            f"with Sampling(greedy=True) token {_first_other(two, tokens)} depends on max_new_tokens: it is "
            f"{two.tolist()} for 2, and begins {tokens[:, :2].tolist()} for {tokens.shape[1]}"
        )
    return work


def _check_streaming(work: list[int], two: list[int]) -> None:
    """Each token's work is done when that token is asked for, so that the time between tokens is their cost."""
    if len(work) < 4:
        return
    if work[0] > _AHEAD * two[0]:
        raise Fault(
            f"before its first token generate does {work[0]} operations when asked for {len(work)} tokens, and "
            f"{two[0]} when asked for 2: it works ahead, and the time to the first token would be that of them all. "
            "Yield each token as soon as it is known"
        )
    later = work[1:]
    fewest = min(later)
    if fewest < _FOR_NOTHING * sum(later) / len(later):
        raise Fault(
            f"generate does {fewest} operations for token {later.index(fewest) + 2} and {max(later)} for another: it "
            "computes several tokens at a time, and the time between tokens would be that of handing them out. Yield "
            "each token as soon as it is known"
        )


def _check_end(decoder: _Decoder, tokens: Tensor) -> None:
    """A sequence that has ended repeats ``eos``, or the iterator ends when all have; the others go on."""
    eos = int(tokens[0, 0])
    found, _ = decoder.decode(sampling=Sampling(greedy=True, eos=eos))
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
        alone, _ = decoder.decode(decoder.prompt[row : row + 1])
        if not torch.equal(alone[0], tokens[row]):
            raise Fault(
                f"sequence {row} is decoded to {tokens[row].tolist()} beside another and to {alone[0].tolist()} alone: "
                "what a sequence is given depends on the rest of the batch. Look for routing with a capacity, or for a "
                "state that sequences share"
            )
        raise Fault(
            f"with Sampling(eos={eos}), which ends sequence 0 at its first token, sequence {row} has {wrong} as "
            f"token {position} instead of {right}: "
            + ("it has ended, and has to repeat eos" if right == eos else "it has not ended")
        )
    running = (~(found == eos).any(dim=1)).nonzero()
    if count < decoder.new and len(running):
        raise Fault(
            f"with Sampling(eos={eos}) generate stops after {count} tokens of {decoder.new}, although sequence "
            f"{int(running[0])} has not ended: stop when all have"
        )


def _check_modes(decoder: _Decoder, tokens: Tensor) -> None:
    """Training mode is off while tokens are chosen, and afterwards each module is in the mode it was in."""
    model = decoder.model
    if model.training:
        raise Fault("generate leaves the model in training mode, although it was in evaluation mode before")
    model.train()
    for module in list(model.children())[:1]:
        module.eval()  # each module has to get back its own mode, not all the same
    modes = _modes(model)
    found, _ = decoder.decode(new=min(_SAMPLED, decoder.new))
    _check_restored(model, modes, "after its last token")
    with forked_generators(decoder.subject.device):
        stream: Any = decoder.subject.architecture.generate(model, decoder.prompt.clone(), tokens.shape[1], GREEDY)
        next(stream)
        if hasattr(stream, "close"):
            stream.close()
    _check_restored(model, modes, "closed after its first token")
    model.eval()
    if not torch.equal(found, tokens[:, :_SAMPLED]):
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


def _check_sampling(decoder: _Decoder, greedy: Tensor) -> None:
    """Samples come from ``sampling.generator``: equal for equal seeds, different for different ones; and they are drawn
    as they are asked for: from the most likely token alone they are ``greedy`` (B, N)."""
    new = greedy.shape[1]

    def sample(seed: int) -> Tensor:
        generator = torch.Generator(decoder.subject.device).manual_seed(seed)
        return decoder.decode(new=new, sampling=Sampling(temperature=HOT, generator=generator))[0]

    first, again = sample(1), sample(1)
    if not torch.equal(first, again):
        raise Fault(
            f"token {_first_other(first, again)} differs between two samples with the same seed: draw from "
            "sampling.generator, as sampling.pick does"
        )
    if decoder.subject.V > 1 and all(torch.equal(first, sample(seed)) for seed in (2, 3, 4)):
        raise Fault(
            "samples with four seeds at temperature 1,000 are all the same: choose by the sampling that is given, as "
            "sampling.pick does"
        )
    generator = torch.Generator(decoder.subject.device)
    for name, only in {
        "top_k=1": Sampling(temperature=HOT, top_k=1, generator=generator),
        "top_p=1e-06": Sampling(temperature=HOT, top_p=1e-6, generator=generator),
        "temperature=1e-06": Sampling(temperature=1e-6, generator=generator),
    }.items():
        found, _ = decoder.decode(new=new, sampling=only)
        if not torch.equal(found, greedy):
            raise Fault(
                f"with Sampling({name}), which leaves one token to choose, token {_first_other(found, greedy)} is not "
                f"the one that greedy decoding gives: apply {name.partition('=')[0]} as sampling.pick does"
            )


def _first_other(found: Tensor, expected: Tensor) -> int:
    """Number, from 1, of the first token (B, N) in which two differ."""
    count = min(found.shape[1], expected.shape[1])
    return int((found[:, :count] != expected[:, :count]).any(dim=0).nonzero()[0]) + 1


class _Counting(TorchFunctionMode):
    """Counts calls of torch functions, which do a model's work; reading a shape or device is no such call."""

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
