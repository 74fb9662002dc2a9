"""Taking turns: every contender of a cell in one process, A B C, C B A, …, warm, and what each computed."""

from __future__ import annotations

import gc
import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from archbench.measure.memory import peak_memory
from peers import litgpt_peer
from peers.contender import Cell, Contender, Ours, UnavailableError
from peers.fla_peer import fla
from peers.litgpt_peer import LitGPT
from peers.nanogpt_peer import NanoGPT
from peers.rwkv_peer import RWKV
from peers.transformers_peer import Transformers, TransformersGPT2, TransformersStatic
from peers.x_transformers_peer import XTransformers


@dataclass(frozen=True)
class Peer:
    """A published implementation.

    Attributes:
        of: architectures that it is compared with; empty for all.
        module: what is imported of ``package``, which is what is installed; both "" for what needs no package.
    """

    make: Callable[[Cell], Contender]
    of: tuple[str, ...] = ()
    module: str = ""
    package: str = ""

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.package) if self.package else ""


HF = {"module": "transformers", "package": "transformers"}
ROTARY = tuple(litgpt_peer.BLOCKS)
LEARNED = ("gpt1", "gpt2")
PEERS = {
    "archbench": Peer(Ours),
    "transformers": Peer(Transformers, (*LEARNED, *ROTARY, "mamba2", "gated-deltanet", "hybrid"), **HF),
    "transformers, static cache": Peer(
        TransformersStatic, ("gpt2", *ROTARY, "mamba2", "gated-deltanet", "hybrid"), **HF
    ),
    "transformers GPT-2": Peer(TransformersGPT2, ("gpt1",), **HF),
    "litgpt": Peer(LitGPT, (*LEARNED, *ROTARY), "litgpt", "litgpt"),
    "nanoGPT": Peer(NanoGPT, LEARNED),
    "x-transformers": Peer(XTransformers, (*LEARNED, "llama"), "x_transformers", "x-transformers"),
    "rwkv": Peer(RWKV, ("rwkv7",), "rwkv", "rwkv"),
    "fla, plain": Peer(fla, ("gated-deltanet", "rwkv7"), "fla", "flash-linear-attention"),
}

CACHELESS_TOKENS = 4
"""Tokens that are decoded a turn without a cache: each reads all before it, so that a few tell."""

CACHELESS_LENGTH = 1024
"""Longest prompt that is decoded after without a cache."""

CHECKED = 2
"""Updates whose losses are compared: the second tells whether the first changed the same."""


@dataclass
class Turns:
    """What one contender did: seconds and CPU seconds of each timed turn by its round, and what it computed."""

    seconds: dict[int, float] = field(default_factory=dict)
    cpu: dict[int, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    why_not: str = ""
    cached: bool = True
    decoded_by: str | None = None
    spent: float = 0.0


def made(name: str, cell: Cell) -> Contender:
    """Raises :class:`UnavailableError` if it takes no part."""
    peer = PEERS[name]
    if peer.module and find_spec(peer.module) is None:
        raise UnavailableError(f"not installed: pip install {peer.package}")
    contender = peer.make(cell)
    if cell.job == "decode" and not contender.cached and cell.length > CACHELESS_LENGTH:
        raise UnavailableError(f"it has no cache, and is timed up to {CACHELESS_LENGTH:,} tokens")
    return contender


def turn_of(contender: Contender, turns: Turns) -> Callable[[], tuple[float, float]]:
    """One turn: seconds and CPU seconds of a step, of a prompt until its first token, or of a token after it."""
    cell = contender.cell
    if cell.job == "train":
        step = contender.trainer()

        def train() -> tuple[float, float]:
            cpu, start = time.process_time(), time.perf_counter()
            loss = step(cell.tokens)
            spent = time.perf_counter() - start, time.process_time() - cpu
            if len(turns.losses) < CHECKED:
                turns.losses.append(float(loss))
            return spent

        return train
    decode = contender.decoder()
    N = 1 if cell.job == "prefill" else cell.new_tokens if contender.cached else CACHELESS_TOKENS

    def decoding() -> tuple[float, float]:
        marks, cpu, tokens = [time.perf_counter()], [time.process_time()], []
        for token in decode(cell.tokens, N):
            marks.append(time.perf_counter())
            cpu.append(time.process_time())
            tokens.append(token)
        turns.tokens, turns.decoded_by = turns.tokens or tokens, contender.decoded_by
        if N == 1:
            return marks[1] - marks[0], cpu[1] - cpu[0]
        return median(later - earlier for earlier, later in pairwise(marks[1:])), (cpu[-1] - cpu[1]) / (N - 1)

    return decoding


def take_turns(
    cell: Cell, names: list[str], *, seconds: float, rounds: tuple[int, int] = (5, 25), warmup: int = 2
) -> dict[str, Turns]:
    """Every contender once a round, the order reversed every other round, until ``seconds`` are spent.

    There are at least and at most ``rounds``. A contender that takes more than its share of the time sits out after
    three; ratios are of rounds that both took part in.
    """
    names = [name for name in names if not PEERS[name].of or cell.architecture in PEERS[name].of]
    found = {name: Turns() for name in names}
    running: dict[str, Callable[[], tuple[float, float]]] = {}
    for name in names:
        try:
            contender = made(name, cell)
            found[name].why_not, found[name].cached = contender.why_not, contender.cached
            running[name] = turn_of(contender, found[name])
        except UnavailableError as reason:
            found[name].why_not = str(reason)
    gc.collect()
    share, begin = seconds / max(1, len(running)), 0.0
    for number in range(-warmup, rounds[1]):
        if number == 0:
            begin = time.perf_counter()
        if number >= rounds[0] and time.perf_counter() - begin > seconds:
            break
        for name in running if number % 2 else reversed(running):
            turns = found[name]
            slow = name != "archbench" and turns.spent > share and len(turns.seconds) >= 3
            if slow or (number == -1 and turns.spent > share):
                continue
            start = time.perf_counter()
            wall, cpu = running[name]()
            turns.spent += time.perf_counter() - start
            if number >= 0:
                turns.seconds[number], turns.cpu[number] = wall, cpu
    return found


def peak_bytes(cell: Cell, name: str) -> int | None:
    """The most resident memory of two turns of this process above what it had before; None if unavailable.

    The process has to be a fresh one; libraries are loaded by a tiny cell first, so that they do not count.
    """
    import dataclasses

    tiny = dataclasses.replace(cell, size="nano", batch=1, length=8)
    for one in (tiny, cell):
        turns = Turns()
        with peak_memory("cpu") as memory:
            try:
                turn = turn_of(made(name, one), turns)
            except UnavailableError:
                return None
            one.__dict__.pop("weights", None)  # a copy that only the comparison needs
            for _ in range(2):
                turn()
            del turn
    if memory.peak_bytes is None or memory.baseline_bytes is None:
        return None
    return memory.peak_bytes - memory.baseline_bytes


def agreement(cell: Cell, ours: Turns, theirs: Turns) -> tuple[bool | None, bool | None]:
    """Whether losses agree, and whether tokens do; None where it is another model or nothing was computed."""
    if theirs.why_not:
        return None, None
    tolerance = 1e-4 if cell.dtype == "float32" else 2e-2
    pairs = list(zip(ours.losses, theirs.losses, strict=False)) if not cell.dropout else []
    tokens = list(zip(ours.tokens, theirs.tokens, strict=False))
    return (
        all(abs(a - b) <= tolerance * abs(a) for a, b in pairs) if pairs else None,
        all(torch.equal(a, b) for a, b in tokens) if tokens else None,
    )
