"""What a check is, and how one is run: its result is a sentence, never a traceback to be read.

The checks themselves are in the modules beside this one; :data:`archbench.testing.catalogue.CHECKS` lists them.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from archbench.errors import ArchbenchError, HookFailedError, UsageError, did_you_mean, one_line
from archbench.testing.frames import plugin_line

if TYPE_CHECKING:
    from archbench.testing.subject import Subject

LEVEL = 1
"""Version of the set of checks, stored with results. Raised whenever a check is added, or becomes stricter."""

Status = Literal["passed", "failed", "expected failure", "unexpected pass", "not applicable", "not run"]


class Fault(AssertionError):  # noqa: N818  a finding about an architecture, not an error of the program's
    """What a check found wrong: one or two sentences with the smallest evidence, and what to look for."""


class NotApplicable(Exception):  # noqa: N818
    """The architecture does not offer what the check is about; the message says what."""


@dataclass(frozen=True)
class Check:
    """One claim about an architecture.

    Attributes:
        name: as on the command line: ``causality``.
        why: one sentence: what goes wrong in a comparison where it does not hold.
        run: raises :class:`Fault` where the claim does not hold; may return a note on what was seen.
        gate: whether ``archbench run`` measures nothing of a model that fails it.
        needs: checks without which this one cannot be judged; it is not run where one of them failed.
    """

    name: str
    why: str
    run: Callable[[Subject], str | None]
    gate: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """How a check ended.

    Attributes:
        name: the check's.
        status: ``expected failure`` is a failure that the author has given a reason for, ``unexpected pass`` its
            reverse.
        evidence: what was found, or why it was not judged; "" where there is nothing to say.
        seconds: wall time it took.
        trace: the traceback, where the architecture raised something unforeseen.
    """

    name: str
    status: Status
    evidence: str = ""
    seconds: float = 0.0
    trace: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing has to be mended on its account."""
        return self.status in ("passed", "expected failure", "not applicable")

    @property
    def blocks(self) -> bool:
        """Whether a check that needs this one cannot be judged."""
        return self.status in ("failed", "not run")


def evaluate(
    subject: Subject,
    checks: Iterable[Check],
    expected_failures: Mapping[str, str] | None = None,
    *,
    failed: Iterable[str] = (),
) -> Iterator[Result]:
    """Run ``checks`` in order, each result as soon as it is there.

    Args:
        subject: the architecture at one configuration.
        checks: those to run; what they need but is not among them counts as good.
        expected_failures: check -> reason. One that passes all the same is a failure: the reason no longer holds.
            What needs a check that failed as expected is run: its own failure takes a reason of its own.
        failed: checks that failed before these were begun.
    """
    bad = set(failed)
    checks = list(checks)
    expected = dict(expected_failures or {})
    for check in checks:
        missing = [need for need in check.needs if need in bad]
        if missing:
            result = Result(check.name, "not run", f"{missing[0]} failed, and nothing can be said before that holds")
        else:
            result = judged(run_check(check, subject), expected.get(check.name))
        if result.blocks:
            bad.add(check.name)
        yield result


def judged(result: Result, reason: str | None) -> Result:
    """``result`` in the light of the author's ``reason`` to expect a failure; None for none."""
    if reason is None:
        return result
    if result.status == "failed":
        return Result(result.name, "expected failure", f"{reason} ({result.evidence})", result.seconds, result.trace)
    evidence = f"it was expected to fail ({reason}), and does not: take it off the expected failures"
    return Result(result.name, "unexpected pass", evidence, result.seconds)


def run_check(check: Check, subject: Subject) -> Result:
    """Run one check; whatever the architecture raises becomes its result, whatever it changes is put back.

    So what a hook does to the whole process is found by the check for that, and spoils no other one before it.
    """
    from archbench.testing.global_state import NUMERICS, SURROUNDINGS, Watch  # torch, which this module does without

    start = time.perf_counter()
    watch = Watch(NUMERICS + SURROUNDINGS)

    def ended(status: Status, evidence: str, trace: str = "") -> Result:
        return Result(check.name, status, evidence, time.perf_counter() - start, trace)

    try:
        note = check.run(subject)
    except Fault as fault:
        return ended("failed", str(fault), traceback.format_exc() if fault.__cause__ else "")
    except NotApplicable as reason:
        return ended("not applicable", str(reason))
    except HookFailedError as error:
        return ended("failed", f"{error.cause}{_where(error)}", traceback.format_exc())
    except ArchbenchError as error:
        return ended("failed", str(error), traceback.format_exc())
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a stranger's code raises is what was found
        return ended("failed", f"it raised {one_line(error)}{_where(error)}", traceback.format_exc())
    finally:
        watch.close()
    return ended("passed", note or "")


def selected(names: Iterable[str], checks: Iterable[Check]) -> tuple[Check, ...]:
    """The checks of those names, in their own order.

    Raises:
        UsageError: there is no such check.
    """
    known = {check.name: check for check in checks}
    wanted = set(names)
    for name in sorted(wanted - known.keys()):
        raise UsageError(f"check {name!r}", "there is no such check", did_you_mean(name, known))
    return tuple(check for name, check in known.items() if name in wanted)


def _where(error: BaseException) -> str:
    """The line of the plugin's that raised in the first place; "" where none did."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    return plugin_line((frame.filename, frame.lineno) for frame in reversed(frames))
