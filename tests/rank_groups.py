"""Groups of real processes that train together over gloo, for tests: each calls one function."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from archbench.config import ParallelName
from archbench.training.distribution import Ranks, join, leave
from training_setup import FORKSERVER


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any, parallel: ParallelName = "ddp") -> list[Any]:
    """``function(ranks, *arguments)`` on each of so many ranks; what they return, in order.

    Raises:
        AssertionError: one raised; all their tracebacks.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    answers = FORKSERVER.SimpleQueue()
    variables = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    processes = [
        FORKSERVER.Process(
            target=_work, args=({**variables, "RANK": str(rank)}, parallel, answers, function, arguments), daemon=True
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = dict(answers.get() for _ in processes)
    for process in processes:
        process.join()
    failures = [text for kind, text in found.values() if kind == "failed"]
    assert not failures, "\n".join(failures)
    return [found[rank][1] for rank in range(size)]


def _work(
    variables: dict[str, str],
    parallel: ParallelName,
    answers: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    rank = int(variables["RANK"])
    try:
        ranks: Ranks = join(variables, "test", torch.device("cpu"), parallel)
        result = ("returned", function(ranks, *arguments))
        ranks.wait()
        leave()
    except BaseException:  # noqa: BLE001  shown by the parent
        result = ("failed", f"rank {rank}: {traceback.format_exc()}")
    answers.put((rank, result))
