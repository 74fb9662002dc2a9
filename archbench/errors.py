"""What can go wrong, as a tree.

::

    ArchbenchError                 exit code 1
    ├── UsageError (ValueError)              2   an argument, option or field that cannot be honoured
    │   ├── UnknownNameError                 2   no such architecture, preset, field, run …
    │   └── ConfigError                      2   a configuration value of the wrong type or out of range
    ├── PluginError                          3   an architecture plugin that cannot be used
    │   ├── PluginImportError                3
    │   ├── MisspeltHookError                3
    │   ├── MissingHookError                 3
    │   ├── HookArgumentError                3
    │   ├── HookResultError                  3   a hook returned None or the wrong type
    │   ├── HookFailedError                  3   a hook raised
    │   └── DuplicateNameError               3   two plugins claim one name
    ├── DataError (ValueError)               4   a corpus or tokenizer that cannot be used
    ├── DeviceError                          5   hardware, dtype, backend or compiler asked for is not there
    ├── CheckpointError                      6   a checkpoint or weights file that cannot be read
    ├── StorageError                         7   results that cannot be written or read
    ├── PhaseError                           8   a phase's process died, or took too long
    ├── ConformanceError                     9   an architecture that fails the conformance checks
    ├── RegressionError                     10   a change that makes an architecture cost more than the gates allow
    └── MissingBaselineError                11   nothing to compare with, where that was required

Every error names the culprit, the cause and the next step, and the command line prints exactly that
paragraph and exits with the code above. ``--debug`` shows the traceback as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class ArchbenchWarning(UserWarning):
    """Something a reader of the numbers has to know, and that is also recorded in the results."""


class ArchbenchError(Exception):
    """Base of every error a user can meet.

    Args:
        culprit: what is at fault, by name: an option, a file, a plugin.
        cause: what is wrong with it; a clause without the final full stop.
        next_step: what to do now; a clause without the final full stop.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, culprit: str, cause: str, next_step: str) -> None:
        super().__init__(culprit, cause, next_step)
        self.culprit = culprit
        self.cause = cause
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.culprit}: {self.cause}. {self.next_step}."

    def as_dict(self) -> dict[str, str]:
        """The error as plain strings, to cross a process boundary; :func:`from_dict` undoes it."""
        return {
            "type": type(self).__name__,
            "culprit": self.culprit,
            "cause": self.cause,
            "next_step": self.next_step,
        }


class UsageError(ArchbenchError, ValueError):
    exit_code = 2


class UnknownNameError(UsageError):
    pass


class ConfigError(UsageError):
    pass


class PluginError(ArchbenchError):
    exit_code = 3


class PluginImportError(PluginError):
    pass


class MisspeltHookError(PluginError):
    pass


class MissingHookError(PluginError):
    pass


class HookArgumentError(PluginError):
    pass


class HookResultError(PluginError):
    pass


class HookFailedError(PluginError):
    pass


class DuplicateNameError(PluginError):
    pass


class DataError(ArchbenchError, ValueError):
    exit_code = 4


class DeviceError(ArchbenchError):
    exit_code = 5


class CheckpointError(ArchbenchError):
    exit_code = 6


class StorageError(ArchbenchError):
    exit_code = 7


class PhaseError(ArchbenchError):
    exit_code = 8


class ConformanceError(ArchbenchError):
    exit_code = 9


class RegressionError(ArchbenchError):
    exit_code = 10


class MissingBaselineError(ArchbenchError):
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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The next step after an unknown name: the closest known one, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}? Known: {', '.join(known)}"
    return f"Known: {', '.join(known)}" if known else "There are none"


def one_line(error: BaseException) -> str:
    """An exception's type and message as one clause of a sentence."""
    message = " ".join(str(error).split()).rstrip(".")
    if len(message) > 400:
        message = message[:400] + " …"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
