"""Decoding from a cache gives the logits of a whole forward pass, at every position and past the context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from archbench.errors import ArchbenchError
from archbench.inference.sampling import Sampling
from archbench.protocols import CachedModel, DecodingCache
from archbench.testing.evaluation import Fault, check
from archbench.testing.future import FUTURE
from archbench.testing.subject import TOLERANCE, Difference, Subject, deviation

B = 2
CACHES = 6
"""Caches that live at the same time, to see whether two of them share memory."""
_MOST_SINGLES, _FEWEST_SINGLES = 256, 32
_WEIGHTS_TO_READ = 2_000_000_000
_SLIDES = 2


@check(gate=True, needs=("logits", "causality", "batch_invariance", "generate"))  # else logits tell nothing
def check_cached_decode(subject: Subject) -> str:
    """Quality is scored by whole forward passes and decoding speed is measured from the cache: unless both give the
    same logits, the two numbers belong to different models."""
    model = subject.model()
    seen = []
    if isinstance(model, CachedModel):
        singles = _single_steps(model, subject.T)
        with torch.inference_mode():
            _check_extend(subject, model, singles)
        seen.append(f"{_tokens(singles)} read one at a time")
    T = subject.T
    several = subject.tokens(max(B, *subject.batch_sizes[1:]), min(3, T), seed=2)
    _check_generate(subject, model, several, new_tokens=min(16, max(T - 2, 1)))
    # One sequence only: past the context every token costs a forward pass on T tokens, and another to compare with.
    _check_generate(subject, model, subject.tokens(1, max(T - 1, 1), seed=2), new_tokens=2 + _SLIDES)
    seen.append(f"{_SLIDES} generated past the context of {T}")
    return ", ".join(seen)


def _single_steps(model: nn.Module, T: int) -> int:
    """Tokens to read one at a time. Each step reads all weights, so large models read fewer: 32 from 63 M on."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return min(T, max(_FEWEST_SINGLES, min(_MOST_SINGLES, _WEIGHTS_TO_READ // max(parameters, 1))))


@dataclass
class _Reading:
    """Reads tokens into one cache, and compares the logits after every chunk with those of a whole forward pass."""

    model: CachedModel
    tokens: Tensor  # (B, T)
    expected: Tensor  # (B, T, V)
    capacity: int
    how: str
    hint: str
    """What to look for where the logits differ, given that everything tried before was right."""

    def __post_init__(self) -> None:
        self.cache = self.model.new_cache(len(self.tokens), self.capacity)
        self.sizes: list[int] = []
        self.spread = deviation(self.expected)
        self.done = 0
        self._check_length()

    def read(self, chunk: int) -> None:
        start, end = self.done, min(self.done + chunk, self.tokens.shape[1])
        self.sizes.append(end - start)
        logits = self.model.extend(self.tokens[:, start:end], self.cache)
        expected = self.expected[:, end - 1]  # (B, V)
        if logits.shape != expected.shape:
            raise Fault(
                f"extend returned logits of shape {(*logits.shape,)} for tokens {(len(self.tokens), end - start)}: it "
                f"has to return (B, V) = {(*expected.shape,)}, those after the last token"
            )
        self.done = end
        self._check_length()
        difference = Difference.between(logits, expected, self.spread)
        if not difference.negligible:
            raise Fault(
                f"after {_tokens(end)} {self.how}, the logits of sequence {difference.at[0]} differ by "
                f"{difference.largest:.2g} from those of a whole forward pass (their standard deviation is "
                f"{self.spread:.2g}); {f'after {_tokens(start)} they agreed' if start else 'nothing was read before'}: "
                f"{self._diagnosis(logits, difference.at[0], start, end) or self.hint.format(start=start)}"
            )

    def _check_length(self) -> None:
        length = getattr(self.cache, "length", None)
        if length != self.done:
            raise Fault(
                f"cache.length is {length} after {_tokens(self.done)} {self.how}: it has to be {self.done}, the "
                "positions read so far, since decoding goes on from there"
            )

    def _agrees(self, rows: slice, end: int) -> bool:
        """Whether those sequences alone, read once more in the same chunks, have the logits of the forward pass."""
        tokens, start = self.tokens[rows], 0
        cache = self.model.new_cache(len(tokens), self.capacity)
        for size in self.sizes:
            logits = self.model.extend(tokens[:, start : start + size], cache)
            start += size
        return Difference.between(logits, self.expected[rows, end - 1], self.spread).negligible

    def _diagnosis(self, logits: Tensor, row: int, start: int, end: int) -> str:
        """What of the model gives these logits, if anything does."""
        assert isinstance(self.model, nn.Module)
        T = self.tokens.shape[1]
        if end < T:
            later = torch.cat([self.tokens[:, :end], self.tokens[:, end:].roll(1, 0)], dim=1)
            if not Difference.between(self.model(later)[:, end - 1], self.expected[:, end - 1], self.spread).negligible:
                return (
                    f"in a forward pass on {T} tokens position {end - 1} sees what comes after it: other tokens from "
                    f"{end} on give it other logits. {FUTURE}"
                )
        if len(self.tokens) > 1:
            one = slice(row, row + 1)
            if self._agrees(one, end) and not self._agrees(slice(None), end):
                return (
                    f"read alone instead of in a batch of {len(self.tokens)}, sequence {row} agrees, so look for what "
                    "the sequences of a cache share"
                )
        for position in (start, end - 2, end):
            if position != end - 1 and 0 <= position < T:
                other = self.expected[:, position]
                if Difference.between(logits, other, self.spread).negligible:
                    return f"they are those after {_tokens(position + 1)}, so extend returns those of another position"
        return ""


def _check_extend(subject: Subject, model: CachedModel, singles: int) -> None:
    """Read the same tokens in several ways, the first ``singles`` one at a time."""
    assert isinstance(model, nn.Module)
    T = subject.T
    tokens = torch.cat([subject.tokens(1, T), subject.probes(B + 1, T)[2:]])  # at random, and a text
    expected = model(tokens)  # (B, T, V)

    positions = "look at positions, at the window or mask, and at what is written to the cache at {start}"
    reading = _Reading(model, tokens, expected, T, "read one at a time", positions)
    for _ in range(singles):
        reading.read(1)
    if singles < T:
        reading.how = f"read, the first {singles} one at a time and then the others at once"
        reading.read(T - singles)

    # The first chunk is one token, as before: it differs only by what another cache may have left behind.
    hint = "in the cache before they agreed, so a new cache does not begin empty"
    reading = _Reading(model, tokens, expected, T, "read in chunks of odd sizes", hint)
    sizes: list[str] = []
    for size in _chunk_sizes(T):
        sizes.append(str(size))
        reading.how = f"read in chunks of {', '.join(sizes if len(sizes) < 5 else [*sizes[:3], '…', sizes[-1]])}"
        reading.read(size)
        mask = "one at a time they agree, so look at the mask and the positions within a chunk that follows others"
        reading.hint = mask if reading.done < singles else positions

    P = max(1, min(17, T - 3))
    more = min(3, T - P)
    n = P + more
    tokens = subject.probes(max(B, *subject.batch_sizes[1:]), n, seed=1)
    expected = model(tokens)
    prompt = f"read, the first {P} at once and then one at a time,"
    hint = "a single token after single ones agrees, so look at what a chunk leaves in the cache"
    reading = _Reading(model, tokens, expected, n, f"{prompt} from a cache with room for no more than {n}", hint)
    for size in (P, *[1] * more):
        reading.read(size)

    tokens, expected = tokens[:B], expected[:B]
    others = subject.tokens(B, n, seed=1)
    hint = "alone they agree, so the two caches share something: look for state on the model or made once for all"
    pair = [
        _Reading(model, these, logits, min(n + 5, T), f"{prompt} in turns with another cache", hint)
        for these, logits in ((tokens, expected), (others, model(others)))
    ]
    if pair[0].cache is pair[1].cache:
        raise Fault("new_cache returns the same cache twice: each call has to make one of its own")
    for size in (P, *[1] * more):
        for reading in pair:
            reading.read(size)
    _check_apart([model.new_cache(B, n) for _ in range(CACHES)])


def _check_apart(caches: list[DecodingCache]) -> None:
    """No two caches that live at a time have memory in common."""
    owners: dict[int, int] = {}
    for number, cache in enumerate(caches, 1):
        for tensor in cache.tensors():
            owner = owners.setdefault(tensor.untyped_storage().data_ptr(), number)
            if tensor.numel() and owner != number:
                raise Fault(
                    f"of {len(caches)} caches, number {number} and number {owner} share a tensor: each call of "
                    "new_cache has to make its own"
                )


def _chunk_sizes(T: int) -> Iterator[int]:
    """1 and the primes, as long as they fit into T, and what remains."""
    size, left = 1, T
    while left:
        yield min(size, left)
        left -= min(size, left)
        size += 1
        while any(size % divisor == 0 for divisor in range(2, size)):
            size += 1


@dataclass(frozen=True)
class _Recording(Sampling):
    """Keeps the logits that it is given."""

    logits: list[Tensor] = field(default_factory=list)

    def pick(self, logits: Tensor) -> Tensor:
        self.logits.append(logits.detach().clone())
        return super().pick(logits)


def _check_generate(subject: Subject, model: nn.Module, prompt: Tensor, new_tokens: int) -> None:
    """Each token that ``generate`` chooses greedily is the one that a forward pass on the last T tokens ranks first."""
    T, P = subject.T, prompt.shape[1]
    sampling = _Recording(greedy=True)
    tokens = prompt
    try:
        for token in islice(subject.architecture.generate(model, prompt.clone(), new_tokens, sampling), new_tokens):
            tokens = torch.cat([tokens, token[:, None]], dim=1)
    except ArchbenchError as error:
        if tokens.shape[1] < T:
            raise
        raise Fault(f"past the context of {T} generate fails: {error} {_PAST}") from error
    given = tokens.shape[1] - P
    if given < new_tokens and tokens.shape[1] >= T:
        raise Fault(
            f"after a prompt of {P} generate gives {given} tokens of the {new_tokens} it was asked for: it stops at "
            f"the context of {T}. {_PAST}"
        )
    with torch.inference_mode():
        within = model(tokens[:, : min(T, P + given - 1)])  # (B, ·, V)
        for step in range(given):
            read = P + step
            expected = within[:, read - 1] if read <= T else model(tokens[:, read - T : read])[:, -1]  # (B, V)
            seen = sampling.logits[step] if len(sampling.logits) == given else None
            _compare_choice(expected, tokens[:, read], seen, read, P, T)


_PAST = (
    "Past the context each token is to be predicted from the last T tokens as if they were a prompt of their own, "
    "at positions 0 to T - 1, as archbench.decode_with_cache and decode_without_cache do"
)


def _compare_choice(expected: Tensor, token: Tensor, seen: Tensor | None, read: int, P: int, T: int) -> None:
    """``token`` (B,) and ``seen`` (B, V), the logits that ``Sampling.pick`` was given, against ``expected`` (B, V)."""
    expected = expected.float()
    spread = deviation(expected)
    where = f"token {read - P + 1} after a prompt of {P}"
    whole = f"a forward pass on the last {T} tokens" if read > T else "a forward pass on the tokens so far"
    if read > T:
        hint = f"{read} tokens are more than the context. {_PAST}"
    else:
        hint = "look at the positions and the state that generate keeps between tokens"
    if seen is not None and seen.shape == expected.shape and bool(seen.isfinite().all()):
        # Normalised, since adding the same to all logits of a position changes nothing.
        difference = Difference.between(seen.float().log_softmax(-1), expected.log_softmax(-1), spread)
        if not difference.largest <= 2 * TOLERANCE * spread:  # the logit's own difference, and the normalising sum's
            raise Fault(
                f"generate picks {where} from logits that differ by {difference.largest:.2g} in sequence "
                f"{difference.at[0]} from those of {whole} (their standard deviation is {spread:.2g}): {hint}"
            )
    short = expected.amax(-1) - expected.gather(-1, token[:, None])[:, 0]  # (B,)
    row = int(short.argmax())
    if not float(short[row]) <= TOLERANCE * spread:
        raise Fault(
            f"greedy {where} in sequence {row} is id {int(token[row])}, which {whole} ranks lower by "
            f"{float(short[row]):.2g} than id {int(expected[row].argmax())}: {hint}"
        )


def _tokens(number: int) -> str:
    return f"{number} token" if number == 1 else f"{number} tokens"
