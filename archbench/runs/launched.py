"""archbench as one of several processes that torchrun, or what sets its variables, has started.

The command with RANK 0 leads: it does what any command does, and gives orders to the others through torchrun's store.
The others follow: they print nothing, run their rank of each training, and end as the leader ends.
"""

from __future__ import annotations

import json
import os
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from archbench.errors import ArchbenchError, KilledError, PhaseError, from_dict
from archbench.interruption import exit_code

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from archbench.child.process import Inbox

POLL = 0.2
"""Seconds between two looks at the store."""

SILENT = 20.0
"""Seconds without a sign of life after which a rank elsewhere counts as dead."""

FAREWELL = 5.0
"""Seconds that the leader waits for the others to know that it ends."""

_led: list[Launched] = []


class Launched:
    """This process among those of a launcher.

    Attributes:
        rank: RANK.
        size: WORLD_SIZE.
        local_size: LOCAL_WORLD_SIZE, the processes of this machine.
        code: the exit code of the leader, and so of all.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.rank, self.size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        self.local_size = int(environment.get("LOCAL_WORLD_SIZE", self.size))
        self.others = set(range(self.size)) - {self.rank}
        self.code = 0
        self._environment = environment
        self._store = self._connected()
        self._number = -1
        self._signs: dict[int, tuple[int, float]] = {}

    def _connected(self) -> Store:
        import torch.distributed.distributed_c10d as c10d

        from archbench.training.distribution import store_at

        of_agent = self._environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        address, port = self._environment["MASTER_ADDR"], int(self._environment["MASTER_PORT"])
        store = store_at(address, port, kept_here=self.rank == 0 and not of_agent)
        return c10d.PrefixStore(f"archbench/{self._environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def order(self, request: Mapping[str, Any], culprit: str) -> None:
        """As the leader, have the others run their ranks."""
        self._number += 1
        self._signs = {}
        self._store.set(f"order/{self._number}", json.dumps({"request": request, "culprit": culprit}))

    def answers(self) -> dict[int, tuple[ArchbenchError | None, dict[str, Any]]]:
        """As the leader, what other ranks have answered to the last order, with their errors; a dead one's silence."""
        found: dict[int, tuple[ArchbenchError | None, dict[str, Any]]] = {}
        for rank in self.others:
            if self._store.check([key := f"answer/{self._number}/{rank}"]):
                answer = json.loads(self._store.get(key))
                error = answer.pop("error", None)
                found[rank] = (None if error is None else from_dict(error)), answer
            elif self._is_silent(rank):
                name = self._store.get(f"host/{rank}").decode() if self._store.check([f"host/{rank}"]) else "unknown"
                cause = f"it has given no sign of life for {SILENT:g} s"
                error = PhaseError(f"rank {rank} on host {name}", cause, "See whether that machine is there")
                found[rank] = error, {"follows": False}
        return found

    def _is_silent(self, rank: int) -> bool:
        sign, now = self._store.add(f"sign/{rank}", 0), time.monotonic()
        before, since = self._signs.get(rank, (-1, now))
        self._signs[rank] = (sign, since if sign == before else now)
        return sign == before and now - since > SILENT

    def end(self) -> None:
        """As the leader, let the others end with :attr:`code`."""
        self._number += 1
        self._store.set(f"order/{self._number}", json.dumps({"end": self.code}))
        until = time.monotonic() + FAREWELL
        while time.monotonic() < until and not self._store.check([f"end/{rank}" for rank in self.others]):
            time.sleep(POLL)

    def follow(self) -> int:
        """As a follower, run this rank of each training; returns the leader's exit code."""
        from archbench.training.distribution import host

        self._store.set(f"host/{self.rank}", host())
        while True:
            self._number += 1
            while not self._store.check([f"order/{self._number}"]):
                self._store.add(f"sign/{self.rank}", 1)
                time.sleep(POLL)
            order = json.loads(self._store.get(f"order/{self._number}"))
            if "end" in order:
                self._store.set(f"end/{self.rank}", "")
                return int(order["end"])
            self._answer(self._measured(order["request"], order["culprit"]))

    def _answer(self, answer: Mapping[str, Any]) -> None:
        self._store.set(f"answer/{self._number}/{self.rank}", json.dumps(answer))

    def _measured(self, request: dict[str, Any], culprit: str) -> dict[str, Any]:
        """What this rank answers: its CPU seconds, or its error."""
        from archbench.child.process import LostError
        from archbench.runs.folder import open_run
        from archbench.runs.ranks import UNDER_A_LAUNCHER, Failure, failure, named, started

        name, inbox = named(self.rank, culprit), _new_inbox()

        def ended(culprit: str, lost: LostError) -> PhaseError:
            kind = KilledError if lost.killed or lost.interrupted else PhaseError
            return kind(culprit, f"its process {lost}", "Resume the run")

        try:
            open_run(request["out"], request["run_id"])
        except ArchbenchError as error:
            cause = f"it does not find the run's folder ({error.culprit}: {error.cause})"
            missing = PhaseError(name, cause, "Give --out on a file system that all machines share")
            return {"error": missing.as_dict(), "follows": False}
        try:
            with started(self.rank, request, UNDER_A_LAUNCHER, culprit, inbox) as child:
                while inbox.empty():
                    self._store.add(f"sign/{self.rank}", 1)
                    time.sleep(POLL)
                found = failure(lambda: child.opened(inbox.get()[1]), name, ended)
        except KeyboardInterrupt as interruption:
            cause = f"it was interrupted by {str(interruption) or 'SIGINT'}"
            self._answer({"error": KilledError(name, cause, "Resume the run").as_dict(), "follows": False})
            raise
        if isinstance(found, Failure):
            return {"error": found.error.as_dict(), "follows": found.follows}
        return {"rows": [], "cpu_seconds": found["cpu_seconds"]}


def _new_inbox() -> Inbox:
    return queue.SimpleQueue()


def led() -> Launched | None:
    """The launched processes that this one leads; None: it stands alone."""
    return _led[0] if _led else None


def is_launched(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process is one of several of a launcher."""
    environment = os.environ if environment is None else environment
    return int(environment.get("WORLD_SIZE") or 1) > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys()


@contextmanager
def together(arguments: Sequence[str]) -> Iterator[Launched | None]:
    """Within this context ``archbench run`` leads the launched processes, or is about to follow; None: it is alone.

    The others end as the leader does: by its exception, or with its :attr:`Launched.code`.
    """
    if arguments[:1] != ["run"] or not is_launched() or _led:
        yield None
        return
    launched = Launched(os.environ)
    if launched.rank > 0:
        yield launched
        return
    _led.append(launched)
    try:
        yield launched
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        launched.code = exit_code(error) if interrupted else getattr(error, "exit_code", 70)
        raise
    finally:
        _led.clear()
        launched.end()
