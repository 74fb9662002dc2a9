"""The parent's side of a child process: :class:`Child`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from archbench.child.inheritance import clean_environment
from archbench.child.own_time import OwnTime
from archbench.child.template import template_of
from archbench.errors import PhaseError, from_dict, memory_limit
from archbench.interruption import SIGNALS, exit_code, kept_from_children, underway
from archbench.presentation.terminal import echo

ENTRY = Path(__file__).with_name("entry.py")

MARK = "ARCHBENCH_CHILD"
"""Environment variable that a child and all that it starts have, with a value of its own."""

GRACE = 2.5
"""Seconds that an interrupted child has to write its files; one that waits for children of its own has one more."""

PATIENCE = 4.0
"""Seconds in which a guard has surely ended its processes: twice what it gives one that does not die."""

LONGEST_WAIT = 20.0
"""Wall time, as a multiple of a limit by another clock, after which a child has taken too long by any."""

KILLED = -9
"""Exit code of a process that SIGKILL ended; Windows has none such."""


class LostError(Exception):
    """The child will not answer. The message is a verb phrase: ``died of SIGSEGV``.

    Attributes:
        code: the exit code; None if it took too long.
    """

    def __init__(self, how: str, code: int | None) -> None:
        super().__init__(how)
        self.code = code

    @property
    def killed(self) -> bool:
        """Whether it was killed from outside, as the system does when memory runs out."""
        return self.code == KILLED

    @property
    def interrupted(self) -> bool:
        """Whether a signal to it alone ended it: it is not at fault, and neither is what it did."""
        return self.code is not None and (self.code - 128 in SIGNALS or -self.code in SIGNALS)


Inbox = queue.SimpleQueue[tuple["Child", bytes | None]]
"""Messages of one child or several; None when a child has ended."""


class Child:
    """A process that runs ``main(parent, request)`` of ``target``, in a process group of its own.

    Leaving the context kills it and all that it has started, in whatever session (on Linux; elsewhere its process
    group, on Windows its descendants). A KeyboardInterrupt that ends the context is passed to the child, which then has
    ``grace`` seconds. The child also dies when its parent dies. A waiting parent sleeps, so it does not disturb what
    the child measures.

    Args:
        target: a module, or the path of a file (:mod:`archbench.child.entry`).
        request: the first message, any JSON value.
        culprit: names the child in errors other than archbench's own.
        variables: environment variables to set besides this process's own (without plugins' changes); None removes one.
        quiet: drop what the child prints, instead of writing it to standard error.
        traced: record the child's stack when it takes too long or crashes, for :meth:`position`.
        lingers: the child outlives its parent. It then gets no more messages, and ends by itself.
        inbox: where its messages arrive; shared by the children of a pool.
        grace: seconds to end after an interruption.
        forked: begin as a fork of a process that has imported ``target`` (:mod:`archbench.child.template`), where that
            is possible: other children like it follow.
    """

    def __init__(
        self,
        target: str,
        request: Any,
        *,
        culprit: str,
        variables: Mapping[str, str | None] | None = None,
        quiet: bool = False,
        traced: bool = False,
        lingers: bool = False,
        inbox: Inbox | None = None,
        grace: float | None = None,
        forked: bool = False,
    ) -> None:
        self._culprit = culprit
        self._grace = GRACE if grace is None else grace
        self._inbox: Inbox = inbox or queue.SimpleQueue()
        self._ended = threading.Event()
        self._begun = contextlib.ExitStack()
        self._interrupted = False
        self._trace = _new_file() if traced else None
        self._mark = uuid.uuid4().hex
        wanted = {**clean_environment(), **(variables or {}), MARK: self._mark}
        # A live view redraws its lines on the terminal, and what the child prints would run into them.
        relayed = not (quiet or lingers) and hasattr(sys.stderr, "rich_proxied_file")
        stderr = subprocess.DEVNULL if quiet or sys.__stderr__ is None else subprocess.PIPE if relayed else None
        arguments = ["1" if lingers else "0", str(self._trace or ""), target]
        env = {name: value for name, value in wanted.items() if value is not None}
        template = template_of(target, {**env, MARK: ""}) if forked and not lingers else None
        fork = None if template is None else template.fork(arguments, env, stderr)
        self._process = fork or _started(arguments, env, stderr)
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        threading.Thread(target=self._await_end, args=(reader,), daemon=True).start()
        if relayed:
            threading.Thread(target=self._relay, daemon=True).start()
        self.send(request)

    def __enter__(self) -> Self:
        self._begun.enter_context(underway())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, KeyboardInterrupt):
                self.interrupt(error)
                self._ended.wait(self._grace)
        finally:  # also if the user interrupts again
            self._kill()
            self._begun.close()
            self.leave()
            if self._trace is not None:
                self._trace.unlink(missing_ok=True)

    def send(self, message: Any) -> None:
        """Send any JSON value; if the child has ended, the next :meth:`receive` raises."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def own_time(self) -> Callable[[], float]:
        """A clock that stands still while a busy machine keeps the child waiting; it begins at 0."""
        return OwnTime(self._process.pid)

    def receive(self, limit: float | None = None, clock: Callable[[], float] = time.monotonic) -> Any:
        """The next message, within ``limit`` seconds by ``clock``; a child that takes longer is killed.

        Raises:
            ArchbenchError: the child raised it; its traceback is a note.
            LostError: the child has ended, or took too long.
        """
        if limit is None:
            return self.opened(self._inbox.get()[1])
        begun, wall, left = clock(), time.monotonic(), limit
        while left > 0 and time.monotonic() - wall < LONGEST_WAIT * limit:
            with contextlib.suppress(queue.Empty):
                return self.opened(self._inbox.get(timeout=left if clock is time.monotonic else min(left, 1.0))[1])
            left = limit - (clock() - begun)
        self._ask_position()
        self._kill()
        raise LostError(f"took longer than {limit:g} s", None)

    def opened(self, line: bytes | None) -> Any:
        """The content of one message from the inbox; raises as :meth:`receive` does."""
        if line is None:
            self._inbox.put((self, None))  # for the next call
            code = self._process.returncode
            raise LostError(ending(code), code)
        content = json.loads(line)
        if "error" not in content:
            return content["message"]
        if content["error"] is not None:
            error = from_dict({**content["error"], "culprit": content["error"]["culprit"] or self._culprit})
        else:
            cause = f"it failed with {content['unexpected']}"
            error = PhaseError(self._culprit, cause, "Run again with --debug for the traceback")
        error.add_note(f"in the process for {self._culprit}:\n{content['traceback']}")
        raise error

    def interrupt(self, interruption: KeyboardInterrupt) -> None:
        """Pass on the signal: a terminal interrupts its own process group, and the child has another."""
        if not self._interrupted and not self._ended.is_set():
            self._interrupted = True
            if sys.platform == "win32":
                with contextlib.suppress(OSError):  # there is no console
                    self._process.send_signal(signal.CTRL_BREAK_EVENT)
            else:
                self._process.send_signal(exit_code(interruption) - 128)

    def leave(self) -> None:
        """Send no more: a child that lingers ends by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def position(self) -> str:
        """The stack of a ``traced`` child when it took too long or crashed; "" if there is none."""
        return "" if self._trace is None else self._trace.read_text(encoding="utf-8", errors="replace")

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.endswith(b"\n"):  # a killed process may leave half a line
                    self._inbox.put((self, line))

    def _relay(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                echo(line.decode(errors="replace").rstrip("\r\n"), error=True)

    def _await_end(self, reader: threading.Thread) -> None:
        self._process.wait()
        end_group(self._process.pid)  # forked copies would hold the pipe open
        if self._process.returncode == KILLED:  # perhaps it was the guard that somebody killed
            end_marked(self._mark)
        reader.join(1.0)
        self._inbox.put((self, None))
        self._ended.set()

    def _kill(self) -> None:
        if sys.platform == "linux":
            self._process.send_signal(signal.SIGUSR2)  # the guard ends everything (archbench.child.entry)
            self._ended.wait(PATIENCE)
        if sys.platform == "win32":
            _end_descendants(self._process.pid)
        end_group(self._process.pid)
        self._process.kill()  # a process can leave its group
        self._ended.wait()

    def _ask_position(self) -> None:
        if sys.platform == "win32" or self._trace is None or self._ended.is_set():
            return
        self._process.send_signal(signal.SIGUSR1)
        patience = time.monotonic() + 1.0
        while not self._trace.stat().st_size and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(0.1)  # for the rest of the stack


def _started(arguments: Sequence[str], env: Mapping[str, str], stderr: int | None) -> subprocess.Popen[bytes]:
    # -P: the working directory is not on the path, so nothing in it is imported unasked.
    command = [sys.executable, "-P", str(ENTRY), str(os.getpid()), *arguments]
    # Only Windows knows these flags, and only the others process_group: each ignores what is not its own.
    with kept_from_children():
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=env,
            process_group=0,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


def ending(code: int) -> str:
    """How a process ended, as a verb phrase."""
    if code - 128 in SIGNALS:
        return f"was ended by {signal.Signals(code - 128).name}"
    if code == KILLED:
        return "was killed, usually because memory ran out"
    # Native libraries that get no memory crash, each in its own way.
    perhaps = f", perhaps because memory ran out: it had {memory_limit()}" if code and memory_limit() else ""
    return (f"ended with exit code {code}" if code >= 0 else f"died of {signal.Signals(-code).name}") + perhaps


def end_group(leader: int) -> None:
    """Kill what is left of the process group of ``leader`` (``Popen(process_group=0)``); Windows has no such groups."""
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def end_marked(mark: str) -> None:
    """Kill the processes whose environment has this :data:`MARK`, in whatever session (on Linux)."""
    if sys.platform != "linux":
        return
    line, late = f"{MARK}={mark}".encode(), time.monotonic() + PATIENCE
    found = True
    while found and time.monotonic() < late:
        found = False
        for place in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended, or is somebody else's
                if line in place.read_bytes().split(b"\0"):
                    found = True
                    os.kill(int(place.parent.name), signal.SIGKILL)
        time.sleep(0.01)


def _end_descendants(process: int) -> None:
    """Kill all that a living process and its children have started."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(process).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                one.kill()


def _new_file() -> Path:
    handle, name = tempfile.mkstemp(prefix=f"archbench-position-{os.getpid()}-")
    os.close(handle)
    return Path(name)
