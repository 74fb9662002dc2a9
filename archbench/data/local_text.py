"""Text files and folders on disk, read byte for byte."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from archbench.data.documents import Document
from archbench.errors import ArchbenchWarning, DataError

_PROSE = (".txt", ".md", ".rst", ".tex", ".org", ".html")
_CODE = (
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala", ".swift"),
    *(".js", ".jsx", ".ts", ".tsx", ".css", ".rb", ".php", ".sh", ".sql", ".lua", ".jl", ".r", ".hs", ".ml"),
)
SUFFIXES = frozenset(_PROSE + _CODE)
"""Files that are read in a folder: prose and source code. A file named directly may have any suffix."""


def read_path(path: Path) -> list[Document]:
    """A file as one document, or a folder's text files as one document each.

    Raises:
        DataError: a file is missing, unreadable, empty, binary or not UTF-8; names it.
    """
    if path.is_dir():
        return _read_folder(path)
    document = _read_file(path, path.name)
    if not document.text:
        raise DataError(f"corpus {str(path)!r}", "the file is empty", "Give a file with text in it")
    return [document]


def _read_folder(folder: Path) -> list[Document]:
    """Sorted by path. Hidden files and folders, links to folders and empty files are skipped."""
    paths = sorted(_text_files(folder), key=lambda path: path.relative_to(folder).as_posix())
    documents = [_read_file(path, path.relative_to(folder).as_posix()) for path in paths]
    documents = [document for document in documents if document.text]
    if not documents:
        suffixes = " ".join(sorted(SUFFIXES))
        raise DataError(
            f"corpus {str(folder)!r}",
            "the folder has no text files" if not paths else "all of the folder's text files are empty",
            f"Put text into files with one of these suffixes: {suffixes}",
        )
    # The same file in both splits would leak training text into validation.
    first: dict[str, Document] = {}
    for document in documents:
        first.setdefault(document.text, document)
    unique = list(first.values())
    if len(unique) < len(documents):
        count = len(documents) - len(unique)
        warnings.warn(
            f"corpus {str(folder)!r}: {count} of {len(documents)} files repeat another file and are skipped",
            ArchbenchWarning,
            stacklevel=2,
        )
    return unique


def _text_files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(parent, name)


def _read_file(path: Path, name: str) -> Document:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable_error(error, path) from None
    culprit = f"file {str(path)!r}"
    nulls = data.count(0)
    try:
        text = data.decode("utf-8")  # keeps the exact bytes: no utf-8-sig, no newline translation
    except UnicodeDecodeError as error:
        if nulls:
            raise _binary_error(culprit, f"not UTF-8 at byte {error.start}, with {nulls} NUL bytes") from None
        raise DataError(
            culprit,
            f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8",
            f"Convert it, for instance: iconv -f LATIN1 -t UTF-8 {path.name}",
        ) from None
    if nulls > len(data) / 10:  # UTF-16 of ASCII is valid UTF-8 in which every other byte is NUL
        raise _binary_error(culprit, f"{nulls} of {len(data)} bytes are NUL")
    return Document(name, text)


def _binary_error(culprit: str, finding: str) -> DataError:
    next_step = "Give UTF-8 text; UTF-16 is converted by: iconv -f UTF-16 -t UTF-8"
    return DataError(culprit, f"it looks like a binary file or UTF-16 ({finding})", next_step)


def _unreadable(error: OSError) -> None:
    raise _unreadable_error(error, error.filename)


def _unreadable_error(error: OSError, path: object) -> DataError:
    return DataError(
        f"file {str(path)!r}", f"it cannot be read ({error.strerror})", "Check the path and its permissions"
    )
