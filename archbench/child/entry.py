"""The first lines of every child process: ``python -P entry.py PARENT LINGERS TRACE TARGET``.

PARENT is the parent's process id, LINGERS is 1 for a child that outlives its parent, TRACE is a file for the position
where the process hangs or crashes ("" for none), TARGET a module or the path of a file. Its ``main(parent, request)``
is called with the :class:`Parent` and the first message. The child ends when ``main`` returns; an exception is sent.

Standard library only: the process asks to end with its parent before anything slow is imported, and the benchmark of
``archbench regress`` runs beside the archbench of other revisions.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

INTERRUPTED = 128 + signal.SIGINT


class Parent:
    """The messages to and from the parent, on pipes that no process started from here inherits.

    Takes over standard input and output: later readers of standard input find it empty, and what is printed goes to
    standard error.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._orders, self._answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)

    def receive(self) -> Any:
        """The next message, any JSON value; None when the parent has no more."""
        line = self._orders.readline()
        return json.loads(line) if line else None

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


def end_with_parent(parent: int) -> None:
    """Have Linux kill this process when its parent dies, however it dies; end now if that has happened already."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def write_position_to(path: str) -> None:
    """On a crash and on SIGUSR1, write the main thread's stack to the file, even from inside a C function."""
    import faulthandler

    file = open(path, "w")  # noqa: SIM115  open as long as the process lives
    faulthandler.enable(file, all_threads=False)
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


def run(parent_id: str, lingers: str, trace: str, target: str) -> int:
    """Serve one parent; the exit code is 0, also after an error that was sent."""
    if lingers != "1":
        end_with_parent(int(parent_id))
    try:
        parent = Parent()
        if trace:
            write_position_to(trace)
        request = parent.receive()
        try:
            main_of(target)(parent, request)
        except (Exception, SystemExit) as error:  # noqa: BLE001  the boundary of the process: the parent raises it
            parent.send_error(error)
    except KeyboardInterrupt:
        return INTERRUPTED  # the parent was interrupted too, and says so
    return 0


if __name__ == "__main__":
    code = run(*sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # without waiting for threads and exit handlers that a plugin has left behind
