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
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Required, TypedDict, TypeVar, Unpack

from archbench.errors import ArchbenchError, StorageError, one_line
from archbench.files.seal import Sealing, is_sealed, unsealed

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

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
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        if os.path.isdir(path):  # Windows opens none
            raise _irregular(stat.S_IFDIR, path) from None
        raise
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise _irregular(kind, path)
    return os.fdopen(descriptor, "rb")


def _irregular(kind: int, path: str | Path) -> OSError:
    return OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'a special file')}, not a regular file", str(path))


class Reading(TypedDict, total=False):
    """How a file is read; all but ``next_step`` may be left out.

    Attributes:
        limit: most bytes; no more than that is ever held in memory.
        error: class of what is raised; StorageError if left out.
        culprit: the file's name in the error; its path if left out.
        next_step: what the user does about an unreadable file.
    """

    limit: int
    error: type[ArchbenchError]
    culprit: str | None
    next_step: Required[str]


def read_bytes(path: str | Path, **how: Unpack[Reading]) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        ArchbenchError: of the class ``error``: the file is missing, larger, not regular, or cannot be read.
    """
    limit, error, culprit = how.get("limit", LIMIT), *_named(path, how)
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the path
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
        raise error(culprit, f"it cannot be read ({reason})", how["next_step"]) from cause
    if len(content) > limit:
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
        raise error(culprit, f"it is larger than {size}, the most that such a file has", how["next_step"])
    return content


def read_text(path: str | Path, **how: Unpack[Reading]) -> str:
    """As :func:`read_bytes`, decoded from UTF-8."""
    try:
        return read_bytes(path, **how).decode("utf-8")
    except UnicodeDecodeError as cause:
        _damaged(*_named(path, how), f"byte {cause.start} is not UTF-8", how["next_step"], cause)


def read_json(path: str | Path, *, sealing: Sealing = "none", **how: Unpack[Reading]) -> Any:
    """As :func:`read_text`, parsed as JSON; NaN and infinities, which results may hold, are allowed.

    Args:
        sealing: whether its seal (:mod:`archbench.files.seal`) is checked; it is not part of what is returned.
    """
    return read_sealed(path, sealing=sealing, **how)[0]


def read_sealed(path: str | Path, *, sealing: Sealing = "optional", **how: Unpack[Reading]) -> tuple[Any, bool]:
    """As :func:`read_json`, and whether the file has a seal."""
    text = read_text(path, **how)
    try:
        content = _shallow(json.loads(text))
        return unsealed(content, sealing), is_sealed(content)
    except (ValueError, RecursionError) as cause:
        _damaged(*_named(path, how), one_line(cause), how["next_step"], cause)


def read_model(kind: type[M], path: str | Path, *, sealing: Sealing = "none", **how: Unpack[Reading]) -> M:
    """As :func:`read_json`, validated by pydantic as any type that it knows; the error names the field."""
    content, (error, culprit) = read_json(path, sealing=sealing, **how), _named(path, how)
    return validated(kind, content, error=error, culprit=culprit, next_step=how["next_step"])


def read_lines(path: str | Path, *, sealing: Sealing = "none", **how: Unpack[Reading]) -> list[dict[str, Any]]:
    """As :func:`read_json`, of a file with a JSON object in each line, four times as large."""
    how.setdefault("limit", 4 * LIMIT)
    parsed: list[Any] = []
    text, (error, culprit) = read_text(path, **how), _named(path, how)
    try:
        parsed.extend(map(json.loads, text.splitlines()))
        lines = unsealed(parsed, sealing)
    except (ValueError, RecursionError) as cause:
        reason = f"line {len(parsed) + 1}: {one_line(cause)}" if len(parsed) < len(text.splitlines()) else str(cause)
        _damaged(error, culprit, reason, how["next_step"], cause)
    return validated(list[dict[str, Any]], lines, error=error, culprit=culprit, next_step=how["next_step"])


def validated_line(kind: type[M], line: bytes, *, error: type[ArchbenchError], culprit: str, next_step: str) -> M:
    """One JSON value as a ``kind``; see :func:`validated`."""
    from pydantic import ValidationError  # late, as below: it takes a third of a short command's time

    try:
        found: M = _adapter(kind).validate_json(line)
        return found
    except ValidationError as cause:
        _damaged(error, culprit, _first_finding(cause), next_step, cause)


def read_toml(path: str | Path, **how: Unpack[Reading]) -> dict[str, Any]:
    """As :func:`read_text`, parsed as TOML, at most 1 MiB; dotted keys have at most 64 parts, because the parser's time
    grows with the square of their number."""
    import tomllib

    how.setdefault("limit", 1 << 20)
    text, (error, culprit) = read_text(path, **how), _named(path, how)
    if _LONG_KEY.search(text):
        raise error(culprit, "a dotted key in it has more than 64 parts", how["next_step"])
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as cause:
        _damaged(error, culprit, one_line(cause), how["next_step"], cause)


_LONG_KEY = re.compile(r"""(?<![\w"'.-])(?:(?>[\w-]+|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*')[ \t]*+\.[ \t]*+){64}""")


def validated(kind: type[M], content: Any, *, error: type[ArchbenchError], culprit: str, next_step: str) -> M:
    """``content``, parsed JSON, as a ``kind``.

    Raises:
        ArchbenchError: of the class ``error``: the first wrong field and what is wrong with it.
    """
    from pydantic import ValidationError

    try:
        found: M = _adapter(kind).validate_python(content)
        return found
    except (ValidationError, RecursionError) as cause:
        reason = _first_finding(cause) if isinstance(cause, ValidationError) else one_line(cause)
        _damaged(error, culprit, reason, next_step, cause)


def _new_adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


_adapter: Any = functools.cache(_new_adapter)


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


def _named(path: str | Path, how: Reading) -> tuple[type[ArchbenchError], str]:
    return how.get("error", StorageError), how.get("culprit") or str(path)


def _first_finding(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))[:200]
    said = first.get("ctx", {}).get("error")
    message = f"{said.culprit}: {said.cause}" if isinstance(said, ArchbenchError) else first["msg"]
    return f"the field {place} is wrong: {message}" if place else message


def _damaged(error: type[ArchbenchError], culprit: str, reason: str, next_step: str, cause: BaseException) -> NoReturn:
    raise error(culprit, f"it is damaged ({' '.join(reason.split())})", next_step) from cause
