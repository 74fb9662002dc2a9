"""Which plugin files may run: those that the user of this machine named, or trusts by their content.

A results folder and a run file are data: they may come from anybody, and they name plugin files. Such a file is run
only if this user has begun a run with a file of the same content, or trusts it (``archbench trust``). ``SECURITY.md``
has the whole model.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import BaseModel

from archbench.child.inheritance import handed_down
from archbench.errors import ArchbenchWarning, StorageError, UntrustedCodeError, UsageError
from archbench.files.loader import open_regular, read_model
from archbench.files.writing import replace_atomically
from archbench.plugin.discovery import plugin_files

CONFIG_VARIABLE = "ARCHBENCH_CONFIG"
"""Environment variable with the folder of this user's settings."""

TRUSTED_VARIABLE = "ARCHBENCH_TRUSTED"
"""Environment variable by which a process tells its children what it may run."""

MOST = 10_000
"""Contents that are remembered, the newest."""

MOST_FILES, MOST_BYTES = 10_000, 1 << 30
"""Bounds of a plugin whose content is hashed: a results folder may name any folder."""

_expected: dict[str, str] = {}
"""Path of each file that may run because of its content -> SHA-256 of that content."""

_packages: set[str] = set()
"""Folders of packages in which only expected files may run."""


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
    """``$ARCHBENCH_CONFIG``, or archbench's folder in the platform's settings (Linux: ``~/.config/archbench``).

    Raises:
        StorageError: the user has no home folder.
    """
    if chosen := os.environ.get(CONFIG_VARIABLE):
        return Path(chosen)
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Application Support" / "archbench"
        if sys.platform == "win32":
            return Path(os.environ.get("APPDATA", Path.home() / "AppData" / "Roaming")) / "archbench"
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "archbench"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        step = f"Set {CONFIG_VARIABLE} to a folder that can be written"
        raise StorageError("the settings folder", "this user has no home folder", step) from None


def content_digest(plugin: str | Path) -> str:
    """``sha256:`` and the digest of a plugin file, or of all files in a package's folder and their names.

    Python's caches (``__pycache__``) and folders behind links do not count, and nothing in them is imported.

    Raises:
        UsageError: a file cannot be read or is not regular, or there is too much to read.
    """
    return _digest(_contents(Path(plugin)), Path(plugin))


def trusted() -> list[Trusted]:
    """What this user has trusted, the oldest first.

    Raises:
        StorageError: the list is damaged, or others than this user can write it.
    """
    file = _store()
    if not file.exists():
        return []
    for place in (file, file.parent):
        _refuse_others(place)
    return read_model(_Store, file, next_step="Delete it, and trust again what you know").trusted


def trust(plugins: Iterable[str | Path]) -> list[Trusted]:
    """Let these files, packages and folders of files run from now on, wherever they are, while their content stays.

    Raises:
        OSError: the list cannot be written.
        StorageError: the list is damaged.
        UsageError: one does not exist, is no plugin, or cannot be read.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    new = [Trusted(digest=content_digest(plugin), path=plugin, time=now) for plugin in _expanded(plugins)]
    for one in new:
        _hand_down(one.digest)
    known = {one.digest for one in trusted()}
    if not {one.digest for one in new} <= known:
        _change(lambda before: [*(one for one in before if one.digest not in {n.digest for n in new}), *new][-MOST:])
    return new


def forget(given: str) -> list[Trusted]:
    """Trust no longer what was trusted under this path or digest, or inside that folder, nor what is there now.

    Raises:
        OSError: the list cannot be written.
        UsageError: there is nothing of the kind.
    """
    place = Path(os.path.realpath(os.path.expanduser(given)))  # Path.resolve fails where a link leads to itself
    names = {given, str(place)}
    with suppress(UsageError):  # it is gone, or no plugin any more
        names |= {content_digest(file) for file in _expanded([place])}
    gone = [one for one in trusted() if {one.digest, one.path} & names or Path(one.path).is_relative_to(place)]
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
    except (OSError, StorageError) as error:
        cause = error if isinstance(error, StorageError) else f"{_store()}: {error.strerror or error}"
        text = f"what this run uses cannot be remembered, so resuming it will need --trust: {cause}"
        warnings.warn(text, ArchbenchWarning, stacklevel=2)


def allow(digest: str) -> None:
    """The user named code of this :func:`content_digest` on the command line: this command's processes may run it."""
    _hand_down(digest)


def require(plugins: Iterable[str], named_by: str | Path) -> list[str]:
    """Before these files, packages and folders of files run: see that each may.

    Args:
        named_by: the file that names them, for the error.

    Returns:
        The paths that may be loaded, absolute and without links.

    Raises:
        UntrustedCodeError: the user has neither begun a run with a file of that content nor trusted it.
        UsageError: one does not exist, is no plugin, or cannot be read.
    """
    files = _expanded(plugins)
    allowed = {*os.environ.get(TRUSTED_VARIABLE, "").split(), *handed_down.get(TRUSTED_VARIABLE, "").split()}
    for plugin in files:
        contents = _contents(Path(plugin))
        digest = _digest(contents, Path(plugin))
        if digest not in allowed and digest not in {one.digest for one in trusted()}:
            cause = f"{named_by} names it, and would have it run, but you have not named it yourself ({digest})"
            step = f"Read it. If you trust it: archbench trust {shlex.quote(plugin)}, or give --trust"
            raise UntrustedCodeError(f"plugin {plugin}", cause, step)
        _hand_down(digest)
        _expected.update({str(file): one for file, one in contents.items()})
        if Path(plugin).is_dir():
            _packages.add(plugin)
    return files


def check_source(path: str, source: bytes) -> None:
    """See that a file about to run has the content for which it may.

    Raises:
        ImportError: it has changed or appeared since.
    """
    expected = _expected.get(path)
    if expected is None and not any(Path(path).is_relative_to(package) for package in _packages):
        return  # the user has named it
    if expected != hashlib.sha256(source).hexdigest():
        raise ImportError(f"{path} has changed since it was checked that it may run")


def _expanded(plugins: Iterable[str | Path]) -> list[str]:
    """The plugins at these paths as they are loaded: absolute, without links."""
    places = dict.fromkeys(os.path.realpath(os.path.expanduser(plugin)) for plugin in plugins)
    return [file for place in places for file in plugin_files(place)]


def _contents(plugin: Path) -> dict[Path, str]:
    """SHA-256 of each file of a plugin."""
    contents: dict[Path, str] = {}
    left = MOST_BYTES
    try:
        for path in _files(plugin):
            digest = hashlib.sha256()
            with open_regular(path) as file:
                while left >= 0 and (part := file.read(1 << 20)):
                    digest.update(part)
                    left -= len(part)
            if left < 0 or len(contents) == MOST_FILES:
                cause = f"it has more than {MOST_BYTES >> 20} MiB or {MOST_FILES} files"
                raise UsageError(f"plugin {plugin}", cause, "Keep data out of the folder of a plugin")
            contents[path] = digest.hexdigest()
    except OSError as error:
        step = "Restore it, or start anew without it"
        raise UsageError(f"plugin {plugin}", f"{error.filename} cannot be read ({error.strerror})", step) from error
    return dict(sorted(contents.items()))


def _files(plugin: Path) -> Iterator[Path]:
    """Of a package every file in its folder; links to folders are not followed."""
    if not plugin.is_dir():
        yield plugin
    for folder, folders, names in os.walk(plugin):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(folder, name) for name in names)


def _refuse_others(place: Path) -> None:
    """Raise a StorageError if another user than this one can decide what ``place`` says."""
    found = place.stat()
    if sys.platform != "win32" and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        step = f"Make it yours alone (chmod go-w), or set {CONFIG_VARIABLE} to a folder of your own"
        raise StorageError(str(place), "other users own it or can write it, and so decide which code you run", step)


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
    import filelock

    file = _store()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with filelock.FileLock(file.with_name(".lock")):
        text = _Store(trusted=change(trusted())).model_dump_json(indent=1) + "\n"

        def write(out: IO[bytes]) -> None:
            os.chmod(out.fileno() if os.chmod in os.supports_fd else out.name, 0o600)
            out.write(text.encode())

        replace_atomically(file, write)
