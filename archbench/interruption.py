"""Signals that interrupt a command: SIGINT (Ctrl+C), SIGTERM (a scheduler), SIGHUP (the terminal is gone), and
Windows' SIGBREAK (Ctrl+Break, or the console is gone).

A command ends at once while nothing is :func:`underway`, because code that is being imported may turn an exception
into another error, or lose it. Otherwise each of them is a KeyboardInterrupt with the signal's name as its message, so
that whoever has begun something puts it in order (:func:`interruptible`). An import that is underway then is made whole
first, and so is an update of a model (:func:`held_back`). A signal that was ignored when the process began, as SIGHUP
is by ``nohup``, stays ignored.
Standard library only: it is imported first.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from socket import socket

SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)

LONGEST = 4.5
"""Seconds from the first signal to the end of the process, whatever it does then."""

_current: list[list[str]] = []
"""What has been received in the context :func:`interruptible` of this process, if there is one."""

_busy: list[str] = []
"""What this process does that may never end, for the line that says it was interrupted."""

_steps: list[str] = []
"""How to continue what this process has begun, the whole before its parts."""

_begun: list[None] = []
"""One for each context :func:`underway`, in whatever thread."""

Handler = Callable[[int, FrameType | None], object]


def exit_code(interruption: BaseException) -> int:
    """128 + the signal's number, as shells have it: 130, 143, 129."""
    return 128 + getattr(signal, str(interruption), signal.SIGINT)


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Within this context a signal ends the process with one line: nothing has begun that would need an order."""

    with _handled_by(lambda number, frame: _end(number)):
        yield


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """A process that is started in this context gets signals only when it is ready for them (archbench.child.entry):
    Python prints a traceback of one that comes while it starts."""
    if sys.platform == "win32":  # its signals do not wait
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Within this context an interruption that ends the process at once says that it came ``what``."""
    _busy.append("".join(one if one.isprintable() else "?" for one in what))
    try:
        yield
    finally:
        _busy.pop()


@contextlib.contextmanager
def continued(how: str) -> Iterator[None]:
    """Within this context an interruption that ends the process at once also says how to continue."""
    _steps.append(how)
    try:
        yield
    finally:
        _steps.remove(how)


@contextlib.contextmanager
def underway() -> Iterator[None]:
    """Within this context something has begun that an interruption has to put in order."""
    _begun.append(None)
    try:
        yield
    finally:
        _begun.pop()


@contextlib.contextmanager
def interruptible() -> Iterator[list[str]]:
    """Within this context the first signal, if something is :func:`underway`, raises KeyboardInterrupt, and its name is
    in the list.

    A second one ends the process at once; so does time, if putting things in order takes longer than
    :data:`LONGEST` seconds. The guards of child processes then end those.
    """
    if _current:  # within another such context
        yield _current[0]
        return
    received: list[str] = []
    again: list[int] = []  # sent by ourselves
    imports = _imports(sys._getframe())

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not _begun:
            _end(number)
        if _imports(frame) > imports and sys.platform != "win32":  # modules in C++ abort at an exception
            again.append(number)
            _resend(number)
        elif not received:
            received.append(signal.Signals(number).name)
            raise KeyboardInterrupt(received[0])

    _current.append(received)
    try:
        with _handled_by(interrupt) as numbers, _watched(numbers, again):
            yield received
    finally:
        _current.clear()


@contextlib.contextmanager
def held_back() -> Iterator[list[int]]:
    """Within this context a signal waits for its end, which an update of a model must not be divided by; those that
    wait are in the list."""
    waiting: list[int] = []
    before: dict[int, Handler] = {}
    with _handled_by(lambda number, frame: waiting.append(number), before, only_handled=True):
        yield waiting
    for number in waiting[:1]:
        before[number](number, None)


@contextlib.contextmanager
def _handled_by(
    handler: Handler, before: dict[int, Handler] | None = None, *, only_handled: bool = False
) -> Iterator[list[int]]:
    """Handle those signals that are not ignored; with ``only_handled`` those that Python code handles already."""
    found = {number: signal.getsignal(number) for number in SIGNALS}
    own = {n: now for n, now in found.items() if callable(now) or (now is signal.SIG_DFL and not only_handled)}
    if threading.current_thread() is not threading.main_thread():
        own = {}  # only the main thread may, and it gets the signals
    if before is not None:
        before.update({number: now for number, now in own.items() if callable(now)})
    try:
        for number in own:
            signal.signal(number, handler)
        yield list(own)
    finally:
        for number, now in own.items():
            signal.signal(number, now)


@contextlib.contextmanager
def _watched(numbers: list[int], again: list[int]) -> Iterator[None]:
    """A thread ends the process on a second signal and after :data:`LONGEST` seconds, also amid a long call to C."""
    if not numbers:
        yield
        return
    import socket  # Windows waits for sockets only, and pipes would be faster by a millisecond

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        thread = threading.Thread(target=_watch, args=(ours, numbers, again), daemon=True)
        thread.start()
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            theirs.send(b"\0")
            thread.join()


def _watch(waking: socket, numbers: list[int], again: list[int]) -> None:
    """Read the numbers of signals as they come; 0 ends it, and those that are sent ``again`` count once."""
    first, end = 0, 0.0
    while True:
        ready, _, _ = select.select([waking], [], [], max(0.0, end - time.monotonic()) if first else None)
        if not ready:
            _end(first)
        for number in waking.recv(64):
            if number == 0:
                return
            if number not in numbers:
                continue
            if number in again:
                again.remove(number)
                continue
            if first and number != getattr(signal, "SIGHUP", None):  # a closing terminal sends several
                _end(number)
            first = first or number
            end = end or time.monotonic() + LONGEST


def over(code: int) -> None:
    """The command has ended with this code: a signal that comes while Python ends neither prints nor changes it."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os._exit(code))


def ignored() -> None:
    """From now on signals do nothing."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _imports(frame: FrameType | None) -> int:
    """How many imports within each other the main thread is at."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename == "<frozen importlib._bootstrap>"
        frame = frame.f_back
    return count


def _resend(number: int) -> None:
    """The same signal once more, in a moment."""
    timer = threading.Timer(0.02, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _end(number: int) -> NoReturn:
    with contextlib.suppress(OSError):
        lines = [*_steps[:1], " ".join(["Interrupted", *_busy[-1:]])]
        os.write(2, "".join(f"{line}\n" for line in lines).encode(errors="replace"))
    os._exit(128 + number)
