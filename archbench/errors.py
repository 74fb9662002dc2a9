"""Every error: culprit, cause, next step and exit code. ``docs/reference/errors.md`` has the tree.

The command line prints that paragraph and exits with the code; ``--debug`` shows the traceback as well.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import ClassVar

LONGEST = 5000
"""Characters of each part of an error; a path has at most 4,096."""

FEW_NAMES = 12
"""Known names that are listed beside the closest one."""
MOST_NAMES = 60
"""Known names that are listed where none is close."""


class ArchbenchWarning(UserWarning):
    """Something that readers of the numbers must know; the results record it too."""


class ArchbenchError(Exception):
    """Base of every error a user can meet.

    Args:
        culprit: what is at fault, by name: an option, a file, a plugin.
        cause: what is wrong with it; a clause without the final full stop.
        next_step: what to do now; a clause without the final full stop.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, culprit: str, cause: str, next_step: str) -> None:
        culprit, cause, next_step = (
            part if len(part) <= LONGEST else f"{part[:LONGEST]} …" for part in (culprit, cause, next_step)
        )
        super().__init__(culprit, cause, next_step)
        self.culprit = culprit
        self.cause = cause
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.culprit}: {self.cause}. {self.next_step}{'' if self.next_step.endswith('?') else '.'}"

    def as_dict(self) -> dict[str, str]:
        """The error as plain strings, to cross a process boundary; :func:`from_dict` undoes it."""
        return {
            "type": type(self).__name__,
            "culprit": self.culprit,
            "cause": self.cause,
            "next_step": self.next_step,
        }


class UsageError(ArchbenchError, ValueError):
    """An argument, option or field that cannot be honoured."""

    exit_code = 2


class UnknownNameError(UsageError):
    """No such architecture, preset, field, run …"""


class ConfigError(UsageError):
    """A configuration value of the wrong type or out of range."""


class PluginError(ArchbenchError):
    """An architecture plugin that cannot be used."""

    exit_code = 3


class PluginImportError(PluginError):
    """The plugin cannot be imported."""


class MisspeltHookError(PluginError):
    """A hook of an unknown name."""


class MissingHookError(PluginError):
    """A required hook is missing or not marked."""


class HookArgumentError(PluginError):
    """A hook takes an argument that is never passed."""


class HookResultError(PluginError):
    """A hook returned None or the wrong type."""


class HookFailedError(PluginError):
    """A hook raised."""


class DuplicateNameError(PluginError):
    """Two plugins claim one name."""


class UntrustedCodeError(PluginError):
    """A file that somebody else's file names, and that would have been run."""

    exit_code = 12


class DataError(ArchbenchError, ValueError):
    """A corpus, tokenizer or trace of requests that cannot be used."""

    exit_code = 4


class DeviceError(ArchbenchError):
    """Hardware, dtype, backend or compiler that is not there."""

    exit_code = 5


class ResourceError(ArchbenchError):
    """Memory, threads, processes or open files that the system does not give."""

    exit_code = 5


class CheckpointError(ArchbenchError):
    """A checkpoint or weights file that cannot be read."""

    exit_code = 6


class StorageError(ArchbenchError):
    """Results that cannot be written or read."""

    exit_code = 7


class PhaseError(ArchbenchError):
    """A phase's process died, or took too long."""

    exit_code = 8


class KilledError(PhaseError):
    """A process was killed from outside, usually because memory ran out."""


class LauncherError(ArchbenchError):
    """A launcher whose engine is not reached, refuses what is asked for, or runs other code."""

    exit_code = 13


class ConformanceError(ArchbenchError):
    """An architecture that fails the conformance checks."""

    exit_code = 9


class RegressionError(ArchbenchError):
    """A change that makes an architecture cost more than the gates allow."""

    exit_code = 10


class MissingBaselineError(ArchbenchError):
    """Nothing to compare with, where that was required."""

    exit_code = 11


def from_dict(fields: dict[str, str]) -> ArchbenchError:
    """Rebuild the error that :meth:`ArchbenchError.as_dict` wrote in another process."""
    kinds = {kind.__name__: kind for kind in _descendants(ArchbenchError)}
    kind = kinds.get(fields["type"], ArchbenchError)
    return kind(fields["culprit"], fields["cause"], fields["next_step"])


def _descendants(kind: type[ArchbenchError]) -> Iterable[type[ArchbenchError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)


@contextlib.contextmanager
def storing(culprit: str, next_step: str) -> Iterator[None]:
    """Within this context an OSError becomes a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(culprit, f"it cannot be written ({error.strerror or error})", next_step) from error


_REFUSED_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE}
_NO_MEMORY = re.compile(
    r"can.t allocate memory|cannot allocate memory|not enough memory|out of memory|bad_alloc|alloc_cpu\.cpp"
    r"|ALLOC_FAILED|failed to map segment",
    re.IGNORECASE,
)
_NO_PROCESS = re.compile(r"can't start new thread|can't fork|Resource temporarily unavailable", re.IGNORECASE)
_OS_ERROR = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
_ASKED = re.compile(r"allocate (\d+) bytes")


def refusal(error: BaseException | None, culprit: str) -> ArchbenchError | None:
    """What the system refused, where that is why ``error`` was raised: neither archbench nor a plugin is at fault.

    The exceptions that caused it are looked at too: who catches them wraps them in words of its own. This is the one
    place that knows how Python, torch, NumPy, Arrow and safetensors say that memory or a disk is full.

    Args:
        culprit: what was being done; a file that was refused is named instead.

    Returns:
        A ResourceError, a StorageError, or None if it was something else.
    """
    while error is not None:
        if isinstance(error, ResourceError | StorageError):
            return error
        found = _number(error)
        if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):  # of Python's tempfile
            cause, step = "there is no folder for temporary files that can be written", "Set TMPDIR to one with room"
            return StorageError(f"{culprit}: TMPDIR", cause, step)
        if found in _REFUSED_WRITES:
            file = getattr(error, "filename", None)
            cause = f"the disk refuses it ({os.strerror(found)})"
            return StorageError(str(file or culprit), cause, "Make room or choose a disk that can be written")
        if isinstance(error, MemoryError) or found == errno.ENOMEM or _says(error, _NO_MEMORY):
            asked = _ASKED.search(str(error))
            more = f", asking for {int(asked[1]) / (1 << 30):.3g} GiB more" if asked else ""
            more_than = f" than {memory_limit()}" if memory_limit() else ""
            step = f"Lower the batch size, the context or the preset, or allow it more memory{more_than}"
            return ResourceError(culprit, f"it ran out of memory{more} ({one_line(error)})", step)
        if found in (errno.EMFILE, errno.ENFILE):
            step = "Close other programs, use fewer --jobs, or raise the limit (ulimit -n)"
            return ResourceError(culprit, "the system lets it open no more files", step)
        if found == errno.EAGAIN or _says(error, _NO_PROCESS):
            step = "End other programs, use fewer --threads or --jobs, or raise the limit (ulimit -u)"
            return ResourceError(culprit, f"the system starts no more processes or threads ({one_line(error)})", step)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _number(error: BaseException) -> int | None:
    """The ``errno`` of an error, which libraries in Rust and C++ say in their message."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = None if isinstance(error, ArchbenchError) else _OS_ERROR.search(str(error))
    return int(said[1] or said[2]) if said else None


def _says(error: BaseException, words: re.Pattern[str]) -> bool:
    library = isinstance(error, RuntimeError | ImportError) or type(error).__name__ == "SafetensorError"
    return library and words.search(str(error)) is not None


def memory_limit() -> str:
    """``2.5 GiB (ulimit -v)``: what this process and its children may have; "" without a limit."""
    limit = _limit()
    return "" if limit is None else f"{limit / (1 << 30):.3g} GiB (ulimit -v)"


def require_memory(least: int) -> None:
    """Raise a ResourceError if the limit is below ``least`` bytes.

    With less, native libraries end the process while they are loaded, before any Python code can say why.
    """
    limit = _limit()
    if limit is not None and limit < least:
        step = f"Allow at least {least / (1 << 30):.3g} GiB"
        raise ResourceError("archbench", f"it runs out of memory with {memory_limit()}", step)


def _limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The next step after an unknown name: the closest known one, and all of them if they are few or none is close."""
    known = sorted(known)
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    listed = f"Known: {', '.join(known[:MOST_NAMES])}{more}"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?" + (f" {listed}" if len(known) <= FEW_NAMES else "")
    return listed if known else "There are none"


def one_line(error: BaseException) -> str:
    """An exception's type and message as one clause of a sentence."""
    message = " ".join(str(error).split()).rstrip(".")
    if len(message) > 400:
        message = message[:400] + " …"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
