"""The first lines of every child process: ``python -P entry.py PARENT LINGERS TRACE TARGET``.

PARENT is the parent's process id, LINGERS is 1 for a child that outlives its parent, TRACE is a file for the position
where the process hangs or crashes ("" for none), TARGET a module or the path of a file. Its ``main(parent, request)``
is called with the :class:`Parent` and the first message. The child ends when ``main`` returns; an exception is sent.

On Linux it is two processes: a guard, which sleeps, and a copy of it, which works (:func:`guarded`). The guard kills
all that is left when the copy ends or the parent does, however they end, and also what has left their session. A cgroup
would do the same where one may be made, which is seldom so for a user. Elsewhere there is no guard: the parent kills
what is left of the child and its process group (Windows: its descendants), and a child whose parent is gone ends
itself (:meth:`Parent.ends_with`).

Standard library only: the guard stands before anything slow is imported, and the benchmark of ``archbench regress``
runs beside the archbench of other revisions.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import queue
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

INTERRUPTING: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)

PATIENCE = 2.0
"""Seconds after which a process that does not die is named and left."""


class Parent:
    """The messages to and from the parent, on pipes that no process started from here inherits.

    Takes over standard input and output: later readers of standard input find it empty, and what is printed goes to
    standard error.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        orders, self._answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
        for descriptor in (orders.fileno(), self._answers):  # Windows' copies of standard streams are inherited
            os.set_inheritable(descriptor, False)
        self._next: Callable[[], bytes] = orders.readline
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)

    def receive(self) -> Any:
        """The next message, any JSON value; None when the parent has no more."""
        line = self._next()
        return json.loads(line) if line else None

    def ends_with(self) -> None:
        """End this process and its group when the pipe from the parent ends, which it does however the parent ends."""
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        read, self._next = self._next, lines.get

        def follow() -> None:
            while line := read():
                lines.put(line)
            if sys.platform != "win32":
                os.killpg(0, signal.SIGKILL)
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()

    def send(self, message: Any) -> None:
        """Send any JSON value. What was printed before is written out first."""
        self._write({"message": message})

    def send_error(self, error: BaseException) -> None:
        """The parent raises it: an ArchbenchError as it is, and what the system refused; others as a PhaseError."""
        as_dict: Callable[[], dict[str, str]] | None = getattr(error, "as_dict", None)
        with contextlib.suppress(ImportError):  # the archbench of an earlier revision
            from archbench.errors import refusal

            as_dict = as_dict or getattr(refusal(error, ""), "as_dict", None)
        text = " ".join(str(error).split()).rstrip(".")
        unexpected = f"{type(error).__name__}: {text[:400]}{' …' * (len(text) > 400)}" if text else type(error).__name__
        known = as_dict() if as_dict is not None else None
        self._write({"error": known, "unexpected": unexpected, "traceback": traceback.format_exc()})

    def _write(self, content: dict[str, Any]) -> None:
        if os.getpid() != self._process:
            os._exit(0)  # a copy of this process, forked by a plugin
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed, or on a full disk
                stream.flush()
        line = (json.dumps(content) + "\n").encode()
        with contextlib.suppress(BrokenPipeError):  # the parent is gone
            while line:
                line = line[os.write(self._answers, line) :]


def guarded(parent: int, *, lingers: bool) -> None:
    """Fork: the copy returns, in a process group of its own; this process guards it, and never returns.

    The guard adopts what the copy's processes leave behind (PR_SET_CHILD_SUBREAPER). It passes on INT, TERM, HUP and
    USR1, and on USR2 ends everything. It ends as the copy did. The copy is killed if the guard dies
    (PR_SET_PDEATHSIG, which looks at the thread that forked: the guard has only one).

    Args:
        parent: whose end is the end of all.
        lingers: not even then: the copy ends by itself.
    """
    if sys.platform != "linux":
        return
    PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
    prctl = adopt_orphans()
    watched: list[int] = []
    if not lingers:
        try:
            watched.append(os.pidfd_open(parent))
        except ProcessLookupError:
            os._exit(1)
        except OSError:  # before Linux 5.3, or forbidden
            prctl(PR_SET_PDEATHSIG, signal.SIGUSR2, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
    guard = os.getpid()
    copy = os.fork()
    if copy == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(1)
        os.setpgid(0, 0)
        for descriptor in watched:
            os.close(descriptor)
        return
    prctl(PR_SET_NAME, b"archbench-guard", 0, 0, 0)
    _guard(copy, watched)


def adopt_orphans() -> Callable[..., object]:
    """From now on what descendants leave behind is this process's (PR_SET_CHILD_SUBREAPER); returns ``prctl``."""
    import ctypes

    prctl: Callable[..., object] = ctypes.CDLL(None).prctl
    prctl(36, 1, 0, 0, 0)
    return prctl


def _guard(copy: int, watched: list[int]) -> None:
    """Wait for the end of the copy or of the parent, end what is left, and end as the copy did."""
    if sys.platform != "linux":
        return
    ended: dict[int, int] = {}

    def pass_on(number: int, frame: FrameType | None) -> None:
        if copy not in ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(copy, number)

    def end(number: int, frame: FrameType | None) -> None:
        _end_children(ended)
        os._exit(1)

    waking, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # it wakes
    signal.signal(signal.SIGUSR2, end)
    for number in (*INTERRUPTING, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    take_signals()
    nothing = os.open(os.devnull, os.O_RDWR)
    for pipe in (0, 1):  # their ends are seen when the copy ends
        os.dup2(nothing, pipe)
    _collect(ended)
    while copy not in ended:
        ready, _, _ = select.select([waking, *watched], [], [])
        if waking not in ready:
            break  # the parent has ended
        os.read(waking, 512)
        _collect(ended)
    _end_children(ended)
    code = os.waitstatus_to_exitcode(ended.get(copy, signal.SIGKILL))
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the copy has left its core, if any
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _collect(ended: dict[int, int]) -> bool:
    """Note the status of each child that has ended; whether any is left."""
    if sys.platform != "linux":
        return False
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if process == 0:
            return True
        ended[process] = status


def _end_children(ended: dict[int, int]) -> None:
    """Kill all that is below this process, which adopts what they leave; name what cannot be killed."""
    if sys.platform != "linux":
        return
    late = time.monotonic() + PATIENCE
    while _collect(ended):
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as file:
            left = file.read().split()
        if time.monotonic() > late:
            os.write(2, f"archbench: still running, and cannot be ended: process {', '.join(left)}\n".encode())
            return
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(process), signal.SIGKILL)
        time.sleep(0.002)


def take_signals() -> None:
    """Receive what the parent has kept away until now (archbench.interruption.kept_from_children)."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTING)


def interruptible(begun: list[str]) -> list[int]:
    """The numbers of the signals that interrupt, as they are received from now on.

    While ``begun`` is empty, the first one ends the process: code that is being imported may lose an exception, or
    abort at it. Later it raises KeyboardInterrupt, with the signal's name, after an import that is underway; more
    change nothing, for the parent will not wait long.
    """
    received: list[int] = []
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a fork of this process is not what it was
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not begun:
            os._exit(128 + number)
        while frame is not None:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                later = threading.Timer(0.02, os.kill, (owner, number))
                later.daemon = True
                later.start()
                return
            frame = frame.f_back
        if not received:
            received.append(number)
            raise KeyboardInterrupt(signal.Signals(number).name)

    for number in INTERRUPTING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    return received


def write_position_to(path: str) -> None:
    """On a crash, and where there is SIGUSR1 on that, write the main thread's stack to the file, even from inside a
    C function."""
    import faulthandler

    file = open(path, "w", encoding="utf-8")  # noqa: SIM115  open as long as the process lives
    faulthandler.enable(file, all_threads=False)
    if sys.platform != "win32":
        faulthandler.register(signal.SIGUSR1, file, all_threads=False)


def main_of(target: str) -> Callable[[Parent, Any], None]:
    """The function ``main`` of a module, or of a file that no package needs to contain."""
    if not target.endswith(".py"):
        module = importlib.import_module(target)
    else:
        spec = importlib.util.spec_from_file_location("archbench_child_target", target)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    main: Callable[[Parent, Any], None] = module.main
    return main


def run(parent_id: str, lingers: str, trace: str, target: str, *, begin: Callable[[], object] = lambda: None) -> int:
    """Serve one parent; the exit code is 0, also after an error that was sent, or 128 + the signal that interrupted.

    Args:
        begin: called in the process that works, before anything else.
    """
    received: list[int] = []
    begun: list[str] = []
    try:
        guarded(int(parent_id), lingers=lingers == "1")
        received = interruptible(begun)
        take_signals()
        begin()
        parent = Parent()
        if sys.platform != "linux" and lingers == "0":
            parent.ends_with()
        if trace:
            write_position_to(trace)
        request = parent.receive()
        try:
            main = main_of(target)
            begun.append(target)
            main(parent, request)
        except (Exception, SystemExit) as error:
            if received:
                raise KeyboardInterrupt from error  # it came amid code that made another error of it
            parent.send_error(error)
    except KeyboardInterrupt:
        return 128 + (received or [signal.SIGINT])[0]
    return 0


if __name__ == "__main__":
    code = run(*sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # without waiting for threads and exit handlers that a plugin has left behind
