"""A process that has imported what a child imports, and computed nothing: children of it are its forks, ready at once.

A child that starts by itself imports torch for a second or more, again for each phase of each run. A fork has all that
in its memory, as if it had imported it: :func:`_populated` sees to the pages of libraries, which a fork lacks until it
uses them, so that its resident set is that of a process of its own. Nothing in the template has begun to compute, so no
pool of threads is missing in a fork. The template and each fork are guarded as any child (:mod:`archbench.child.entry`)
and end with the process that asked for them, though a fork's own parent is an attendant, which says how it ended. Linux
only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from archbench.child import entry
from archbench.interruption import kept_from_children

IDLE = 60.0
"""Seconds without a child after which a template ends."""

MADV_POPULATE_READ = 22
"""Linux 5.14; madvise(2)."""

_FILE_PAGE = 1 << 63 | 1 << 61
"""Bits of a page that is present, and a file's; the kernel's admin-guide/mm/pagemap."""

Runs = list[tuple[int, int]]
"""Addresses and lengths of memory."""

_templates: dict[str, Template] = {}
"""The newest one of this process, by what it has imported and its environment."""


def template_of(target: str, environment: Mapping[str, str]) -> Template | None:
    """A template that has imported ``target``, a module or the path of a file, with these environment variables.

    None where there can be none.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return None
    key = json.dumps([target, sorted(environment.items())])
    if key not in _templates or not _templates[key].lives:
        _templates.clear()  # an earlier one ends when it is idle
        _templates[key] = Template(target, environment)
    return _templates[key]


class Template:
    """The parent's side of a template. It ends with this process, or after :data:`IDLE` seconds without a child."""

    def __init__(self, target: str, environment: Mapping[str, str]) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, kept_from_children():
            command = [sys.executable, "-P", __file__, str(os.getpid()), str(theirs.fileno()), target]
            self._process = subprocess.Popen(
                command, env={**environment}, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], process_group=0
            )

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def fork(self, arguments: Sequence[str], env: Mapping[str, str], stderr: int | None) -> Fork | None:
        """A child; None if the template has ended.

        Args:
            arguments: LINGERS, TRACE and TARGET of :mod:`archbench.child.entry`.
            env: its environment variables.
            stderr: as of ``subprocess.Popen``.
        """
        stdin, stdout, errors = os.pipe(), os.pipe(), os.pipe() if stderr == subprocess.PIPE else None
        if errors is not None:
            target = errors[1]
        else:
            target = os.open(os.devnull, os.O_WRONLY) if stderr == subprocess.DEVNULL else os.dup(2)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        given = [theirs.detach(), stdin[0], stdout[1], target]
        request = {"arguments": [*arguments], "environment": {**env}, "folder": os.getcwd()}
        with contextlib.suppress(OSError):  # it has ended
            socket.send_fds(self._ours, [json.dumps(request).encode()], given)
        for descriptor in given:
            os.close(descriptor)
        pipes = os.fdopen(stdin[1], "wb"), os.fdopen(stdout[0], "rb"), errors and os.fdopen(errors[0], "rb")
        if not (pid := ours.recv(32)):
            ours.close()
            for pipe in filter(None, pipes):
                pipe.close()
            return None
        return Fork(int(pid), ours, *pipes)


class Fork:
    """A fork of a template, with what is used of ``subprocess.Popen``."""

    def __init__(
        self, pid: int, attendant: socket.socket, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes] | None
    ) -> None:
        self.pid = pid
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.returncode: int | Any = None
        self._attendant = attendant

    def wait(self) -> int:
        """The exit code; of one thread only."""
        if self.returncode is None:
            with self._attendant:  # until it is closed, nobody else gets the process's id
                self.returncode = int(self._attendant.recv(32) or -signal.SIGKILL)
        return int(self.returncode)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve(owner: int, listener: socket.socket, target: str) -> None:
    """In the template: import, then fork for each request, as long as the owner lives."""
    if sys.platform != "linux":
        return
    entry.guarded(owner, lingers=False)
    try:
        entry.main_of(target)
        pages = _file_pages()
    except BaseException:  # noqa: BLE001  the child that was asked for meets it too, and says so
        os._exit(1)
    while True:
        ready, _, _ = select.select([listener], [], [], IDLE)
        living = entry._collect({})
        if not ready and living:
            continue
        content, descriptors, _, _ = socket.recv_fds(listener, 1 << 20, 4) if ready else (b"", [], 0, "")
        if not content:
            os._exit(0)
        try:
            attendant = os.fork()
        except OSError:  # as above
            os._exit(1)
        if attendant == 0:
            try:
                listener.close()
                _attend(json.loads(content), descriptors, pages)
            finally:
                os._exit(1)
        for descriptor in descriptors:
            os.close(descriptor)


def _attend(request: dict[str, Any], descriptors: list[int], pages: Runs) -> None:
    """In a fork of the template: fork the child, wait for its end, and say how it ended."""
    if sys.platform != "linux":
        return
    connection = socket.socket(fileno=descriptors[0])
    entry.adopt_orphans()
    child = os.fork()
    if child == 0:
        connection.close()
        _become(request, descriptors[1:], pages)
    os.setpgid(child, child)
    for descriptor in descriptors[1:]:
        os.close(descriptor)
    with contextlib.suppress(BrokenPipeError):
        connection.send(str(child).encode())
    seen = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert seen is not None
    code = seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status
    with contextlib.suppress(OSError):
        connection.send(str(code).encode())
        connection.recv(1)  # until the parent knows, its id is nobody else's
    entry._end_children({})  # there are some only if its guard was killed
    os._exit(0)


def _become(request: dict[str, Any], descriptors: list[int], pages: Runs) -> None:
    """In a fork of that fork: be the child that was asked for."""
    code = 1
    try:
        os.setpgid(0, 0)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        if (numpy := sys.modules.get("numpy")) is not None:  # Python's own generators begin anew by themselves
            numpy.random.seed()
        code = entry.run(str(os.getppid()), *request["arguments"], begin=lambda: _populate(pages))
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _file_pages() -> Runs:
    """The pages of files, such as libraries, that this process has resident."""
    size, runs = os.sysconf("SC_PAGE_SIZE"), Runs()
    with open("/proc/self/maps", encoding="utf-8") as maps, open("/proc/self/pagemap", "rb") as pagemap:
        for line in maps:
            span, rights, _, _, inode = line.split()[:5]
            if inode == "0" or "r" not in rights:
                continue
            first, last = (int(end, 16) for end in span.split("-"))
            pagemap.seek(first // size * 8)
            entries = memoryview(pagemap.read((last - first) // size * 8)).cast("Q")
            for number, flags in enumerate(entries):
                if flags & _FILE_PAGE != _FILE_PAGE:
                    continue
                address = first + number * size
                if runs and sum(runs[-1]) == address:
                    runs[-1] = runs[-1][0], runs[-1][1] + size
                else:
                    runs.append((address, size))
    return runs


def _populate(runs: Runs) -> None:
    """Have these pages resident, as after the imports; an older kernel leaves them to be read when they are used."""
    madvise = ctypes.CDLL(None).madvise
    for address, length in runs:
        madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), MADV_POPULATE_READ)


if __name__ == "__main__":
    serve(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), sys.argv[3])
