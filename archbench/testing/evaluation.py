"""What a check is and how one is run: every result is a sentence, never a traceback to interpret.

The checks themselves are in :mod:`archbench.testing.checks`.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from archbench.errors import (
    ArchbenchError,
    HookFailedError,
    ResourceError,
    StorageError,
    UsageError,
    did_you_mean,
    one_line,
    refusal,
)
from archbench.testing.plugin_lines import root_cause_line

if TYPE_CHECKING:
    from archbench.testing.subject import Subject

LEVEL = 2
"""Version of the set of checks, stored with results. Raised whenever a check is added or becomes stricter."""

Status = Literal["passed", "noted", "failed", "expected failure", "unexpected pass", "not applicable", "not run"]


class Fault(AssertionError):  # noqa: N818  a finding about an architecture, not an error of the program
    """What a check found wrong: one or two sentences with the smallest evidence, and what to look for."""


class NotApplicable(Exception):  # noqa: N818
    """The architecture does not offer what the check is about; the message says what."""


def and_more(names: list[str]) -> str:
    """``", and so for 2 more"``, where the first of ``names`` stands for all."""
    return f", and so for {len(names) - 1} more" if len(names) > 1 else ""


@dataclass(frozen=True)
class Check:
    """One claim about an architecture; made from a function by :func:`check`, and callable like it.

    Attributes:
        name: as on the command line: ``causality``.
        why: one sentence: what goes wrong in a comparison where the claim does not hold.
        run: raises :class:`Fault` where the claim does not hold; returns a note on what was seen.
        gate: whether ``archbench run`` measures nothing of a model that fails it.
        needs: checks that must pass before this one can be judged; it is not run where one of them failed.
    """

    name: str
    why: str
    run: Callable[[Subject], str]
    gate: bool = False
    needs: tuple[str, ...] = ()

    def __call__(self, subject: Subject) -> str:
        return self.run(subject)


def check(*, gate: bool = False, needs: tuple[str, ...] = ()) -> Callable[[Callable[[Subject], str]], Check]:
    """Turn a function ``check_NAME`` into a :class:`Check`; its docstring becomes :attr:`Check.why`."""

    def make(function: Callable[[Subject], str]) -> Check:
        why = " ".join((function.__doc__ or "").split())
        return Check(function.__name__.removeprefix("check_"), why, function, gate, needs)

    return make


@dataclass(frozen=True)
class Result:
    """How a check ended.

    Attributes:
        name: the check's.
        status: ``noted`` is a pass, with something that the reader should know (:meth:`Subject.note`);
            ``expected failure`` is a failure for which the author gave a reason, ``unexpected pass`` its reverse.
        evidence: what was found, or why the check was not judged; "" where there is nothing to say.
        seconds: wall time it took.
        trace: the traceback, where the architecture raised an unexpected exception.
    """

    name: str
    status: Status
    evidence: str = ""
    seconds: float = 0.0
    trace: str = ""

    @property
    def holds(self) -> bool:
        """Whether the claim holds, as far as it concerns the architecture."""
        return self.status in ("passed", "noted", "not applicable")

    @property
    def good(self) -> bool:
        """Whether it leaves nothing to fix."""
        return self.holds or self.status == "expected failure"

    @property
    def blocks(self) -> bool:
        """Whether checks that need this one cannot be judged."""
        return self.status in ("failed", "not run")


def evaluate(
    subject: Subject,
    checks: Iterable[Check],
    expected_failures: Mapping[str, str] | None = None,
    *,
    failed: Iterable[str] = (),
) -> Iterator[Result]:
    """Run ``checks`` in order and yield each result at once.

    Args:
        subject: the architecture at one configuration.
        checks: those to run; a needed check that is not among them counts as passed.
        expected_failures: check -> reason. An expected failure that passes is a failure: its reason no longer holds.
            Checks that need one that failed as expected are run: their own failures take reasons of their own.
        failed: checks that failed before.
    """
    bad = set(failed)
    checks = list(checks)
    expected = dict(expected_failures or {})
    for check in checks:
        missing = [need for need in check.needs if need in bad]
        result = not_run(check.name, missing[0]) if missing else judged(run_check(check, subject), expected)
        if result.blocks:
            bad.add(check.name)
        yield result


def not_run(name: str, needed: str) -> Result:
    """The result of a check that needs one that failed."""
    return Result(name, "not run", f"{needed} failed, and nothing can be said before that holds")


def judged(result: Result, expected_failures: Mapping[str, str]) -> Result:
    """``result``, given the author's reasons to expect failures: check -> reason."""
    reason = expected_failures.get(result.name)
    if reason is None:
        return result
    if result.status == "failed":
        return Result(result.name, "expected failure", f"{reason} ({result.evidence})", result.seconds, result.trace)
    evidence = f"it was expected to fail ({reason}), and does not: take it off the expected failures"
    return Result(result.name, "unexpected pass", evidence, result.seconds)


def run_check(check: Check, subject: Subject) -> Result:
    """Run one check; whatever the architecture raises becomes the result, whatever it changes is put back.

    So what a hook does to the whole process is found by the check for that, and spoils no other check.

    Raises:
        ResourceError, StorageError: memory or a disk is full, which is no fault of the architecture's.
    """
    from archbench.testing.global_state import NUMERICS, SURROUNDINGS, Watch  # torch, which this module does without

    start = time.perf_counter()
    watch = Watch(NUMERICS + SURROUNDINGS)
    subject.notes.clear()

    def ended(status: Status, evidence: str, trace: str = "") -> Result:
        return Result(check.name, status, evidence, time.perf_counter() - start, trace)

    try:
        seen = _run(check, subject)
    except (ResourceError, StorageError):
        raise
    except Fault as fault:
        return ended("failed", str(fault), traceback.format_exc() if fault.__cause__ else "")
    except NotApplicable as reason:
        return ended("not applicable", str(reason))
    except HookFailedError as error:
        return ended("failed", f"{error.cause}{root_cause_line(error)}", traceback.format_exc())
    except ArchbenchError as error:
        return ended("failed", f"{error}{root_cause_line(error) if error.__cause__ else ''}", traceback.format_exc())
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever the plugin's code raises is the finding
        return ended("failed", f"it raised {one_line(error)}{root_cause_line(error)}", traceback.format_exc())
    finally:
        watch.close()
    return ended("noted", "; ".join([*subject.notes, seen])) if subject.notes else ended("passed", seen)


def _run(check: Check, subject: Subject) -> str:
    try:
        return check.run(subject)
    except Exception as error:
        if (refused := refusal(error, f"the check {check.name}")) is not None:
            raise refused from error
        raise


def selected(names: Iterable[str], checks: Iterable[Check]) -> tuple[Check, ...]:
    """The checks of those names, in the order of ``checks``.

    Raises:
        UsageError: there is no such check.
    """
    known = {check.name: check for check in checks}
    wanted = set(names)
    for name in sorted(wanted - known.keys()):
        raise UsageError(f"check {name!r}", "there is no such check", did_you_mean(name, known))
    return tuple(check for name, check in known.items() if name in wanted)


def parsed_expectations(texts: Iterable[str], option: str) -> dict[str, str]:
    """``["flops=it counts its embedding"]`` as ``{"flops": "it counts its embedding"}``.

    Raises:
        UsageError: one is not of the form CHECK=REASON, or its reason is empty.
    """
    expected = {}
    for text in texts:
        name, _, reason = (part.strip() for part in text.partition("="))
        if not name or not reason:
            cause = "an expected failure needs a reason"
            raise UsageError(f"{option} {text}", cause, f"Write {option} '{name or 'CHECK'}=why it cannot pass yet'")
        expected[name] = reason
    return expected


def checked_expectations(expected: Mapping[str, str], checks: Iterable[Check], culprit: str) -> dict[str, str]:
    """A copy of ``expected``, if it names only ``checks`` and gives each a reason.

    Raises:
        UsageError: naming ``culprit`` and the offending entry.
    """
    known = [check.name for check in checks]
    for name, reason in expected.items():
        if name not in known:
            raise UsageError(f"{culprit} {name}", "there is no such check", did_you_mean(name, known))
        if not isinstance(reason, str) or not reason.strip():
            raise UsageError(f"{culprit} {name}", "an expected failure needs a reason", "Say why it cannot pass yet")
    return dict(expected)
