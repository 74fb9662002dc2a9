"""The processes of a phase that several devices share, as its parent sees them: started together, ended by one error.

Here they are children of one process, which also keeps the store at which they meet. Under torchrun each archbench has
one of them for a child (:mod:`archbench.runs.launched`).
"""

from __future__ import annotations

import math
import queue
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from archbench.child.process import Child, Inbox, LostError
from archbench.config import RunConfig
from archbench.errors import ArchbenchError, ConfigError, DeviceError, PhaseError
from archbench.measure.machine import usable_cpus
from archbench.runs.launched import Launched, led
from archbench.training.distribution import host, store_at

SETTLE = 3.0
"""Seconds in which the other ranks may say what happened, after a first one has: the cause may be with a later one."""

GROUP = "group"
"""In the request of a rank: the prefix of its group's keys in the store; without it a process trains alone."""

LOST_PEER = "lost_peer"
"""In the message of a rank that another's end has ended: how it noticed."""


@dataclass(frozen=True)
class Failure:
    """Why a rank has ended: the error, and whether it only followed from another rank's end."""

    error: ArchbenchError
    follows: bool = False


QUIET_PROFILE = {"KINETO_LOG_LEVEL": "99"}
"""Torch's profiler prints when it starts and stops."""

UNDER_A_LAUNCHER = {**QUIET_PROFILE, "TORCHELASTIC_USE_AGENT_STORE": "True"}
"""For a rank whose store another process keeps."""

SHARED = frozenset({"train", "quality", "positions"})
"""Phases that all the processes of a run measure together; the others are measured by one."""

Ended = Callable[[str, LostError], PhaseError]
"""The error of a process, named by its culprit, that ended without an answer."""


def resolved_ranks(config: RunConfig) -> RunConfig:
    """The configuration with the number of processes that will train and score together, where they can.

    Raises:
        ConfigError: the processes have too few sequences or nothing to share, or something cannot be shared.
        DeviceError: this machine has fewer GPUs.
    """
    launched, B = led(), config.training.batch_size
    trains, shares = "train" in config.phases, not SHARED.isdisjoint(config.phases)
    on_gpus = torch.device(config.device).type == "cuda"
    here = torch.cuda.device_count() if on_gpus else len(usable_cpus())
    size = config.nproc
    if launched is not None:
        if size not in (1, "auto", launched.size):
            cause = f"the launcher has started {launched.size} processes"
            raise ConfigError(f"--nproc {size}", cause, "Leave it out: all of them train")
        size = launched.size
    elif size == "auto":
        size = min(here, B) if trains else here if shares else 1
    assert isinstance(size, int)
    config = config.override(nproc=size)
    if size == 1:
        option = "--parallel fsdp" if config.parallel == "fsdp" else "--scaling-efficiency"
        if config.parallel == "fsdp" or config.scaling_efficiency:
            raise ConfigError(option, "one process trains, which has nothing to share", "Give --nproc 2 or more")
        return config
    culprit = f"--nproc {size}"
    if not shares:
        cause, step = "only training and scoring are shared", f"Leave it out, or --phases {','.join(sorted(SHARED))}"
        raise ConfigError(culprit, f"no phase is shared: {cause}", step)
    if config.scaling_efficiency and not trains:
        raise ConfigError("--scaling-efficiency", "nothing is trained, and training is timed", "Leave it out")
    if trains and size > B:
        cause = f"a micro-batch of {B} sequences has none for some of the {size} processes"
        raise ConfigError(culprit, cause, f"Give --batch-size {size} or more, or fewer processes")
    if torch.device(config.device).index is not None:
        raise ConfigError(f"--device {config.device}", f"{size} processes cannot share one GPU", "Give --device cuda")
    if on_gpus and (launched.local_size if launched is not None else size) > here:
        step = f"Give --nproc {here}, or auto" if here else "Give --device cpu"
        raise DeviceError(culprit, f"this machine has {here} GPU(s), and each process needs one", step)
    if trains and config.parallel == "fsdp":
        refused = (
            (config.training.optimizer == "muon", "muon needs whole matrices", "Use --optimizer adamw"),
            (config.dtype == "float16", "losses of a model in parts are not scaled", "Use --dtype bfloat16"),
            (config.compile, "a model in parts is not compiled", "Drop --compile"),
            (config.float8 != "none", "float8 knows the head by its weight, which is in parts", "Drop --float8"),
        )
        for wanted, cause, step in refused:
            if wanted:
                raise ConfigError("--parallel fsdp", cause, f"{step}, or use --parallel ddp")
    return config


def device_of_rank(name: str, environment: Mapping[str, str]) -> str:
    """Each rank of a machine has the GPU of its number there; CPUs are shared."""
    return f"cuda:{environment['LOCAL_RANK']}" if torch.device(name).type == "cuda" else name


def measured_together(
    config: RunConfig,
    request: dict[str, Any],
    variables: Mapping[str, str | None],
    culprit: str,
    ended: Ended,
    limit: float | None,
) -> tuple[list[dict[str, Any]], float]:
    """The rows that rank 0 sends, and the CPU seconds of all; the request goes to each rank.

    Args:
        culprit: of errors; the rank and its host are put before it.
        ended: the error of a rank that ended without an answer, or took too long.
        limit: seconds for all; None for no limit.

    Raises:
        ArchbenchError: a rank raised it, died, or took too long. Of several errors, the first that follows from no
            other rank's end.
    """
    launched = led()
    inbox: Inbox = queue.SimpleQueue()
    request = {
        **request,
        "nproc": config.nproc,
        "parallel": config.parallel,
        GROUP: f"{culprit}, {secrets.token_hex(8)}",
    }
    if launched is not None:
        launched.order(request, culprit)
        own = {0: UNDER_A_LAUNCHER}
    else:
        assert isinstance(config.nproc, int)
        own, _store = _variables(config.nproc)
        variables = {**_threads(config), **variables}
    with ExitStack() as stack:
        children: dict[Child, int] = {}
        try:
            for rank, more in own.items():
                child = started(rank, request, {**variables, **more}, culprit, inbox)
                children[child] = rank
                stack.enter_context(child)
            return _answers(children, inbox, launched, culprit, ended, limit)
        except KeyboardInterrupt as interruption:
            for child in children:
                child.interrupt(interruption)
            raise


def started(
    rank: int, request: Mapping[str, Any], variables: Mapping[str, str | None], culprit: str, inbox: Inbox
) -> Child:
    """The process of one rank on this machine; only rank 0 says anything."""
    own = {**request, "quiet": request["quiet"] or rank > 0}
    name = named(rank, culprit)
    return Child("archbench.runs.worker", own, culprit=name, variables=variables, inbox=inbox)


def named(rank: int, culprit: str) -> str:
    """A rank of this machine, in errors."""
    return f"rank {rank} on host {host()}, {culprit}"


def failure(message_of: Callable[[], Any], culprit: str, ended: Ended) -> Failure | Any:
    """A rank's message, or why there is none."""
    try:
        message = message_of()
    except LostError as lost:
        return Failure(ended(culprit, lost))
    except ArchbenchError as error:
        return Failure(error)
    if LOST_PEER in message:
        cause = f"it lost the other ranks ({message[LOST_PEER]})"
        return Failure(PhaseError(culprit, cause, "See what they printed"), follows=True)
    return message


def _answers(
    children: Mapping[Child, int],
    inbox: Inbox,
    launched: Launched | None,
    culprit: str,
    ended: Ended,
    limit: float | None,
) -> tuple[list[dict[str, Any]], float]:
    """Wait for every rank's answer, or for the first failure and what explains it."""
    waiting = set(children.values()) | (launched.others if launched is not None else set())
    rows: list[dict[str, Any]] = []
    cpu_seconds = 0.0
    failures: list[Failure] = []
    until: float | None = None
    latest = math.inf if limit is None else time.monotonic() + limit
    while waiting and (until is None or time.monotonic() < until):
        if time.monotonic() > latest:
            raise ended(culprit, LostError(f"took longer than {limit:g} s", None))
        for rank, answer in _new(
            children, inbox, launched, culprit, ended, poll=until is not None or limit is not None
        ):
            if rank not in waiting:
                continue
            waiting.remove(rank)
            if isinstance(answer, Failure):
                failures.append(answer)
                until = until or time.monotonic() + SETTLE
                if not answer.follows:
                    until = time.monotonic()
            else:
                rows += answer["rows"]
                cpu_seconds += answer["cpu_seconds"]
    if failures:
        raise min(failures, key=lambda one: one.follows).error
    return rows, cpu_seconds


def _new(
    children: Mapping[Child, int],
    inbox: Inbox,
    launched: Launched | None,
    culprit: str,
    ended: Ended,
    *,
    poll: bool,
) -> Iterator[tuple[int, Any]]:
    """The next answer of a rank here, if one comes in time, and all that have come from elsewhere."""
    try:
        child, line = inbox.get(timeout=0.5 if launched is not None or poll else None)
    except queue.Empty:
        pass
    else:
        rank = children[child]
        yield rank, failure(lambda: child.opened(line), named(rank, culprit), ended)
    if launched is not None:
        for rank, (error, answer) in launched.answers().items():
            yield rank, answer if error is None else Failure(error, answer["follows"])


def _variables(size: int) -> tuple[dict[int, dict[str, str]], Any]:
    """torchrun's variables for each rank here, and the store at which they meet, which has to be kept."""
    store = store_at("127.0.0.1", 0, kept_here=True)
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(store.port)} | QUIET_PROFILE
    if sys.platform == "linux":
        common["GLOO_SOCKET_IFNAME"] = "lo"  # a machine's own name may lead nowhere
    return {rank: {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)}, store


def _threads(config: RunConfig) -> dict[str, str]:
    """Each process gets a share of the cores."""
    assert isinstance(config.nproc, int)
    return {"OMP_NUM_THREADS": str(max(1, len(usable_cpus()) // config.nproc))}
