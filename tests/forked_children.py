"""Children of the command line in tests: forks of a process that has imported torch, which takes 2 to 5 s each time.

They run the same code, with the same pipes, groups, signals and exit codes, and end with their parents as real ones
do. Three things differ: what is imported, and with it the memory; and Python's seed of hashes, which all forks share.
A test of one of these starts a process of its own (``command_line.own_process``), whose children are real.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from subprocess import DEVNULL, PIPE  # noqa: F401  of what stands for the module subprocess
from typing import Any

import pytest

IMPORTED = ("archbench.runs.worker", "archbench.testing.check_worker", "archbench.study.run_study", "torch._dynamo")

READ_LATE = ("ARCHBENCH_", "COLUMNS", "PYTEST_", "PYTHONPATH")
"""Beginnings of the names of environment variables that need not be set when a process begins."""

Variables = frozenset[tuple[str, str]]
Message = dict[str, Any]

_servers: dict[Variables, bytes] = {}
"""Environment variables -> the socket of the process that forks with them."""


@contextlib.contextmanager
def forked_children() -> Iterator[None]:
    """Within this context children of this process are forks, and so are theirs; on Linux, which can wait for both."""
    from archbench.child import process

    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            patch.setattr(process, "subprocess", sys.modules[__name__])
        yield


def Popen(command: Sequence[str], *, env: dict[str, str], stderr: int | None, **pipes: Any) -> Any:  # noqa: N802
    """As :class:`archbench.child.process.Child` calls ``subprocess.Popen``."""
    early: Variables = frozenset(item for item in env.items() if not item[0].startswith(READ_LATE))
    if early not in _servers:
        if __name__ == "__main__":  # a fork: a server that it starts would end with it
            return subprocess.Popen(command, env=env, stderr=stderr, **pipes)
        _servers[early] = _new_server(dict(early))
    return Fork(_servers[early], command[4:], env, stderr)


class Fork:
    """A ``subprocess.Popen`` whose process is forked by a server."""

    def __init__(self, server: bytes, arguments: Sequence[str], env: dict[str, str], stderr: int | None) -> None:
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.connect(server)
        stdin, stdout = os.pipe(), os.pipe()
        errors = os.open(os.devnull, os.O_WRONLY) if stderr == DEVNULL else os.dup(2)
        theirs = [stdin[0], stdout[1], errors]
        request = {"arguments": arguments, "environment": env, "folder": os.getcwd(), "parent": os.getpid()}
        socket.send_fds(self._server, [json.dumps(request).encode()], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        self.stdin, self.stdout = os.fdopen(stdin[1], "wb"), os.fdopen(stdout[0], "rb")
        self.pid = int(self._server.recv(32))
        self.returncode: int | None = None

    def wait(self) -> int:
        """Of one thread only."""
        if self.returncode is None:
            with self._server:
                self.returncode = int(self._server.recv(32))
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _new_server(variables: dict[str, str]) -> bytes:
    """The address of a new server, which ends with this process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # Linux chooses a name that is free
        listener.listen(64)
        given = listener.fileno()
        command = [sys.executable, "-P", __file__, str(os.getpid()), str(given)]
        server = subprocess.Popen(command, env=variables, stdin=DEVNULL, pass_fds=[given], process_group=0)
        address: bytes = listener.getsockname()

    def end() -> None:
        server.terminate()
        server.wait()  # its processor time counts as this process's

    atexit.register(end)
    return address


def serve(owner: int, listener: socket.socket) -> None:
    """Fork for each request, as long as the owner lives."""
    import gc
    import importlib

    from archbench.child import process
    from archbench.kernels.triton_guard import without_triton

    with without_triton():  # as the children do on a CPU
        for name in IMPORTED:
            importlib.import_module(name)
    process.subprocess = sys.modules[__name__]  # type: ignore[assignment]
    _servers[frozenset(os.environ.items())] = listener.getsockname()
    signal.signal(signal.SIGTERM, lambda *_: _end())
    gc.freeze()
    ended = os.pidfd_open(owner)
    while True:
        ready, _, _ = select.select([listener, ended], [], [])
        if ended in ready:
            _end()
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            listener.close()
            _attend(connection)
        connection.close()
        _collect()


def _end() -> None:
    _collect()
    os._exit(0)


def _collect() -> None:
    """Forks that have ended are no zombies, and their processor time counts as this process's."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _attend(connection: socket.socket) -> None:
    """In a fork of the server: fork the child, and wait for its end or its parent's."""
    content, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    request: Message = json.loads(content)
    child = os.fork()
    if child == 0:
        connection.close()
        _become(request, descriptors)
    os.setpgid(child, child)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(BrokenPipeError):
        connection.send(str(child).encode())
    if request["arguments"][0] == "0":  # it does not outlive its parent
        itself, ready = os.pidfd_open(child), []
        with contextlib.suppress(ProcessLookupError):
            ready, _, _ = select.select([os.pidfd_open(request["parent"]), itself], [], [])
        if itself not in ready:
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(request: Message, descriptors: list[int]) -> None:
    """In a fork of that fork: be ``python -P entry.py ARGUMENTS``."""
    import numpy as np

    from archbench.child import entry

    os.setpgid(0, 0)
    np.random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    code = 1
    try:
        code = entry.run(str(os.getppid()), *request["arguments"])
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
