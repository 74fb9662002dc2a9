"""Which plugin files may run: those that the user of this machine named, or trusts by their content.

A results folder and a run file are data: they may come from anybody, and they name plugin files. Such a file is run
only if this user has begun a run with a file of the same content, or trusts it (``archbench trust``). ``SECURITY.md``
has the whole model.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import filelock
from pydantic import BaseModel

from archbench.child.inheritance import handed_down
from archbench.errors import ArchbenchWarning, UntrustedCodeError, UsageError
from archbench.files.loader import open_regular, read_model
from archbench.files.writing import replace_atomically

CONFIG_VARIABLE = "ARCHBENCH_CONFIG"
"""Environment variable with the folder of this user's settings."""

TRUSTED_VARIABLE = "ARCHBENCH_TRUSTED"
"""Environment variable by which a process tells its children what it may run."""

MOST = 10_000
"""Contents that are remembered, the newest."""

_expected: dict[str, str] = {}
"""Path of each source file that may run because of its content -> SHA-256 of that content."""


class Trusted(BaseModel, extra="forbid"):
    """One content that may run.

    Attributes:
        digest: of :func:`content_digest`.
        path: where it was when it was trusted; to be read by people.
        time: when that was, in UTC.
    """

    digest: str
    path: str
    time: datetime


class _Store(BaseModel, extra="forbid"):
    trusted: list[Trusted] = []


def config_folder() -> Path:
    """``$ARCHBENCH_CONFIG``, or archbench's folder in the platform's settings (Linux: ``~/.config/archbench``)."""
    if chosen := os.environ.get(CONFIG_VARIABLE):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "archbench"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", Path.home() / "AppData" / "Roaming")) / "archbench"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "archbench"


def content_digest(plugin: str | Path) -> str:
    """``sha256:`` and the digest of a plugin file, or of all files in a package's folder and their names.

    Python's caches (``__pycache__``) do not count, and are not read when the plugin is imported.

    Raises:
        UsageError: a file cannot be read.
    """
    return _digest(_contents(Path(plugin)), Path(plugin))


def trusted() -> list[Trusted]:
    """What this user has trusted, the oldest first.

    Raises:
        StorageError: the list is damaged.
    """
    file = _store()
    if not file.exists():
        return []
    return read_model(_Store, file, next_step="Delete it, and trust again what you know").trusted


def trust(plugins: Iterable[str | Path]) -> list[Trusted]:
    """Let these files and packages run from now on, wherever they are, as long as their content stays the same.

    Raises:
        OSError: the list cannot be written.
        StorageError: the list is damaged.
        UsageError: a file cannot be read.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    new = [Trusted(digest=content_digest(plugin), path=str(plugin), time=now) for plugin in plugins]
    for one in new:
        _hand_down(one.digest)
    known = {one.digest for one in trusted()}
    if not {one.digest for one in new} <= known:
        _change(lambda before: [*(one for one in before if one.digest not in {n.digest for n in new}), *new][-MOST:])
    return new


def forget(given: str) -> list[Trusted]:
    """Trust no longer what was trusted under this path or digest, nor the content that is at the path now.

    Raises:
        OSError: the list cannot be written.
        UsageError: there is nothing of the kind.
    """
    place = Path(given).expanduser().resolve()
    names = {given, str(place), content_digest(place) if place.exists() else given}
    gone = [one for one in trusted() if {one.digest, one.path} & names]
    if not gone:
        step = "archbench trust --list shows all"
        raise UsageError(f"--forget {given}", "nothing is trusted under that path or digest", step)
    _change(lambda before: [one for one in before if one not in gone])
    return gone


def vouch(plugins: Iterable[str]) -> None:
    """The user named these files for a run that begins: :func:`trust` them, so that the run can be resumed.

    Warns:
        ArchbenchWarning: that cannot be remembered; a resumed run will ask for the files to be trusted.
    """
    plugins = list(plugins)
    try:
        trust(plugins)
    except OSError as error:
        text = f"{_store()} cannot be written ({error.strerror or error}): to resume this run, give --trust"
        warnings.warn(text, ArchbenchWarning, stacklevel=2)


def require(plugins: Iterable[str], named_by: str | Path) -> None:
    """Before these files run: see that each may.

    Args:
        named_by: the file that names them, for the error.

    Raises:
        UntrustedCodeError: the user has neither begun a run with a file of that content nor trusted it.
    """
    allowed = {*os.environ.get(TRUSTED_VARIABLE, "").split(), *handed_down.get(TRUSTED_VARIABLE, "").split()}
    for plugin in plugins:
        contents = _contents(Path(plugin))
        digest = _digest(contents, Path(plugin))
        if digest not in allowed and digest not in {one.digest for one in trusted()}:
            cause = f"{named_by} names it, and would have it run, but you have not named it yourself ({digest})"
            step = f"Read it. If you trust it: archbench trust {plugin}, or give --trust"
            raise UntrustedCodeError(f"plugin {plugin}", cause, step)
        _hand_down(digest)
        _expected.update({str(file): one for file, one in contents.items()})


def check_source(path: str, source: bytes) -> None:
    """See that a source file about to run has the content for which it may.

    Raises:
        ImportError: it has changed since.
    """
    expected = _expected.get(path)
    if expected is not None and expected != hashlib.sha256(source).hexdigest():
        raise ImportError(f"{path} has changed since it was checked that it may run")


def _contents(plugin: Path) -> dict[Path, str]:
    """SHA-256 of each file of a plugin."""
    try:
        return {file: _file_digest(file) for file in _files(plugin)}
    except OSError as error:
        step = "Restore it, or start anew without it"
        raise UsageError(f"plugin {plugin}", f"{error.filename} cannot be read ({error.strerror})", step) from error


def _files(plugin: Path) -> Iterator[Path]:
    if not plugin.is_dir():
        yield plugin
        return
    for file in sorted(plugin.rglob("*")):
        if not file.is_dir() and "__pycache__" not in file.parts:
            yield file


def _file_digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(contents: dict[Path, str], plugin: Path) -> str:
    if list(contents) == [plugin]:
        return f"sha256:{contents[plugin]}"
    lines = "".join(f"{digest} {file.relative_to(plugin).as_posix()}\n" for file, digest in contents.items())
    return f"sha256:{hashlib.sha256(lines.encode('utf-8', 'surrogateescape')).hexdigest()}"


def _hand_down(digest: str) -> None:
    known = handed_down.get(TRUSTED_VARIABLE, "").split()
    if digest not in known:
        handed_down[TRUSTED_VARIABLE] = " ".join([*known, digest])


def _store() -> Path:
    return config_folder() / "trusted.json"


def _change(change: Callable[[list[Trusted]], list[Trusted]]) -> None:
    file = _store()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with filelock.FileLock(file.with_name(".lock")):
        text = _Store(trusted=change(trusted())).model_dump_json(indent=1) + "\n"
        replace_atomically(file, lambda out: out.write(text.encode()))
