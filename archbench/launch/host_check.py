"""Whether another machine can carry out a study's orders: it is reached, and has what the submitter has."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from archbench.errors import LauncherError


def examination() -> Callable[[str, Sequence[str]], dict[str, Any]]:
    """A function that engines can send as it is, because it is no part of a module: archbench need not be there.

    It returns the ``versions`` of archbench and torch, the content of the file ``mark`` (None if it does not see it),
    and a digest of each path ``outside`` the study's folder (None if it is missing).
    """

    def examined(mark: str, outside: Sequence[str]) -> dict[str, Any]:
        import hashlib
        from importlib import metadata, util
        from pathlib import Path

        def digest(path: Path) -> str | None:
            if not path.exists():
                return None
            whole = hashlib.sha256()
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and "__pycache__" not in file.parts:
                    with file.open("rb") as opened:
                        whole.update(str(file.relative_to(path)).encode() + b"\0")
                        whole.update(hashlib.file_digest(opened, "sha256").digest())
            return whole.hexdigest()

        names = ("archbench", "torch")
        versions = {name: metadata.version(name) if util.find_spec(name) is not None else None for name in names}
        try:
            seen = Path(mark).read_text("ascii")
        except OSError:
            seen = None
        return {"versions": versions, "mark": seen, "outside": {path: digest(Path(path)) for path in outside}}

    return examined


def require_same(host: str, here: Mapping[str, Any], there: Mapping[str, Any], *, send: str) -> None:
    """Compare what :func:`examination` found here and on the host.

    Args:
        send: option of the launcher by which paths reach its hosts.

    Raises:
        LauncherError: the host lacks something, or has another one.
    """
    for name, wanted in here["versions"].items():
        if (found := there["versions"][name]) != wanted:
            cause = f"{name} is {found or 'missing'} there, and {wanted} where the study was started"
            raise LauncherError(f"host {host}", cause, "Install the same there, or leave that host out")
    for path, wanted in here["outside"].items():
        if (found := there["outside"][path]) != wanted:
            cause = f"{path} is {'another one' if found else 'missing'} there"
            step = f"Copy it there, or name it by a relative path and send its folder: {send}"
            raise LauncherError(f"host {host}", cause, step)


def require_reached(address: str, seconds: float, *, culprit: str, start: str) -> None:
    """Connect to HOST:PORT, in a bounded time: engines try for minutes. An address without a port is left to them.

    Args:
        start: command that starts the engine there.

    Raises:
        LauncherError: nothing answers.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, OverflowError) as error:
        step = f"Start it there with: {start}, or correct the address"
        raise LauncherError(
            culprit, f"it is not reached ({getattr(error, 'strerror', None) or error})", step
        ) from error
