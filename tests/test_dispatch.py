"""Cells in the hands of a launcher: lost ones are tried again, known ones never sent, and submitters share the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from archbench.errors import LauncherError, ResourceError, StorageError
from archbench.launch.launcher import FullError, Launcher, Order, Settings, State
from archbench.results.claims import CLAIMS, Claims, Owner
from archbench.study.dispatch import CANCELLED, Dispatch, Unit
from archbench.study.outcome import Record
from archbench.study.records import read_record, write_record
from archbench.study.work import Done, Work, carried_out


@dataclass(frozen=True)
class Toy:
    key: str
    architecture: str = "toy"
    error: Exception | None = None

    def measure(self, folder: Path, trackers: Sequence[str]) -> Record:
        with (folder / "measured").open("a") as file:
            file.write(self.key)
        if self.error is not None:
            raise self.error
        return Record(key=self.key, run_id=None, outcome="ok")


@dataclass
class Fate:
    """What becomes of the orders, in turn: measured at once, or lost."""

    states: list[State | None] = field(default_factory=list)


class Engine(Launcher):
    """Carries orders out when it is asked for their states; a queue shared by name survives its process."""

    tries = 2
    queue: dict[str, Order]

    def __init__(self, folder: Path, fate: Sequence[State | None] = (), size: int = 4) -> None:
        super().__init__(Settings(), folder, size)
        self.fate, self.queue, self.orders = list(fate), {}, list[Order]()

    def submit(self, order: Order) -> str:
        self.queue[order.name] = order
        self.orders.append(order)
        return order.name

    def states(self, names: Sequence[str]) -> dict[str, State]:
        return {name: self._state(name) for name in names}

    def _state(self, name: str) -> State:
        if name not in self.queue:
            return State("lost", cause="is unknown")
        fate = self.fate.pop(0) if self.fate else None
        if fate is not None:
            return fate
        order = self.queue.pop(name)
        return State("done", result=order.function(order.argument))

    def cancel(self, names: Sequence[str]) -> None:
        for name in names:
            del self.queue[name]

    def wait(self, seconds: float) -> None:
        time.sleep(0.01)


class Lasting(Engine):
    survives = True


def _dispatch(launcher: Launcher, folder: Path, **owner: object) -> Dispatch:
    claims = Claims(folder, Owner.this_process("engine").model_copy(update=owner))
    return Dispatch(launcher, claims, folder, Record, ())


def _measured(dispatch: Dispatch, units: Sequence[Unit]) -> dict[str, Record]:
    return {cell.key: record for cell, record in dispatch.measured(units, None, lambda cell: None)}


def _log(folder: Path) -> str:
    return (folder / "measured").read_text() if (folder / "measured").exists() else ""


def test_a_lost_order_is_tried_again_and_its_record_says_why(tmp_path: Path) -> None:
    engine = Engine(tmp_path, [State("lost", cause="was preempted")])
    records = _measured(_dispatch(engine, tmp_path), [Unit([Toy("a")])])
    assert records["a"].outcome == "ok"
    assert records["a"].attempts == ("was preempted",)
    assert records["a"].host
    assert records["a"].device_name
    assert [order.name for order in engine.orders] == ["a.1", "a.2"]
    assert not any((tmp_path / CLAIMS).iterdir())


@pytest.mark.parametrize(
    ("fate", "orders"), [([State("lost", cause="died")] * 2, 2), ([State("lost", cause="died", again=False)], 1)]
)
def test_what_is_lost_for_good_is_a_failed_cell_that_the_same_command_measures_again(
    fate: list[State | None], orders: int, tmp_path: Path
) -> None:
    engine = Engine(tmp_path, fate)
    records = _measured(_dispatch(engine, tmp_path), [Unit([Toy("a")])])
    assert (records["a"].outcome, records["a"].cause) == ("failed", "died")
    assert len(engine.orders) == orders
    assert read_record(Record, tmp_path, "a") is None
    assert _measured(_dispatch(Engine(tmp_path), tmp_path), [Unit([Toy("a")])])["a"].outcome == "ok"


class Full(Engine):
    """Another's orders fill it at first; it has no room for a second beside one."""

    refused = 0

    def submit(self, order: Order) -> str:
        if self.refused < 3 or self.queue:
            self.refused += 1
            raise FullError("it is full")
        return super().submit(order)


def test_what_a_full_engine_refuses_waits_and_is_no_attempt(tmp_path: Path) -> None:
    notes: list[str] = []
    engine = Full(tmp_path)
    claims = Claims(tmp_path, Owner.this_process("engine"))
    dispatch = Dispatch(engine, claims, tmp_path, Record, (), note=notes.append)
    records = _measured(dispatch, [Unit([Toy(key)]) for key in "abc"])
    assert {record.attempts for record in records.values()} == {()}
    assert sorted(_log(tmp_path)) == ["a", "b", "c"]
    assert engine.refused > 3
    assert len(notes) == 1
    assert not any((tmp_path / CLAIMS).iterdir())


def test_memory_that_runs_out_is_told_and_not_tried_again(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    records = _measured(_dispatch(engine, tmp_path), [Unit([Toy("a", error=ResourceError("it", "no memory", "Buy"))])])
    assert (records["a"].outcome, records["a"].cause) == ("failed", "it: no memory")
    assert _log(tmp_path) == "a"


@pytest.mark.parametrize(("kills", "cause"), [(1, None), (2, "was killed, with nothing of this study beside it")])
def test_memory_that_runs_out_on_a_shared_machine_gives_one_more_try_with_a_machine_to_itself(
    kills: int, cause: str | None, tmp_path: Path
) -> None:
    engine = Engine(tmp_path, [State("lost", cause="was killed", crowded=True)] * kills)
    engine.tries = 3
    records = _measured(_dispatch(engine, tmp_path), [Unit([Toy("a")])])
    assert records["a"].cause == cause
    assert [order.exclusive for order in engine.orders] == [False, True]


def test_what_can_not_be_stored_ends_the_study(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the disk is full"):
        _measured(
            _dispatch(Engine(tmp_path), tmp_path),
            [Unit([Toy("a", error=StorageError("it", "the disk is full", "Make room"))])],
        )


def test_cells_in_turns_are_one_order_and_a_loss_costs_the_one_that_was_measured(tmp_path: Path) -> None:
    write_record(tmp_path, Record(key="a", run_id=None, outcome="ok"))
    cells = [Toy(key) for key in "abc"]
    engine = Engine(tmp_path, [State("lost", cause="died")] * 2)
    records = _measured(_dispatch(engine, tmp_path), [Unit(cells, told={"a"})])
    assert {key: record.outcome for key, record in records.items()} == {"b": "failed", "c": "ok"}
    assert [[cell.key for cell in order.argument.cells] for order in engine.orders] == [["b", "c"], ["b", "c"], ["c"]]
    assert all(order.exclusive for order in engine.orders[:2])
    assert _log(tmp_path) == "c"


def test_two_submitters_share_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = [[Unit([Toy(f"{n:02}.")]) for n in range(40)] for _ in "ab"]
    found: list[dict[str, Record]] = []

    def submit(own: Sequence[Unit]) -> None:
        found.append(_measured(_dispatch(Engine(tmp_path, size=2), tmp_path), own))

    threads = [threading.Thread(target=submit, args=(own,)) for own in units]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(_log(tmp_path).split(".")) == ["", *(f"{n:02}" for n in range(40))], "each was measured once"
    assert all(len(records) == 40 for records in found)


def test_an_order_that_outlives_its_submitter_is_looked_after_and_not_sent_again(tmp_path: Path) -> None:
    engine = Lasting(tmp_path, [State("queued"), State("running")])
    first = _dispatch(engine, tmp_path, pid=2**22 + 1)  # of a process that is gone
    first._begin(Unit([Toy("a")]), {})
    records = _measured(_dispatch(engine, tmp_path), [Unit([Toy("a")])])
    assert records["a"].outcome == "ok"
    assert len(engine.orders) == 1


def test_a_cancelled_study_ends(tmp_path: Path) -> None:
    dispatch = _dispatch(Engine(tmp_path, [State("running")] * 1000), tmp_path)

    def started(cell: Any) -> None:
        (tmp_path / CANCELLED).touch()

    with pytest.raises(KeyboardInterrupt):
        list(dispatch.measured([Unit([Toy("a")])], None, started))
    dispatch.abandon("was interrupted")
    assert _measured(_dispatch_again(tmp_path), [Unit([Toy("a")])])["a"].outcome == "ok"


def _dispatch_again(folder: Path) -> Dispatch:
    (folder / CANCELLED).unlink()
    return _dispatch(Engine(folder), folder)


@pytest.mark.parametrize("name", ["archbench", "torch"])
def test_a_worker_with_other_code_refuses_and_names_both(name: str, tmp_path: Path) -> None:
    done = carried_out(Work((Toy("a"),), tmp_path, (), Record, code={name: "1.2.3"}))
    with pytest.raises(LauncherError, match=rf"{name} is .* there, and 1\.2\.3 where") as caught:
        done.raise_error()
    assert caught.value.exit_code == 13
    assert _log(tmp_path) == ""


def test_a_worker_whose_claim_was_taken_over_measures_nothing(tmp_path: Path) -> None:
    claims = Claims(tmp_path, Owner.this_process("engine"))
    held = claims.take("a")
    assert held is not None
    held.file.with_name("a.2").touch()
    assert carried_out(Work((Toy("a"),), tmp_path, (), Record, claim=held.file, code={})) == Done(())
    assert _log(tmp_path) == ""
