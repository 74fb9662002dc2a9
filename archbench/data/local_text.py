"""Text files and folders on disk: listed, checked once, and read byte for byte, a block at a time."""

from __future__ import annotations

import codecs
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from archbench.data.documents import BLOCK
from archbench.errors import ArchbenchWarning, DataError
from archbench.files.loader import open_regular

_PROSE = (".txt", ".md", ".rst", ".tex", ".org", ".html")
_CODE = (
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala", ".swift"),
    *(".js", ".jsx", ".ts", ".tsx", ".css", ".rb", ".php", ".sh", ".sql", ".lua", ".jl", ".r", ".hs", ".ml"),
)
SUFFIXES = frozenset(_PROSE + _CODE)
"""Files that are read in a folder: prose and source code. A file named directly may have any suffix."""

MOST_FILES = 100_000
"""Most text files of a folder: each of them is a document, and takes about a kilobyte of memory."""

Stamp = tuple[int, int, int, int]
"""Size, times of the last change of content and of inode (ns), inode: a file with the same stamp has the same text."""


@dataclass(frozen=True, slots=True)
class FileDocument:
    """A text file, or a part of one, whose text stays on disk.

    Attributes:
        start, end: its first byte, and the one after its last.
        stamp: of the file when it was listed; reading a file with another is an error.
    """

    name: str
    path: str
    start: int
    end: int
    stamp: Stamp

    @property
    def n_bytes(self) -> int:
        return self.end - self.start

    @property
    def text(self) -> str:
        return b"".join(self.blocks()).decode("utf-8")

    def part(self, start: int, end: int) -> FileDocument:
        return replace(self, start=self.start + start, end=self.start + end)

    def read(self, start: int, end: int) -> bytes:
        return b"".join(self.part(start, end).blocks())

    def blocks(self) -> Iterator[bytes]:
        with opened(self) as file:
            file.seek(self.start)
            left = self.n_bytes
            while left:
                block = file.read(min(BLOCK, left))
                if not block:
                    raise _changed(self.path)
                left -= len(block)
                yield block


def list_files(path: Path) -> list[FileDocument]:
    """The file, or the folder's text files sorted by path: hidden ones and links to folders are skipped.

    Nothing is read yet, so some may be empty, the same, or not text.

    Raises:
        DataError: a file or folder cannot be listed, or there are too many; names it.
    """
    if not path.is_dir():
        return [listed(str(path), path.name)]
    found = {}
    for file in _text_files(str(path)):
        found[Path(file).relative_to(path).as_posix()] = file
        if len(found) > MOST_FILES:
            step = "Join small files to larger ones, or give one file"
            raise DataError(f"corpus {str(path)!r}", f"the folder has more than {MOST_FILES:,} text files", step)
    # A name that is not UTF-8 could not be printed, nor written into results.
    return [listed(found[name], os.fsencode(name).decode("utf-8", "backslashreplace")) for name in sorted(found)]


def check_files(files: Sequence[FileDocument], path: Path) -> list[FileDocument]:
    """Those of ``files`` that are documents: neither empty nor a repetition of an earlier one. Reads all of them.

    Raises:
        DataError: a file is unreadable, binary, not UTF-8, or changes while it is read; none has text; names it.
    """
    # The same file in both splits would leak training text into validation.
    sizes = Counter(file.n_bytes for file in files)
    first: dict[bytes, FileDocument] = {}
    texts = 0
    for file in files:
        digest = hashlib.sha256() if sizes[file.n_bytes] > 1 else None
        for block in _checked(file):
            if digest is not None:
                digest.update(block)
        if file.n_bytes:
            texts += 1
            first.setdefault(file.path.encode("utf-8", "surrogateescape") if digest is None else digest.digest(), file)
    if not texts:
        raise _without_text(path, files)
    if len(first) < texts:
        warnings.warn(
            f"corpus {str(path)!r}: {texts - len(first)} of {texts} files repeat another file and are skipped",
            ArchbenchWarning,
            stacklevel=2,
        )
    return list(first.values())


def _text_files(folder: str) -> Iterator[str]:
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        if entry.name != "__pycache__" and not entry.is_symlink():
                            waiting.append(entry.path)
                    elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                        yield entry.path
        except OSError as error:
            raise _unreadable(error, current) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a loop of links: reading it says so
        return entry.is_dir()
    return False


def listed(path: str, name: str) -> FileDocument:
    """The file as it is now, unread.

    Raises:
        DataError: it cannot be found.
    """
    try:
        facts = os.stat(path)
    except OSError as error:
        raise _unreadable(error, path) from None
    return FileDocument(name, path, 0, facts.st_size, stamp_of(facts))


def stamp_of(facts: os.stat_result) -> Stamp:
    """The stamp of a file."""
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


@contextmanager
def opened(document: FileDocument) -> Iterator[BinaryIO]:
    """The file, unchanged from when it was listed to the end of this context.

    Raises:
        DataError: it has changed, or cannot be read.
    """
    try:
        with open_regular(document.path) as file:
            if stamp_of(os.fstat(file.fileno())) != document.stamp:
                raise _changed(document.path)
            yield file
            if stamp_of(os.fstat(file.fileno())) != document.stamp:
                raise _changed(document.path)
    except OSError as error:
        raise _unreadable(error, document.path) from None


def _checked(file: FileDocument) -> Iterator[bytes]:
    """The file's blocks, of which all are UTF-8 text, and there is nothing after them.

    Raises:
        DataError: as :func:`check_files`.
    """
    culprit = f"file {file.path!r}"
    decoder = codecs.getincrementaldecoder("utf-8")()  # keeps the exact bytes: no utf-8-sig, no newline translation
    nulls = done = 0
    with opened(file) as content:
        while True:
            block = content.read(BLOCK)
            if done + len(block) > file.n_bytes:
                raise DataError(
                    culprit,
                    f"it has more than the {file.n_bytes:,} bytes that the system says",
                    "Give an ordinary file that nobody is writing to: a copy, for instance",
                )
            nulls += block.count(0)
            pending = decoder.getstate()[0]
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = done - len(pending) + error.start
                if nulls:
                    raise _binary(culprit, f"not UTF-8 at byte {place}, with NUL bytes before it or near") from None
                raise DataError(
                    culprit,
                    f"byte {place} (0x{(pending + block)[error.start]:02x}) is not UTF-8",
                    f"Convert it, for instance: iconv -f LATIN1 -t UTF-8 {os.path.basename(file.path)}",
                ) from None
            done += len(block)
            if nulls > file.n_bytes / 10:  # UTF-16 of ASCII is valid UTF-8 in which every other byte is NUL
                raise _binary(culprit, f"more than a tenth of its {file.n_bytes:,} bytes are NUL")
            if not block:
                break
            yield block
    if done < file.n_bytes:
        raise _changed(file.path)


def _without_text(path: Path, files: Sequence[FileDocument]) -> DataError:
    culprit = f"corpus {str(path)!r}"
    if not path.is_dir():
        return DataError(culprit, "the file is empty", "Give a file with text in it")
    return DataError(
        culprit,
        "all of the folder's text files are empty" if files else "the folder has no text files",
        f"Put text into files with one of these suffixes: {' '.join(sorted(SUFFIXES))}",
    )


def _binary(culprit: str, finding: str) -> DataError:
    next_step = "Give UTF-8 text; UTF-16 is converted by: iconv -f UTF-16 -t UTF-8"
    return DataError(culprit, f"it looks like a binary file or UTF-16 ({finding})", next_step)


def _changed(path: str) -> DataError:
    step = "Give a file that stays as it is until the run has ended: a copy, for instance"
    return DataError(f"file {path!r}", "it changes while it is used", step)


def _unreadable(error: OSError, path: object) -> DataError:
    return DataError(
        f"file {str(path)!r}", f"it cannot be read ({error.strerror})", "Check the path and its permissions"
    )
