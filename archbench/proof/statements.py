"""Statements about a device with what was found, and the outcome that keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from archbench.errors import one_line
from archbench.study.outcome import Elapsed, Outcome, Part

if TYPE_CHECKING:
    import torch

COMPUTES = "computes"
"""Key of the statement on which all others rest."""

Verdict = Literal["holds", "fails", "noted", "not run"]


class Statement(Part):
    """One line of the table.

    Attributes:
        what: is claimed, with its sizes.
        expected: the bound, and its source where it is somebody's measurement; "" where nothing is expected.
        found: with its unit; for what was not run, the reason.
        verdict: ``noted`` is a fact without a bound.
        key: ``fact`` where it holds whether or not the device computes, :data:`COMPUTES` where it decides that.
    """

    what: str
    expected: str
    found: str
    verdict: Verdict
    key: str = ""


class Proved(Part):
    """A proof that ended.

    Attributes:
        ended: how it broke off, as a clause; None if it came to its end.
        seconds: as measured.
    """

    name: str
    about: str
    statements: tuple[Statement, ...]
    seconds: Elapsed
    ended: str | None = None

    @property
    def failing(self) -> list[Statement]:
        """The statements that fail; that it broke off is one."""
        broken = [] if self.ended is None else [judged(f"{self.name} comes to its end", False, "yes", self.ended)]
        return [*(one for one in self.statements if one.verdict == "fails"), *broken]


class ProofOutcome(Outcome):
    """What a device was shown to do.

    Attributes:
        void: the device computes nothing: no value and no time found on it means anything.
    """

    file: ClassVar[str] = "proof.json"
    plan_file: ClassVar[str] = "proof-plan.json"
    noun: ClassVar[str] = "proof"
    command_name: ClassVar[str] = "archbench doctor --prove"

    device: str
    void: bool
    proofs: tuple[Proved, ...]

    def count(self, verdict: Verdict) -> int:
        """Statements with that verdict; a proof that broke off is one more that fails."""
        if verdict == "fails":
            return sum(len(proof.failing) for proof in self.proofs)
        return sum(one.verdict == verdict for proof in self.proofs for one in proof.statements)


@dataclass(frozen=True)
class Bench:
    """Where a proof runs.

    Attributes:
        device: with its index.
        out: folder of the rows that it measures.
    """

    device: torch.device
    out: Path

    @property
    def gpu(self) -> bool:
        """Whether published sizes are affordable."""
        return self.device.type == "cuda"


Statements = Iterator[Statement]


def judged(what: str, holds: bool, expected: str, found: object, key: str = "") -> Statement:
    """A statement with a bound."""
    return Statement(what=what, expected=expected, found=str(found), verdict="holds" if holds else "fails", key=key)


def noted(what: str, found: object, expected: str = "", key: str = "") -> Statement:
    """A fact, beside what others publish."""
    return Statement(what=what, expected=expected, found=str(found), verdict="noted", key=key)


def attempted(what: str, statements: Statements) -> Statements:
    """The statements; an exception is one more, which fails, so that those of other models follow."""
    try:
        yield from statements
    except Exception as error:  # noqa: BLE001  whatever a model raises is what was found
        yield judged(f"{what} comes to its end", False, "yes", one_line(error))


def not_run(what: str, why: str) -> Statement:
    """A statement that cannot be put to the test here."""
    return Statement(what=what, expected="", found=why, verdict="not run")
