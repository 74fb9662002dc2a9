"""How well a model predicts held-out text: one function scores every model, from its logits.

Protocol (``docs/reference/data.md``): a document is scored on its own; its first token is predicted from the separator,
and every token is predicted exactly once, with the windows of EleutherAI's lm-evaluation-harness
(``get_rolling_token_windows``, there with ``context_len = context - stride + 1``).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.data.dataset import EncodedDocument, total_bytes
from archbench.data.token_stream import Reading, blocks
from archbench.errors import DataError, HookResultError, UsageError
from archbench.inference.modes import module_mode
from archbench.measure.score_audit import ScoreAudit
from archbench.training.distribution import ALONE, Ranks

BLOCK = 512
"""Tokens of a block, the part of a document whose score is kept: blocks are resampled where documents are few."""

_LOGITS_AT_ONCE = 1 << 24
"""Most logits turned into float32 log-probabilities at a time: 64 MiB."""

_Integers = npt.NDArray[np.int64]
_Nats = npt.NDArray[np.float64]


class Window(NamedTuple):
    """Of ``s = [separator] + tokens``: read ``s[begin:end]``, score the last ``scored`` of ``s[begin + 1:end + 1]``."""

    begin: int
    end: int
    scored: int


@dataclass(frozen=True)
class DocumentScore:
    """One document: predicted tokens, raw bytes (None if they are not known), and negative log-likelihood in nats, also
    by :data:`BLOCK`."""

    name: str
    tokens: int
    bytes: int | None
    nats: float
    block_nats: tuple[float, ...]


@dataclass(frozen=True)
class QualityScore:
    """A model's score on a split. NaN where the model's logits are.

    Attributes:
        loss: nats/token, over all tokens of all documents.
        perplexity: exp(loss).
        bits_per_byte: total nats / ln 2 / raw bytes of the text (not of the tokens); None if these are not known.
        tokens: predicted tokens.
        bytes: raw bytes of the text.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    bytes: int | None
    documents: tuple[DocumentScore, ...]


def rolling_windows(n_tokens: int, context_length: int, stride: int | None = None) -> list[Window]:
    """The windows that predict each of ``n_tokens`` tokens once, reading at most ``context_length`` at a time.

    The first window predicts as many tokens as fit; each later one ``stride`` new tokens (the last one: those left)
    after as much left context as fits, so that its length is always ``context_length``.

    Args:
        stride: new tokens a window; None for ``context_length``.

    Raises:
        UsageError: a stride below 1 or above the context length.
    """
    return list(_windows(n_tokens, context_length, stride))


def _windows(n_tokens: int, context_length: int, stride: int | None) -> Iterator[Window]:
    """As :func:`rolling_windows`, one by one."""
    stride = context_length if stride is None else stride
    if not 1 <= stride <= context_length:
        next_step = f"Choose 1 (slowest, most context) to {context_length} (fastest)"
        raise UsageError("stride", f"{stride} is not between 1 and the context length", next_step)
    if n_tokens == 0:
        return
    first = min(context_length, n_tokens)
    yield Window(0, first, first)
    for predicted in range(first, n_tokens, stride):
        end = min(predicted + stride, n_tokens)
        yield Window(end - context_length, end, end - predicted)


def score(
    model: nn.Module,
    documents: Sequence[EncodedDocument],
    *,
    separator: int,
    context_length: int,
    stride: int | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    audit: ScoreAudit | None = None,
    ranks: Ranks = ALONE,
) -> QualityScore:
    """Score ``model`` on ``documents``, in evaluation mode; its modes are restored afterwards.

    Several ranks score every so-manieth batch each. The batches are those of one process, and each rank adds all their
    nats in that process's order, so the score is the same, bit for bit, if a batch's logits are.

    Args:
        model: tokens (B, T) int64 -> logits (B, T, V), on ``device``.
        separator: the token that each document's first token is predicted from.
        context_length: most tokens read at once.
        stride: new tokens a window; None for ``context_length``.
        batch_size: windows scored at a time; they are never padded.
        dtype: autocast dtype; log-softmax is always float32, sums are float64.
        audit: scores some of the batches again, after all others.
        ranks: the processes that score together; all call it, and all get the score.

    Raises:
        UsageError: a stride below 1 or above the context length.
        DataError: no token to score.
        HookResultError: logits of the wrong shape, or for too small a vocabulary.
    """
    device = torch.device(device)
    n_blocks = np.array([-(-len(document.tokens) // BLOCK) for document in documents])
    first_block = np.cumsum(n_blocks) - n_blocks
    nats = np.zeros(n_blocks.sum(), dtype=np.float64)
    largest = max((int(part.max()) for document in documents for part in blocks(document.tokens)), default=None)
    if largest is None:
        raise DataError("validation text", "it holds no token to score", "Give a longer text")
    highest = max(largest, separator)

    def nats_of(inputs: _Integers, targets: _Integers, newest: int) -> _Nats:
        logits = model(torch.from_numpy(inputs).to(device))  # (B, T, V)
        _check_logits(logits, inputs.shape, highest, model)
        return _negative_log_likelihood(logits[:, -newest:], torch.from_numpy(targets[:, -newest:]).to(device))

    with scoring(model, device, dtype):
        batches = _batches(documents, separator, context_length, stride, batch_size)
        for some, nll in _in_turns(batches, lambda some: nats_of(*some.read(), some.newest), ranks):
            if audit is not None:
                audit.keep(some.read, nll)
            counted = np.arange(some.newest) >= some.newest - some.scored[:, None]
            token = some.ends[:, None] - some.newest + np.arange(some.newest)  # its number in the document
            np.add.at(nats, (first_block[some.owners][:, None] + token // BLOCK)[counted], nll[counted])
        if audit is not None:
            audit.rescore(nats_of)
    scores = tuple(
        DocumentScore(document.name, len(document.tokens), document.n_bytes, math.fsum(own), tuple(own.tolist()))
        for document, own in zip(documents, np.split(nats, first_block[1:]), strict=True)
    )
    return _total(scores)


def position_losses(
    model: nn.Module,
    windows: Iterable[_Integers],
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
) -> _Nats:
    """Mean loss at each position, nats/token, shape (T,), over ``windows``, at least one, each (T + 1,), int64.

    Position t predicts ``windows[:, t + 1]`` after having read t + 1 tokens. In evaluation mode, and by ``ranks``, as
    :func:`score`.

    Raises:
        HookResultError: logits of the wrong shape, or for too small a vocabulary.
    """
    device = torch.device(device)
    nats: _Nats | float = 0.0
    read, left = 0, iter(windows)

    def nats_of(batch: _Whole) -> _Nats:
        logits = model(torch.from_numpy(batch.windows[:, :-1]).to(device))  # (B, T, V)
        _check_logits(logits, batch.shape, int(batch.windows.max()), model)
        return _negative_log_likelihood(logits, torch.from_numpy(batch.windows[:, 1:]).to(device))

    with scoring(model, device, dtype):
        batches = (_Whole(np.stack(rows)) for rows in iter(lambda: list(islice(left, batch_size)), []))
        for batch, nll in _in_turns(batches, nats_of, ranks):
            read += batch.shape[0]
            nats = nats + nll.sum(axis=0)
    return np.asarray(nats) / read


@contextlib.contextmanager
def scoring(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Within this context the model is in evaluation mode, under autocast to ``dtype``, and keeps no gradients."""
    autocast = torch.autocast(device.type, dtype=dtype) if dtype != torch.float32 else contextlib.nullcontext()
    # no_grad, not inference_mode: a table that a model builds at first use has to remain usable in training.
    with module_mode(model, training=False), torch.no_grad(), autocast:
        yield


def _total(scores: tuple[DocumentScore, ...]) -> QualityScore:
    nats = math.fsum(document.nats for document in scores)
    tokens = sum(document.tokens for document in scores)
    n_bytes = total_bytes(document.bytes for document in scores)
    loss = nats / tokens
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(loss))  # inf where math.exp would raise
    bits_per_byte = None if n_bytes is None else nats / math.log(2) / n_bytes
    return QualityScore(loss, perplexity, bits_per_byte, tokens, n_bytes, scores)


class _Scored(Protocol):
    @property
    def shape(self) -> tuple[int, int]:
        """(B, S): of its nats."""
        ...


_SomeScored = TypeVar("_SomeScored", bound=_Scored)


def _in_turns(
    batches: Iterable[_SomeScored], nats_of: Callable[[_SomeScored], _Nats], ranks: Ranks
) -> Iterator[tuple[_SomeScored, _Nats]]:
    """Each batch with its nats, (B, S), in order, on every rank; a rank computes those of every so-manieth batch.

    All make as many forward passes, which FSDP needs: at the end some may compute what another does.
    """
    left = iter(batches)
    while some := list(islice(left, ranks.size)):
        own = nats_of(some[min(ranks.rank, len(some) - 1)])
        if ranks.size == 1:
            yield some[0], own
            continue
        sizes = [math.prod(one.shape) for one in some]
        every = ranks.gather(np.pad(own.ravel(), (0, max(sizes) - own.size))).numpy()  # (ranks, most of them)
        yield from ((one, nats[:size].reshape(one.shape)) for one, size, nats in zip(some, sizes, every, strict=False))


@dataclass(frozen=True)
class _Batch:
    """Windows of equal length, with their documents' indices (B,), ends there (B,), and scored targets (B,).

    Their tokens are read when they are needed, and not kept: a document may be a large file's tokens on the disk.
    """

    owners: _Integers
    ends: _Integers
    scored: _Integers
    read: Callable[[], tuple[_Integers, _Integers]]  # inputs (B, T), targets (B, T)

    @property
    def newest(self) -> int:
        """The columns before the last so many are context in every row."""
        return int(self.scored.max())

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.scored), self.newest


@dataclass(frozen=True)
class _Whole:
    """Windows (B, T + 1) of which each position is scored."""

    windows: _Integers

    @property
    def shape(self) -> tuple[int, int]:
        return self.windows.shape[0], self.windows.shape[1] - 1


def _batches(
    documents: Sequence[EncodedDocument], separator: int, context_length: int, stride: int | None, batch_size: int
) -> Iterator[_Batch]:
    waiting: dict[int, list[tuple[int, Window]]] = {}
    reading = Reading(*(document.tokens for document in documents))

    def batch(rows: list[tuple[int, Window]]) -> _Batch:
        def read() -> tuple[_Integers, _Integers]:
            tokens = np.stack([whole(owner, window) for owner, window in rows])  # (B, T + 1)
            return tokens[:, :-1], tokens[:, 1:]

        owners, windows = zip(*rows, strict=True)
        ends, scored = ([getattr(window, name) for window in windows] for name in ("end", "scored"))
        return _Batch(np.array(owners), np.array(ends), np.array(scored), read)

    def whole(owner: int, window: Window) -> _Integers:
        tokens = documents[owner].tokens[max(window.begin - 1, 0) : window.end].astype(np.int64)
        reading.count(tokens.nbytes)
        return tokens if window.begin else np.concatenate([[separator], tokens])

    for owner, document in enumerate(documents):
        for window in _windows(len(document.tokens), context_length, stride):
            rows = waiting.setdefault(window.end - window.begin, [])
            rows.append((owner, window))
            if len(rows) == batch_size:
                yield batch(waiting.pop(window.end - window.begin))
    for rows in waiting.values():
        yield batch(rows)


def _negative_log_likelihood(logits: Tensor, targets: Tensor) -> _Nats:
    """-ln p of ``targets`` (B, T) under ``logits`` (B, T, V); float32 copies of the logits stay small."""
    V = logits.shape[-1]
    rows = max(1, _LOGITS_AT_ONCE // V)
    flat, wanted = logits.reshape(-1, V), targets.reshape(-1)
    parts = [
        F.cross_entropy(flat[i : i + rows].float(), wanted[i : i + rows], reduction="none")
        for i in range(0, len(flat), rows)
    ]
    return torch.cat(parts).cpu().double().reshape(targets.shape).numpy()


def _check_logits(logits: object, shape: tuple[int, ...], largest: int, model: nn.Module) -> None:
    name = type(model).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != shape:
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        cause = f"for tokens of shape {tuple(shape)} it gave {got}, not logits (B, T, V)"
        raise HookResultError(f"model {name}", cause, "Return logits (B, T, V) from forward")
    if logits.shape[2] <= largest:
        cause = f"its logits cover {logits.shape[2]} token ids, and the text uses id {largest}"
        raise HookResultError(f"model {name}", cause, "Build it with the tokenizer's vocab_size")
