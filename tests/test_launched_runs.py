"""``archbench run --launcher``: runs as orders, whose rows are those of runs without one, in the same folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pandas as pd
import pytest

from archbench import read_results
from archbench.config import RunConfig
from archbench.errors import ArchbenchError, KilledError
from archbench.launch.choice import Choice
from archbench.launch.launcher import Launcher, Order, Settings, State
from archbench.launch.parcel import accepted, packed, returned
from archbench.results.schema import INTERRUPTED
from archbench.runs.preparation import start
from archbench.study.launched_runs import LaunchedRun, measure_launched
from archbench.study.work import Work
from command_line import archbench
from forked_children import ForkedCommand, forked_children
from small_runs import UNCHECKED, losses_by_run, with_small_corpus
from test_interruption import wait_for

RUN = [*(option for option in UNCHECKED if option != "--quiet"), "--phases", "train"]
SEEDS = ("--seed", "0", "--seed", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_small_corpus(tmp_path_factory.mktemp("launched"))


def test_runs_come_back_as_without_a_launcher_and_a_failure_costs_only_itself(folder: Path) -> None:
    alone = archbench("run", "lama", "gpt1", *RUN, *SEEDS, "--out", "alone", cwd=folder)
    done = archbench("run", "lama", "gpt1", *RUN, *SEEDS, "--launcher", "local", "--out", "launched", cwd=folder)
    assert (alone.returncode, done.returncode) == (2, 2), done.stderr
    assert done.stderr.count("Error") == alone.stderr.count("Error") == 2
    assert done.stderr.splitlines()[-1] == alone.stderr.splitlines()[-1]
    assert "gpt1 seed 1 is done" in done.stderr
    assert losses_by_run(folder / "launched") == losses_by_run(folder / "alone")
    assert len(losses_by_run(folder / "alone")) == 2
    assert len(list((folder / "launched").iterdir())) == 3 * 2, "nothing of the launcher's is left"
    screens = [[line for line in one.stdout.splitlines() if " parameters, context " in line] for one in (alone, done)]
    assert screens[0] == screens[1], "remarks on what disturbed a run may differ"
    assert [line[-1] for line in screens[0]] == ["0", "1"], "a screen a seed"


class Engine(Launcher):
    """Carries orders out when it is asked for their states, unless the next fate is another."""

    tries = 2

    def __init__(self, folder: Path, fates: Sequence[State | None], *, shared: bool) -> None:
        super().__init__(Settings(), folder, 1)
        self.fates, self.shared = list(fates), shared
        self.orders: dict[str, Order] = {}
        self.begun: list[str] = []

    def submit(self, order: Order) -> str:
        self.orders[order.name] = order
        self.begun.append(order.title)
        return order.name

    def states(self, names: Sequence[str]) -> dict[str, State]:
        return {name: self._state(self.orders[name]) for name in names}

    def _state(self, order: Order) -> State:
        work = cast("Work", order.argument)
        (one,) = cast("tuple[LaunchedRun]", work.cells)
        if (fate := self.fates.pop(0)) is not None:
            if one.begun(self.folder) is None:  # it is lost before its first checkpoint
                start(one.config.override(out=str(one.place(work.folder))), digits=one.key[:6])
            return fate
        if self.shared:
            return State("done", result=order.function(work))
        result, parcel = returned(order.function, work, packed(work.folder, work.needs, work.leaves))
        accepted(parcel, work.folder, work.leaves, culprit="host far")
        return State("done", result=result)

    def cancel(self, names: Sequence[str]) -> None: ...

    def wait(self, seconds: float) -> None: ...


class Engines:
    """Stands for :class:`archbench.launch.choice.Choice`."""

    name = "engine"

    def __init__(self, *fates: State | None, shared: bool = True) -> None:
        self.fates, self.shared = fates, shared

    def launcher(self, folder: Path, jobs: int | None) -> Launcher:
        self.engine = Engine(folder, self.fates, shared=self.shared)
        return self.engine


class Told:
    """What a watcher hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.outcomes: dict[int, pd.DataFrame | ArchbenchError] = {}

    def note(self, text: str, *, needed: bool = False) -> None:
        self.notes.append(text)

    def ended(self, place: int, outcome: pd.DataFrame | ArchbenchError) -> None:
        self.outcomes[place] = outcome


def measured(folder: Path, out: str, engines: Engines, seeds: int) -> Told:
    training = {"steps": 2, "batch_size": 2, "validate_every": None}
    config = RunConfig(
        architecture="gpt1", profile="smoke", device="cpu", phases=("train",), threads=1, checked=False,
        overrides={"n_layer": 1, "context_length": 32}, training=training, out=str(folder / out),
        data={"corpus": str(folder / "small.txt")},
    )  # fmt: skip
    told = Told()
    with forked_children():
        configs = [config.override(seed=seed) for seed in range(seeds)]
        measure_launched(configs, cast("Choice", engines), told)
    return told


def test_a_lost_run_goes_on_in_its_folder_and_one_that_is_lost_for_good_is_an_error(folder: Path) -> None:
    lost = State("lost", cause="was preempted")
    engines = Engines(lost, None, lost, lost)
    told = measured(folder, "lost", engines, 2)
    assert engines.engine.begun == ["gpt1 seed 0"] * 2 + ["gpt1 seed 1"] * 2
    first, second = told.outcomes[0], told.outcomes[1]
    assert isinstance(first, pd.DataFrame)
    assert isinstance(second, KilledError)
    assert (second.culprit, second.exit_code) == ("gpt1 seed 1", 8)
    assert "was preempted" in second.cause
    assert any("gpt1 seed 0 is done" in note and "was preempted" in note for note in told.notes)
    (left,) = {path.name for path in (folder / "lost").iterdir() if path.is_dir()} - set(first.run_id)
    assert f"--resume {left}" in second.next_step
    assert set(read_results(folder / "lost").run_id) == set(first.run_id), "the second attempt began no other run"
    assert not list((folder / "lost").glob("launched-*"))


def test_without_a_shared_folder_rows_and_folder_come_back_and_weights_do_not(folder: Path) -> None:
    told = measured(folder, "far", Engines(None, shared=False), 1)
    (rows,) = told.outcomes.values()
    assert isinstance(rows, pd.DataFrame)
    (run,) = set(rows.run_id)
    assert {path.name for path in (folder / "far").iterdir()} == {run, f"{run}.json", f"{run}.parquet"}
    assert not (folder / "far" / run / "checkpoints").exists()


def test_under_torchrun_a_launcher_is_refused(tmp_path: Path) -> None:
    together = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("archbench.runs.launched._led", [object()])  # no store is waited for
        done = archbench("run", "gpt1", "--device", "cpu", "--launcher", "local", cwd=tmp_path, env=together)
    assert done.returncode == 2
    assert "torchrun" in done.stderr


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_continue_and_does(folder: Path) -> None:
    options = [*RUN, "--steps", "2000", "--config", "training.validate_every=null", "--out", "interrupted"]
    command = ForkedCommand("run", "gpt1", *options, "--launcher", "local", cwd=folder)
    wait_for(lambda: list((folder / "interrupted").glob("*/checkpoints/step-*")))
    command.process.send_signal(2)
    done = command.finished()
    assert done.returncode == 130
    (row,) = read_results(folder / "interrupted").to_dict("records")
    assert row["metric"] == INTERRUPTED
    (step,) = [line for line in done.stderr.splitlines() if "--resume" in line]
    assert f"gpt1 --resume {row['run_id']} --out" in step
    assert not list((folder / "interrupted").glob("launched-*"))
