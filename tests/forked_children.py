"""Processes of archbench in tests: forks of one that has imported torch, which would take each of them 2 to 5 s.

They run the same code, with the same pipes, groups, signals and exit codes, and children end with their parents as real
ones do. What differs: modules are imported already, with their memory; Python's seed of hashes is the same; and torch
has one thread unless a run says otherwise. A test of one of these starts ``command_line.own_process``.
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
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE  # noqa: F401  of what stands for the module subprocess
from typing import Any

from archbench.child import template

IMPORTED = ("archbench.runs.worker", "archbench.testing.check_worker", "archbench.study.run_study", "torch._dynamo")

READ_EARLY = ("CUDA_", "LD_", "MALLOC_", "PYTHON", "TRITON_INTERPRET")
"""Beginnings of the names of environment variables that have to be set when a process begins."""

Variables = frozenset[tuple[str, str]]
Message = dict[str, Any]

_servers: dict[Variables, bytes] = {}
"""Environment variables -> the socket of the process that forks with them."""


@contextlib.contextmanager
def forked_children() -> Iterator[None]:
    """Within this context children of this process are forks, and so are theirs; on Linux, which can wait for both."""
    from archbench.child import process

    before = process.subprocess, process.template_of
    if sys.platform == "linux":
        process.subprocess = sys.modules[__name__]  # type: ignore[assignment]
        process.template_of = lambda module, environment: None
    try:
        yield
    finally:
        process.subprocess, process.template_of = before


def Popen(command: Sequence[str], *, env: dict[str, str], stderr: int | None, **pipes: Any) -> Any:  # noqa: N802
    """As :class:`archbench.child.process.Child` calls ``subprocess.Popen``."""
    if (server := _server(env)) is None:
        return subprocess.Popen(command, env=env, stderr=stderr, **pipes)
    stdin, stdout = os.pipe(), os.pipe()
    errors = os.open(os.devnull, os.O_WRONLY) if stderr == DEVNULL else os.dup(2)
    fork = Fork(server, "child", command[4:], [stdin[0], stdout[1], errors], env, os.getcwd())
    fork.stdin, fork.stdout = os.fdopen(stdin[1], "wb"), os.fdopen(stdout[0], "rb")
    return fork


class ForkedCommand:
    """``archbench ARGUMENTS`` in a process and a group of its own, which can be killed and interrupted.

    Args:
        stderr: a descriptor to write to, such as a terminal's; without it standard error is kept.
        program: "pytest" for a session of that, which is part of no ``pytest -n``.

    Attributes:
        process: its ``pid``, ``send_signal`` and ``kill``.
    """

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path,
        env: dict[str, str] | None = None,
        stderr: int | None = None,
        program: str = "archbench",
    ) -> None:
        variables = {**os.environ, **(env or {})}
        if program == "pytest":
            variables = {name: value for name, value in variables.items() if not name.startswith("PYTEST_XDIST")}
        server = _server(variables)
        assert server is not None
        self._arguments = [str(argument) for argument in arguments]
        self._out, self._error = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        error = self._error.fileno() if stderr is None else stderr
        descriptors = [os.open(os.devnull, os.O_RDONLY), os.dup(self._out.fileno()), os.dup(error)]
        self.process = Fork(server, program, self._arguments, descriptors, variables, str(cwd))

    def said(self) -> str:
        """What has been written to standard error by now."""
        return os.pread(self._error.fileno(), 1 << 20, 0).decode(errors="replace")

    def finished(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end: exit code and all that it and its processes have printed."""
        code = self.process.wait()
        found = []
        for file in (self._out, self._error):
            with file:
                file.seek(0)
                found.append(file.read().decode(errors="replace"))
        return subprocess.CompletedProcess(self._arguments, code, *found)


class Fork(template.Fork):
    """One that a server of the tests forks; it takes over the ``descriptors``."""

    stdin: Any
    stdout: Any

    def __init__(
        self,
        server: bytes,
        kind: str,
        arguments: Sequence[str],
        descriptors: list[int],
        env: dict[str, str],
        folder: str,
    ) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(server)
        request = {"kind": kind, "arguments": arguments, "environment": env, "folder": folder, "parent": os.getpid()}
        socket.send_fds(connection, [json.dumps(request).encode()], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        pipes: Any = (None, None, None)
        super().__init__(int(connection.recv(32)), connection, *pipes)


def _server(variables: dict[str, str]) -> bytes | None:
    """The address of a server with these environment variables; None in a fork that would have to start it."""
    key = _early(variables)
    if key not in _servers and __name__ != "__main__":  # a fork's own server would end with it
        without_path = {name: value for name, value in variables.items() if name != "PYTHONPATH"}
        _servers[key] = _new_server({**without_path, "OMP_NUM_THREADS": "1"})
    return _servers.get(key)


def _early(variables: Mapping[str, str]) -> Variables:
    early = (name for name in variables if name.startswith(READ_EARLY) and name != "PYTHONPATH")
    return frozenset((name, variables[name]) for name in early)


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

    from archbench.child import entry, process
    from archbench.kernels.triton_guard import without_triton

    key = _early(os.environ)
    with without_triton():  # as the children do on a CPU
        for name in IMPORTED:
            importlib.import_module(name)
    process.subprocess = sys.modules[__name__]  # type: ignore[assignment]
    process.template_of = lambda module, environment: None
    if "LD_PRELOAD" not in os.environ:  # tests/full_disk.c refuses flushes too
        os.fsync = lambda descriptor: None  # type: ignore[assignment, misc]  # as in conftest.py
    _servers[key] = listener.getsockname()
    signal.signal(signal.SIGTERM, lambda *_: _end())
    entry.take_signals()  # it may have been started for a child that was to get none yet
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
    from archbench.interruption import kept_from_children

    with kept_from_children():
        child = os.fork()
        if child == 0:
            connection.close()
            _become(request, descriptors)
    os.setpgid(child, child)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(BrokenPipeError):
        connection.send(str(child).encode())
    if request["kind"] == "child" and request["arguments"][0] == "0":  # it does not outlive its parent
        itself, ready = os.pidfd_open(child), []
        with contextlib.suppress(ProcessLookupError):
            ready, _, _ = select.select([os.pidfd_open(request["parent"]), itself], [], [])
        if itself not in ready:
            os.kill(child, signal.SIGUSR2)  # its guard ends everything
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(request: Message, descriptors: list[int]) -> None:
    """In a fork of that fork: be the process that was asked for."""
    import numpy as np

    from archbench.child import entry
    from archbench.cli import main
    from archbench.interruption import ended_at_once

    os.setpgid(0, 0)
    np.random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["folder"])
    tempfile.tempdir = None  # it follows TMPDIR
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    arguments = request["arguments"]
    code = 1
    try:
        if request["kind"] == "child":  # python -P entry.py PARENT …
            code = entry.run(str(os.getppid()), *arguments)
        elif request["kind"] == "pytest":
            import pytest

            code = pytest.main(arguments)
        else:
            sys.argv = ["archbench", *arguments]
            with ended_at_once():
                entry.take_signals()
                code = main(arguments)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
