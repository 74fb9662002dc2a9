"""Fresh processes that measure one tree each, alone or two at a time in turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from archbench.errors import PhaseError, from_dict
from archbench.plugin.discovery import PLUGINS_VARIABLE
from archbench.plugin.importing import clean_environment
from archbench.processes import end_group

PROBE = Path(__file__).with_name("probe.py")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        architectures: their names.
        plugins: absolute paths of plugin files and folders.
        preset: of the models.
        overrides: fields of their configurations, as text.
        device: where models are timed; counts are taken on the CPU and the meta device.
    """

    architectures: Sequence[str]
    plugins: Sequence[str] = ()
    preset: str = "nano"
    overrides: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"


@dataclass(frozen=True)
class Side:
    """What a process measures.

    Attributes:
        name: for errors, as in ``base 1a2b3c4``.
        request: what.
        path: folders that come first when it imports: the tree's own code.
    """

    name: str
    request: Request
    path: tuple[str, ...] = field(default=())


class Probe:
    """``probe.py`` at work, in a process group of its own that ends with this context.

    Its first answer is whose code it has loaded, and what it could not load.
    """

    def __init__(self, side: Side) -> None:
        self._side = side

    def __enter__(self) -> Self:
        read_commands, commands = os.pipe()
        answers, write_answers = os.pipe()
        request = json.dumps(vars(self._side.request))
        command = [sys.executable, "-P", str(PROBE), str(read_commands), str(write_answers), request]
        try:
            self._process = subprocess.Popen(
                command,
                env=_environment(self._side.path),
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a plugin prints is for people: our standard output may be read by programs
                pass_fds=(read_commands, write_answers),
                process_group=0,
            )
        finally:
            os.close(read_commands)
            os.close(write_answers)
        self._commands, self._answers = os.fdopen(commands, "w"), os.fdopen(answers)
        return self

    def __exit__(self, *_: object) -> None:
        end_group(self._process.pid)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()
        self._answers.close()

    def ask_exact(self) -> None:
        """Have it count; :meth:`answer` is architecture -> metric -> count."""
        self._ask("exact")

    def turn(self, samples: Mapping[str, int]) -> dict[str, dict[str, list[tuple[float, float]]]]:
        """Architecture -> metric -> (seconds of the reference, seconds of the work) of each sample."""
        self._ask(json.dumps(dict(samples)))
        return self.answer()

    def _ask(self, command: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is gone, which the missing answer will tell
            self._commands.write(command + "\n")
            self._commands.flush()

    def answer(self) -> dict[str, Any]:
        """The next one.

        Raises:
            ArchbenchError: what happened instead.
        """
        line = self._answers.readline()
        if not line:
            code = self._process.wait()
            ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            step = "See what it printed above"
            raise PhaseError(f"measuring {self._side.name}", f"its process {ending} before it had an answer", step)
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            error = from_dict(message["error"])
            error.culprit = f"{self._side.name}: {error.culprit}"
            raise error
        return message


def _environment(path: tuple[str, ...]) -> dict[str, str]:
    """One thread, the tree's code first, and none of the plugins that the user's environment names for all trees."""
    variables = {**clean_environment(), **ONE_THREAD}
    variables.pop(PLUGINS_VARIABLE, None)
    if path:
        variables["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [variables.get("PYTHONPATH")])])
    return variables
