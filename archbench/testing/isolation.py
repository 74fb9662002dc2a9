"""Checks in a process of their own, so that a plugin which hangs, crashes or exits costs one check and nothing else."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from archbench.errors import ConformanceError, PluginError, PluginImportError, from_dict
from archbench.processes import end_group
from archbench.testing.checks import Result, judged
from archbench.testing.frames import dumped_frames, plugin_line

LIMIT = 60.0
"""Seconds that one check may take, or loading the plugin."""

TELL = signal.SIGUSR1
"""Asks the process where it is, which it writes down even from inside a C function."""

_LOOK = 0.1
"""Seconds between two looks at whether a silent process still lives."""


@dataclass(frozen=True)
class Request:
    """What is to be checked.

    Attributes:
        architecture: its name.
        plugins: absolute paths of plugin files and folders.
        preset: of the model.
        overrides: fields of its configuration, as text.
        checks: names; None for all.
        expected_failures: check -> reason.
        device: where the models are.
        seed: of weights and tokens.
    """

    architecture: str
    plugins: tuple[str, ...] = ()
    preset: str = "nano"
    overrides: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[str, ...] | None = None
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Claim:
    """A :class:`~archbench.testing.checks.Check` without its function, which stays in the other process."""

    name: str
    why: str
    gate: bool


Observer = Callable[[Claim, int, int], None]
"""Told of each check as it begins: which, its number from 1 on, and how many there are."""


def check_apart(
    request: Request, *, limit: float = LIMIT, begun: Observer = lambda claim, number, count: None
) -> Generator[tuple[Claim, Result], None, None]:
    """Run checks in another process, each result as soon as it is there.

    A check that takes longer than ``limit`` seconds, or ends its process, has failed; the others go on in a new one.
    A plugin that cannot be loaded fails ``hooks``, and nothing else is run. When this generator is closed, the process
    is gone, with all that it started.

    Raises:
        UsageError: no such architecture, preset, field or check; an expected failure without a reason.
        PluginError: the plugin cannot be loaded, and ``hooks`` was not asked for.
        ConformanceError: no process for the checks could be started.
    """
    claims: list[Claim] = []
    results: list[Result] = []
    while not claims or len(results) < len(claims):
        left = request.checks if not claims else tuple(claim.name for claim in claims[len(results) :])
        failed = [result.name for result in results if result.blocks]
        with _Process(replace(request, checks=left), failed) as process:
            promised = process.start()
            claims = claims or promised
            try:
                process.load(limit)
            except PluginError as error:
                if claims[len(results)].name != "hooks":
                    raise
                yield from zip(claims, _unloadable(error, claims, request.expected_failures), strict=True)
                return
            while len(results) < len(claims):
                claim = claims[len(results)]
                begun(claim, len(results) + 1, len(claims))
                result, lost = process.result(claim, limit)
                results.append(judged(result, request.expected_failures.get(claim.name)) if lost else result)
                yield claim, results[-1]
                if lost:
                    break


def _unloadable(error: PluginError, claims: list[Claim], expected: Mapping[str, str]) -> Iterator[Result]:
    """``hooks`` failed, and there is nothing to run the others on."""
    hooks = Result("hooks", "failed", str(error), trace="".join(getattr(error, "__notes__", ())))
    yield judged(hooks, expected.get("hooks"))
    for claim in claims[1:]:
        yield Result(claim.name, "not run", "hooks failed, and nothing can be said before that holds")


class _LostError(Exception):
    """The process has ended, or was out of time; the message is a clause that says which."""


class _Process:
    """:mod:`archbench.testing.worker` at work, in a process group of its own that ends with this context."""

    def __init__(self, request: Request, failed: list[str]) -> None:
        self._request = request
        self._failed = failed
        self._received = b""

    def __enter__(self) -> Self:
        self._traces = tempfile.TemporaryFile()
        self._pipe, sending = os.pipe()
        traces = self._traces.fileno()
        request = json.dumps({**asdict(self._request), "failed": self._failed})
        # -P: the working directory is not on the path, so nothing in it is imported unasked.
        command = [sys.executable, "-P", "-m", "archbench.testing.worker", str(sending), str(traces), request]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a plugin prints is for people: this process's standard output may be read by programs
                pass_fds=(sending, traces),
                process_group=0,
            )
        finally:
            os.close(sending)
        return self

    def __exit__(self, *_: object) -> None:
        end_group(self._process.pid)
        self._process.wait()
        os.close(self._pipe)
        self._traces.close()

    def start(self) -> list[Claim]:
        """The checks that it will run; no time limit, for the plugin is not even imported yet."""
        try:
            return [Claim(**check) for check in self._receive(None)["checks"]]
        except _LostError as lost:
            step = "See what it printed above"
            raise ConformanceError("the process for the checks", f"it could not be started: {lost}", step) from None

    def load(self, limit: float) -> None:
        """Wait until the plugin is loaded.

        Raises:
            PluginError: it cannot be, ends the process, or takes longer than ``limit`` seconds.
        """
        try:
            self._receive(limit)
        except _LostError as lost:
            where, trace = self._position()
            culprit, step = (
                f"architecture {self._request.architecture!r}",
                "Importing a plugin should define things, and do nothing",
            )
            error = PluginImportError(culprit, f"while it was loaded, {lost}{where}", step)
            error.add_note(trace)
            raise error from None

    def result(self, claim: Claim, limit: float) -> tuple[Result, bool]:
        """The result of the check under way, and whether it has cost the process."""
        start = time.monotonic()
        try:
            return Result(**self._receive(limit)["result"]), False
        except _LostError as lost:
            where, trace = self._position()
            return Result(claim.name, "failed", f"{lost}{where}", time.monotonic() - start, trace), True

    def _receive(self, limit: float | None) -> dict[str, Any]:
        """The next message; an error in it is raised.

        Raises:
            _LostError: there is none within ``limit`` seconds, or ever.
        """
        deadline = math.inf if limit is None else time.monotonic() + limit
        while b"\n" not in self._received:
            ended = self._process.poll() is not None  # asked first: what it sent before is in the pipe by now
            readable = bool(select.select([self._pipe], [], [], 0 if ended else _LOOK)[0])
            received = os.read(self._pipe, 1 << 16) if readable else b""
            if received:
                self._received += received
            elif ended:
                raise _LostError(_ending(self._process.returncode))
            elif time.monotonic() > deadline:
                self._ask_where()
                raise _LostError(f"it did not end within {limit:g} s")
            elif readable:  # the end of the pipe: it is about to end, or has closed what it should have left alone
                time.sleep(_LOOK)
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            error = from_dict(message["error"])
            error.add_note(f"in the process for the checks:\n{message['traceback']}")
            raise error
        return message

    def _ask_where(self) -> None:
        """Have the process write down where it is, if it still can."""
        self._process.send_signal(TELL)
        patience = time.monotonic() + 1
        while not os.fstat(self._traces.fileno()).st_size and time.monotonic() < patience:
            time.sleep(_LOOK / 10)
        time.sleep(_LOOK)  # for the rest of it

    def _position(self) -> tuple[str, str]:
        """Where in the plugin the process was at last, and the whole trace of it; "" each where it left none."""
        traces = self._traces.fileno()
        trace = os.pread(traces, os.fstat(traces).st_size, 0).decode(errors="replace")
        return plugin_line(dumped_frames(trace)), trace


def _ending(code: int) -> str:
    """How a process ended, as a clause."""
    if code == -signal.SIGKILL:
        return "the process was killed, most often for want of memory"
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    return f"it ended the process with exit code {code}"
