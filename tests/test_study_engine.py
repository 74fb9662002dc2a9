"""A kind of study that archbench does not have, in one file of 80 lines: the engine measures each of its cells once."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archbench.errors import UsageError
from archbench.study.contract import Quality
from archbench.study.engine import conduct
from archbench.study.time_left import TimeLeft
from forked_children import forked_children

DICE = '''
"""Which die shows the higher number? A contender is a die; one that has no sides takes no part."""

from dataclasses import dataclass

from archbench.config import Frozen
from archbench.study.contract import Contender, Study
from archbench.study.records import identity_key, plan_digest
from archbench.study.outcome import Outcome, Record, Seconds


class DicePlan(Frozen):
    architectures: tuple[str, ...]
    throws: int = 2
    seed: int = 0
    jobs: int = 2

    def digest(self):
        return plan_digest({"seed": self.seed})


class Throw(Record):
    value: int = 0


@dataclass(frozen=True)
class ThrowCell:
    architecture: str
    number: int
    key: str

    def measure(self, folder, trackers):
        with (folder / "thrown.txt").open("a") as file:
            file.write(f"{self.architecture} {self.number}\\n")
        return Throw(key=self.key, run_id=None, outcome="ok", value=len(self.architecture) + self.number)


class DiceOutcome(Outcome):
    file, plan_file, noun, command_name = "dice.json", "dice-plan.json", "game", "dice"
    seconds: Seconds
    best: str


class Dice(Study):
    kind, record, verb = DiceOutcome, Throw, "throw"

    def contenders(self):
        return [
            Contender(name, {}, "", "it has no sides" if name == "ball" else None) for name in self.plan.architectures
        ]

    def cell(self, one, number):
        return ThrowCell(one.architecture, number, identity_key(seed=self.plan.seed, die=one.architecture, n=number))

    def pilots(self, contender):
        return [self.cell(contender, 0)]

    def admit(self, contender, pilots, folder):
        return None

    def measure(self, session):
        session.run([self.cell(one, n + 1) for n in range(self.plan.throws) for one in session.taking_part()])

    def seconds(self, cell):
        return 1.0

    def outcome(self, session, common):
        best = max(session.measured.values(), key=lambda pair: pair[1].value)[0]
        return DiceOutcome(**common, machine={}, best=best.architecture), []
'''


class Heard:
    """Progress that remembers what it hears."""

    def __init__(self) -> None:
        self.counts: tuple[int, int] = (0, 0)
        self.started_cells: list[Any] = []
        self.finished_cells: list[Any] = []
        self.notes: list[str] = []

    def piloting(self, cells: int) -> None:
        self.notes.append(f"{cells} pilots")

    def began(self, seconds: float, left: TimeLeft, cells: int, known: int) -> None:
        self.counts = (cells, known)

    def started(self, cell: Any) -> None:
        self.started_cells.append(cell)

    def known(self, cell: Any, quality: Quality | None) -> None: ...

    def finished(self, cell: Any, record: Any, quality: Quality | None) -> None:
        self.finished_cells.append(cell)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def dice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module with the study, which child processes find too."""
    (tmp_path / "dice_study.py").write_text(DICE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with forked_children():
        yield importlib.import_module("dice_study")


def test_a_new_kind_of_study_is_planned_measured_once_and_extended(dice: Any, tmp_path: Path) -> None:
    folder, heard = tmp_path / "out", Heard()

    def thrown() -> list[str]:
        return sorted((folder / "thrown.txt").read_text().splitlines())

    outcome = conduct(dice.Dice(dice.DicePlan(architectures=("d6", "ball"))), folder, heard, "dice d6 ball")
    assert heard.notes == ["1 pilots", "ball takes no part: it has no sides"]
    assert heard.counts == (2, 0)
    assert len(heard.started_cells) == len(heard.finished_cells) == 3  # with the pilot
    assert thrown() == ["d6 0", "d6 1", "d6 2"]
    assert outcome.best == "d6"
    assert dice.DiceOutcome.read(folder) == outcome
    assert json.loads((folder / "dice.json").read_text())["command"] == "dice d6 ball"

    more, heard = dice.DicePlan(architectures=("d6", "d20"), throws=3), Heard()
    assert conduct(dice.Dice(more), folder, heard, "dice d6 d20").best == "d20"
    assert heard.counts == (6, 2)  # only what is new is measured
    assert thrown() == ["d20 0", "d20 1", "d20 2", "d20 3", "d6 0", "d6 1", "d6 2", "d6 3"]

    with pytest.raises(UsageError, match="it holds a game of another plan"):
        conduct(dice.Dice(dice.DicePlan(architectures=("d6",), seed=1)), folder, heard, "dice")
    with pytest.raises(UsageError, match="nothing is left to throw"):
        conduct(dice.Dice(dice.DicePlan(architectures=("ball",))), tmp_path / "other", heard, "dice")


def test_processes_share_a_study_of_one_plan_and_refuse_another(dice: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    plan, other = (dice.DicePlan(architectures=names) for names in (("d6",), ("d6", "d20")))

    class Meeting(Heard):
        """Meets another process in the middle of the study."""

        def finished(self, cell: Any, record: Any, quality: Quality | None) -> None:
            super().finished(cell, record, quality)
            if not self.notes:
                return
            self.notes.clear()
            assert conduct(dice.Dice(plan), folder, Heard(), "dice d6").best == "d6"
            with pytest.raises(UsageError, match=f"process {os.getpid()}"):
                conduct(dice.Dice(other), folder, Heard(), "dice d6 d20")

    meeting = Meeting()
    assert conduct(dice.Dice(plan), folder, meeting, "dice d6").best == "d6"
    assert meeting.notes == []
    assert sorted((folder / "thrown.txt").read_text().splitlines()) == ["d6 0", "d6 1", "d6 2"]
