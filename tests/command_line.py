"""The command line in the test's own process, where torch is loaded already; phases have theirs (forked_children.py).

What a process of its own is for (signals, interrupts, what is imported, a terminal) asks for one: ``own_process``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from archbench.cli import main
from forked_children import forked_children


def archbench(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``archbench ARGUMENTS`` in ``cwd``: exit code and all that it and its processes print."""
    code, out, error = printed(*arguments, cwd=cwd, env=env)
    return subprocess.CompletedProcess(
        [*map(str, arguments)], code, out.decode(errors="replace"), error.decode(errors="replace")
    )


def printed(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> tuple[int, bytes, bytes]:
    """The same, with the bytes as they are printed."""
    given = [str(argument) for argument in arguments]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["archbench", *given])
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        with (
            forked_children(),
            _default_warnings(),
            _redirected(1, "stdout", out.fileno()),
            _redirected(2, "stderr", error.fileno()),
        ):
            code = main(given)
        found = []
        for file in (out, error):
            file.seek(0)
            found.append(file.read())
    return code, found[0], found[1]


def own_process(
    *arguments: str | Path, cwd: Path, env: dict[str, str] | None = None, module: bool = False, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """The installed command (``module``: ``python -m archbench``) in a fresh process; stdin is closed."""
    script = Path(sys.executable).with_name("archbench")
    command = [sys.executable, "-P", "-m", "archbench"] if module else [str(script)]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def _default_warnings() -> Iterator[None]:
    """Warnings as Python treats them outside pytest, which makes errors of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        yield


@contextlib.contextmanager
def _redirected(descriptor: int, name: str, target: int) -> Iterator[None]:
    """The descriptor, which processes inherit, and Python's stream both go to ``target``."""
    before, stream = os.dup(descriptor), getattr(sys, name)
    stream.flush()
    os.dup2(target, descriptor)
    replacement = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    setattr(sys, name, replacement)
    try:
        yield
    finally:
        replacement.flush()
        setattr(sys, name, stream)
        os.dup2(before, descriptor)
        os.close(before)
