"""What goes between machines that share no folder: files that an order needs, and those that it leaves behind.

A parcel is a digest and a compressed tar of regular files under the paths that were agreed on. It comes from another
machine, so it is checked before anything is written: no path leads out of the study's folder, its size is bounded.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

from archbench.errors import LauncherError, storing
from archbench.files.loader import open_regular
from archbench.results.claims import own_place

LIMIT = 1 << 30
"""Most bytes of a parcel's files together."""

MOST_FILES = 100_000

CHECKPOINTS = "checkpoints"
"""Name of folders that a finished run leaves out: nobody reads them."""

_STEP = "Use a folder that all machines share"

Outcome = tuple[str, str]
"""Path of a folder, and of the file that is its record: the record comes last, and only once."""


@runtime_checkable
class Portable(Protocol):
    """The argument of an order that is carried out in a study's folder, wherever that is.

    Paths are relative to the folder, with ``/``.
    """

    @property
    def folder(self) -> Path:
        """Of the study."""

    @property
    def needs(self) -> Sequence[str]:
        """Files and folders that it reads; some may be missing."""

    @property
    def leaves(self) -> Sequence[Outcome]:
        """What it writes."""

    @property
    def outside(self) -> Sequence[str]:
        """Paths of files and folders that it reads outside the folder: texts, plugins."""

    def in_folder(self, folder: Path) -> Any:
        """The same work in another folder."""


def packed(folder: Path, paths: Sequence[str], outcomes: Sequence[Outcome] = ()) -> bytes:
    """The files at these paths that exist. Checkpoints come along only with what has no record yet.

    Raises:
        LauncherError: there is too much.
        StorageError: a file cannot be read.
    """
    content, size = io.BytesIO(), 0
    whole = [place for place, record in outcomes if not (folder / record).exists()]
    every = [*paths, *(path for outcome in outcomes for path in outcome)]
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as tar, storing(str(folder), _STEP):
        for path in every:
            for file in _files(folder / path):
                name = file.relative_to(folder)
                if CHECKPOINTS in name.parts and path not in whole:
                    continue
                with open_regular(file) as opened:
                    info = tarfile.TarInfo(name.as_posix())
                    info.size = os.fstat(opened.fileno()).st_size
                    size += info.size
                    if size > LIMIT:
                        raise LauncherError(str(folder / path), f"it has more than {LIMIT >> 20} MiB to send", _STEP)
                    tar.addfile(info, opened)
    return hashlib.sha256(content.getvalue()).digest() + content.getvalue()


def unpacked(content: bytes, folder: Path, paths: Sequence[str], *, culprit: str) -> None:
    """Write the files into an empty folder.

    Args:
        paths: where files may be.
        culprit: who packed them, for errors.

    Raises:
        LauncherError: the parcel is damaged, leads out of the folder, or is too large. Some files may be written.
        StorageError: the folder cannot be written.
    """
    try:
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise EOFError
        with tarfile.open(fileobj=io.BytesIO(content[32:]), mode="r:gz") as tar:
            for name, data in _checked(tar, [PurePosixPath(path) for path in paths], culprit):
                with storing(str(folder / name), "Make room, and run the same command again"):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(data)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise LauncherError(culprit, "what it sent is damaged", "Run the same command again") from error


def returned(function: Callable[[Any], Any], argument: Portable, parcel: bytes) -> tuple[Any, bytes]:
    """On a machine that does not see the study's folder: the function's result, and what it has left behind.

    Raises:
        LauncherError, StorageError: as :func:`unpacked` and :func:`packed`.
    """
    with tempfile.TemporaryDirectory(prefix="archbench-order-") as place:
        folder = Path(place)
        begun = [path for outcome in argument.leaves for path in outcome]
        unpacked(parcel, folder, [*argument.needs, *begun], culprit="the submitter")
        return function(argument.in_folder(folder)), packed(folder, [], argument.leaves)


def accepted(content: bytes, folder: Path, outcomes: Sequence[Outcome], *, culprit: str) -> None:
    """Put what an order has left behind in its places: each folder whole, then its record.

    An outcome whose record is there already stays as it is.

    Raises:
        LauncherError, StorageError: as :func:`unpacked`; nothing has changed.
    """
    staged = own_place(folder, "parcel")
    with storing(str(folder), "Make room, and run the same command again"):
        try:
            staged.mkdir()
            unpacked(content, staged, [path for outcome in outcomes for path in outcome], culprit=culprit)
            for place, record in outcomes:
                if (folder / record).exists():
                    continue
                if (staged / place).exists():
                    _replace(staged / place, folder / place, staged / "before")
                if (staged / record).exists():
                    (folder / record).parent.mkdir(parents=True, exist_ok=True)
                    (staged / record).rename(folder / record)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _checked(tar: tarfile.TarFile, allowed: Sequence[PurePosixPath], culprit: str) -> Iterator[tuple[str, bytes]]:
    """Each file's name and content, in bounds and at the paths that were agreed on."""
    size = 0
    for number, member in enumerate(tar):
        name = PurePosixPath(member.name)
        size += member.size
        inside = any(path == name or path in name.parents for path in allowed)
        if ".." in name.parts or not inside or not member.isreg():
            raise LauncherError(culprit, f"it sent {member.name!r}, which does not belong here", _STEP)
        if size > LIMIT or number >= MOST_FILES:
            raise LauncherError(culprit, f"it sent more than {LIMIT >> 20} MiB or {MOST_FILES:,} files", _STEP)
        file = tar.extractfile(member)
        assert file is not None
        data = file.read()
        if len(data) != member.size:
            raise EOFError
        yield member.name, data


def _replace(new: Path, place: Path, before: Path) -> None:
    """Put a folder in its place; what an interrupted order left there goes."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(before)
    new.rename(place)
    shutil.rmtree(before, ignore_errors=True)


def _files(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        if path.exists():
            yield path
        return
    for folder, _, names in os.walk(path):
        for name in sorted(names):
            if (file := Path(folder) / name).is_file() and not name.endswith(".tmp"):
                yield file
