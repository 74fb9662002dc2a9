"""Who measures what in a folder that several processes share, also over NFS: claims with a lease.

``claims/KEY.N`` is the N-th claim to a unit of work. It is created atomically, so only one process gets it, and the
highest N has the unit. Its owner renews it by touching it; nothing is ever locked or replaced. A claim is over when its
owner says so, when its owner was a process of this machine that lives no longer, or when it was not renewed for longer
than the lease, by the clock of the file server.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from archbench.errors import StorageError, storing
from archbench.files.loader import open_regular, validated_line
from archbench.files.writing import create_once, temporary_beside, write_bytes, writer

CLAIMS = "claims"
"""Folder of the claims within that of a study."""

LEASE = 60.0
"""Seconds without renewal after which a claim is over; a claim is renewed four times in that time."""

LONGEST = 1 << 14
"""Bytes of a claim."""

_STEP = "Make room, or choose another folder with --out, and run the same command again"


class Owner(BaseModel):
    """Who has a claim.

    Attributes:
        host, boot, pid, started: the process: its machine, that machine's boot, its number and start in seconds.
        launcher, order: how the work was handed on, and the engine's name of it, by which others can ask for it.
        since: when it claimed the unit, in seconds since the epoch by the clock of ``host``.
        plan: digest of what the process works on, in the claims of processes.
        ended: why it has the unit no longer; None while it has.
    """

    model_config = ConfigDict(frozen=True)

    host: str
    boot: str
    pid: int
    started: float
    launcher: str = "local"
    order: str | None = None
    since: float = 0.0
    plan: str | None = None
    ended: str | None = None

    @classmethod
    def this_process(cls, launcher: str) -> Owner:
        import psutil

        pid = os.getpid()
        started = psutil.Process(pid).create_time()
        return cls(host=socket.gethostname(), boot=_boot(), pid=pid, started=started, launcher=launcher)

    @property
    def is_here(self) -> bool:
        """Whether its processes are among those that this process sees."""
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    @property
    def lives(self) -> bool:
        """Whether its process, which :attr:`is_here`, still runs."""
        import psutil

        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) < 1.0)
        except psutil.Error:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Claim:
    """A claim as it was read or made.

    Attributes:
        key: of the unit.
        number: of the claim, from 1.
        file: its own.
        owner: None while its file has just been created.
        is_over: whether the unit can be claimed again.
    """

    key: str
    number: int
    file: Path
    owner: Owner | None
    is_over: bool = False


@dataclass
class Claims:
    """The claims in a folder, as one process sees and makes them; those that it holds are renewed by a thread.

    Args:
        folder: of the study.
        owner: this process.
        lease: seconds.
    """

    folder: Path
    owner: Owner
    lease: float = LEASE
    _held: dict[str, Claim] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def renewed(self) -> contextlib.AbstractContextManager[None]:
        """Within this context the claims that this process holds do not expire."""
        return renewal(self._files_held, self.lease)

    def _files_held(self) -> list[Path]:
        with self._lock:
            return [claim.file for claim in self._held.values()]

    def newest(self, key: str) -> Claim | None:
        """The claim that has the unit, or had it last."""
        numbers = [claim.number for claim in self._files(key)]
        return self._read(key, max(numbers)) if numbers else None

    def history(self, key: str) -> list[Owner]:
        """The owners of the unit so far."""
        found = (self._read(key, claim.number).owner for claim in sorted(self._files(key), key=lambda one: one.number))
        return [owner for owner in found if owner is not None]

    def take(self, key: str, plan: str | None = None) -> Claim | None:
        """Claim the unit; None if another process has it.

        Raises:
            StorageError: the folder cannot be written.
        """
        before = self.newest(key)
        if before is not None and not before.is_over:
            return None
        number = 1 if before is None else before.number + 1
        file = self.folder / CLAIMS / f"{key}.{number}"
        owner = self.owner.model_copy(update={"since": time.time(), "plan": plan})
        with storing(str(file), _STEP):
            file.parent.mkdir(exist_ok=True)
            if not create_once(file, owner.model_dump_json().encode()):
                return None
        claim = Claim(key, number, file, owner)
        self.hold(claim)
        return claim

    def hold(self, claim: Claim) -> None:
        """Renew the claim from now on, also one of another process whose work this one looks after."""
        with self._lock:
            self._held[claim.key] = claim

    def all(self) -> list[Claim]:
        """The newest claim of every unit, also of those that are over."""
        newest: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.folder / CLAIMS):
                key, _, number = name.rpartition(".")
                if key and not key.startswith(".") and number.isdecimal():
                    newest[key] = max(int(number), newest.get(key, 0))
        return [self._read(key, number) for key, number in newest.items()]

    def write(self, claim: Claim, *, order: str | None = None, ended: str | None = None) -> None:
        """Keep what was handed on, or why the claim is over; the owner of an adopted claim stays."""
        owner = (claim.owner or self.owner).model_copy(update={"ended": ended, **({"order": order} if order else {})})
        if ended is not None:
            with self._lock:
                self._held.pop(claim.key, None)
        else:
            self.hold(Claim(claim.key, claim.number, claim.file, owner))
        with storing(str(claim.file), _STEP):
            write_bytes(claim.file, owner.model_dump_json().encode())

    def withdraw(self, claim: Claim) -> None:
        """Nothing came of a claim that has just been made: it was no attempt, and the unit can be claimed again."""
        with self._lock:
            self._held.pop(claim.key, None)
        claim.file.unlink(missing_ok=True)

    def finish(self, key: str) -> None:
        """The unit is measured: its claims go. Whoever claims it now finds that out before anything else."""
        with self._lock:
            self._held.pop(key, None)
        for claim in self._files(key):
            with contextlib.suppress(OSError):
                claim.file.unlink()

    def _files(self, key: str) -> list[Claim]:
        found = []
        for file in (self.folder / CLAIMS).glob(f"{key}.*"):
            number = file.name[len(key) + 1 :]
            if number.isdecimal():
                found.append(Claim(key, int(number), file, None))
        return found

    def _read(self, key: str, number: int) -> Claim:
        file = self.folder / CLAIMS / f"{key}.{number}"
        owner = read_owner(file)
        if owner is not None and owner.ended is not None:
            return Claim(key, number, file, owner, is_over=True)
        if owner is not None and owner.is_here:
            return Claim(key, number, file, owner, is_over=not owner.lives)
        return Claim(key, number, file, owner, is_over=self._age(file) > self.lease)

    def _age(self, file: Path) -> float:
        """Seconds since the file was touched, by the clock of the file server."""
        clock = self.folder / CLAIMS / f".clock-{self.owner.host}-{self.owner.pid}"
        try:
            clock.touch()
            now = clock.stat().st_mtime
            clock.unlink(missing_ok=True)
            return now - file.stat().st_mtime
        except FileNotFoundError:
            return 0.0


def read_owner(file: Path) -> Owner | None:
    """Who made the claim; None if it has just gone, or is being written.

    Raises:
        StorageError: the file is damaged.
    """
    try:
        with open_regular(file) as opened:
            content = opened.read(LONGEST)
    except FileNotFoundError:
        return None
    step = "Delete it if no archbench is measuring in its folder"
    return validated_line(Owner, content, error=StorageError, culprit=str(file), next_step=step) if content else None


@contextlib.contextmanager
def renewal(files: Callable[[], Iterable[Path]], lease: float) -> Iterator[None]:
    """Within this context a thread touches these claims; one that cannot be reached for now is tried again."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease / 4):
            for file in files():
                with contextlib.suppress(OSError):
                    os.utime(file)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def is_held(file: Path) -> bool:
    """Whether no later claim has taken the unit over."""
    key, _, number = file.name.rpartition(".")
    return not file.with_name(f"{key}.{int(number) + 1}").exists()


def own_place(folder: Path, name: str) -> Path:
    """A new hidden name in the folder, of this process on this machine; :func:`sweep` removes what it leaves there."""
    return temporary_beside(folder / f"{name}-{_machine()}")


def sweep(folder: Path) -> None:
    """Remove what processes of this machine that live no longer have left under names of :func:`own_place`.

    Of another machine, or of an earlier boot of this one, nobody here knows what lives.
    """
    import psutil

    for place in folder.glob(f".*-{_machine()}.*.tmp"):
        pid = writer(place)
        if pid is not None and not psutil.pid_exists(pid):
            shutil.rmtree(place, ignore_errors=True)


def _machine() -> str:
    """This machine and boot, and the processes that are seen from here, in 8 hex digits."""
    return hashlib.sha256(f"{socket.gethostname()}/{_boot()}".encode()).hexdigest()[:8]


@cache
def _boot() -> str:
    """The boot of this machine and the namespace of its process numbers; "" where the system has neither."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
