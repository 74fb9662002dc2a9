"""Reading files that anybody may have written: regular ones only, of bounded size, and validated.

A file in a results folder, a run file or a tokenizer may be damaged, enormous, a pipe or a device. Everything that
archbench reads as a whole goes through here, so that such a file ends in an error that names it.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import stat
import tomllib
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from archbench.errors import ArchbenchError, StorageError, one_line
from archbench.files.seal import Sealing, unsealed

M = TypeVar("M")

LIMIT = 64 << 20
"""Most bytes of a file that is read as a whole, unless its reader allows more. The largest ones that archbench writes
(an outcome of a thousand cells) have a few MiB."""

DEEPEST = 100
"""Most levels of nested JSON."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading; never waits, as opening a pipe would.

    Raises:
        OSError: it cannot be opened, or is not a regular file; ``strerror`` says what it is.
    """
    # O_NONBLOCK: opening a pipe nobody writes to would wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'a special file')}, not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(
    path: str | Path,
    *,
    limit: int = LIMIT,
    error: type[ArchbenchError] = StorageError,
    culprit: str | None = None,
    next_step: str,
) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Args:
        limit: bytes; no more than that is ever held in memory.
        error: what to raise.
        culprit: the file's name in the error; None for its path.
        next_step: what the user does about an unreadable file.

    Raises:
        ArchbenchError: of the class ``error``: the file is missing, larger, not regular, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the path
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
        raise error(culprit or str(path), f"it cannot be read ({reason})", next_step) from cause
    if len(content) > limit:
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
        raise error(culprit or str(path), f"it is larger than {size}, the most that such a file has", next_step)
    return content


def read_text(
    path: str | Path,
    *,
    limit: int = LIMIT,
    error: type[ArchbenchError] = StorageError,
    culprit: str | None = None,
    next_step: str,
) -> str:
    """As :func:`read_bytes`, decoded from UTF-8."""
    content = read_bytes(path, limit=limit, error=error, culprit=culprit, next_step=next_step)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as cause:
        _damaged(error, culprit or str(path), f"byte {cause.start} is not UTF-8", next_step, cause)


def read_json(
    path: str | Path,
    *,
    limit: int = LIMIT,
    error: type[ArchbenchError] = StorageError,
    culprit: str | None = None,
    next_step: str,
    sealing: Sealing = "none",
) -> Any:
    """As :func:`read_text`, parsed as JSON; NaN and infinities, which results may hold, are allowed.

    Args:
        sealing: whether its seal (:mod:`archbench.files.seal`) is checked; it is not part of what is returned.
    """
    text = read_text(path, limit=limit, error=error, culprit=culprit, next_step=next_step)
    try:
        return unsealed(_shallow(json.loads(text)), sealing)
    except (ValueError, RecursionError) as cause:
        _damaged(error, culprit or str(path), one_line(cause), next_step, cause)


def read_model(
    kind: type[M],
    path: str | Path,
    *,
    limit: int = LIMIT,
    error: type[ArchbenchError] = StorageError,
    culprit: str | None = None,
    next_step: str,
    sealing: Sealing = "none",
) -> M:
    """As :func:`read_json`, validated by pydantic as any type that it knows; the error names the field."""
    content = read_json(path, limit=limit, error=error, culprit=culprit, next_step=next_step, sealing=sealing)
    return validated(kind, content, error=error, culprit=culprit or str(path), next_step=next_step)


def read_lines(
    path: str | Path,
    *,
    limit: int = 4 * LIMIT,
    error: type[ArchbenchError] = StorageError,
    culprit: str | None = None,
    next_step: str,
    sealing: Sealing = "none",
) -> list[dict[str, Any]]:
    """As :func:`read_json`, of a file with a JSON object in each line."""
    parsed: list[Any] = []
    text = read_text(path, limit=limit, error=error, culprit=culprit, next_step=next_step)
    try:
        parsed.extend(map(json.loads, text.splitlines()))
        lines = unsealed(parsed, sealing)
    except (ValueError, RecursionError) as cause:
        reason = f"line {len(parsed) + 1}: {one_line(cause)}" if len(parsed) < len(text.splitlines()) else str(cause)
        _damaged(error, culprit or str(path), reason, next_step, cause)
    return validated(list[dict[str, Any]], lines, error=error, culprit=culprit or str(path), next_step=next_step)


def validated_line(kind: type[M], line: bytes, *, error: type[ArchbenchError], culprit: str, next_step: str) -> M:
    """One JSON value as a ``kind``; see :func:`validated`."""
    try:
        found: M = _adapter(kind).validate_json(line)
        return found
    except ValidationError as cause:
        _damaged(error, culprit, _first_finding(cause), next_step, cause)


def read_toml(
    path: str | Path,
    *,
    limit: int = 1 << 20,
    error: type[ArchbenchError] = StorageError,
    culprit: str | None = None,
    next_step: str,
) -> dict[str, Any]:
    """As :func:`read_text`, parsed as TOML; dotted keys have at most 64 parts, because the parser's time grows with the
    square of their number."""
    text = read_text(path, limit=limit, error=error, culprit=culprit, next_step=next_step)
    if _LONG_KEY.search(text):
        raise error(culprit or str(path), "a dotted key in it has more than 64 parts", next_step)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as cause:
        _damaged(error, culprit or str(path), one_line(cause), next_step, cause)


_LONG_KEY = re.compile(r"""(?<![\w"'.-])(?:(?>[\w-]+|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*')[ \t]*+\.[ \t]*+){64}""")


def validated(kind: type[M], content: Any, *, error: type[ArchbenchError], culprit: str, next_step: str) -> M:
    """``content``, parsed JSON, as a ``kind``.

    Raises:
        ArchbenchError: of the class ``error``: the first wrong field and what is wrong with it.
    """
    try:
        found: M = _adapter(kind).validate_python(content)
        return found
    except (ValidationError, RecursionError) as cause:
        reason = _first_finding(cause) if isinstance(cause, ValidationError) else one_line(cause)
        _damaged(error, culprit, reason, next_step, cause)


_adapter: Any = functools.cache(TypeAdapter)


def _shallow(content: Any) -> Any:
    """Parsed JSON; what is nested so deeply that whoever walks it in Python may fail is a ValueError."""
    level = [content]
    for _ in range(DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return content
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def _first_finding(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))[:200]
    said = first.get("ctx", {}).get("error")
    message = f"{said.culprit}: {said.cause}" if isinstance(said, ArchbenchError) else first["msg"]
    return f"the field {place} is wrong: {message}" if place else message


def _damaged(error: type[ArchbenchError], culprit: str, reason: str, next_step: str, cause: BaseException) -> NoReturn:
    raise error(culprit, f"it is damaged ({' '.join(reason.split())})", next_step) from cause
