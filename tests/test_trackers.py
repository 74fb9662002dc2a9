"""Experiment trackers follow a run and change nothing of it, whatever they do; strangers' ones come in by one file."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from archbench import RunConfig, read_results
from archbench.errors import ArchbenchWarning, DuplicateNameError, PluginError, UsageError
from archbench.trackers import following
from archbench.trackers.feed import FEED, Feed, FeedReader
from archbench.trackers.following import followed_by
from archbench.trackers.tracker import summary
from command_line import archbench
from forked_children import ForkedCommand
from small_runs import UNCHECKED, losses, with_small_corpus

STRANGERS_TRACKER = '''
import json, os, random, threading, time

class Recorder:
    """Writes down all that it is told."""

    def start(self, run_id, configuration, folder):
        print("on standard output")
        self.place = folder / "recorded.jsonl"
        self.write(start=run_id, configuration=configuration)

    def log(self, step, tokens, values):
        self.write(step=step, tokens=tokens, values=values)

    def finish(self, rows, status):
        self.write(rows=rows, status=status)

    def write(self, **told):
        with self.place.open("a") as file:
            file.write(json.dumps(told) + "\\n")

class Quiet(Recorder):
    def write(self, **told):
        pass

class Unstartable(Quiet):
    def start(self, run_id, configuration, folder):
        raise RuntimeError("no\\nserver")

class Unloggable(Quiet):
    def log(self, step, tokens, values):
        raise ConnectionError("cut off")

class Unfinishable(Quiet):
    def finish(self, rows, status):
        raise SystemExit("giving up")

class Dying(Quiet):
    def log(self, step, tokens, values):
        os._exit(3)

class Lingering(Quiet):
    """Leaves a thread that would never let its process end."""

    def finish(self, rows, status):
        threading.Thread(target=time.sleep, args=(1000,)).start()

class Sleeping(Quiet):
    def start(self, run_id, configuration, folder):
        time.sleep(1000)

class Unmakable(Quiet):
    def __init__(self):
        raise RuntimeError("no licence")
'''
NAMES = {
    name: f"strangers_tracker:{name.capitalize()}"
    for name in (
        *("recorder", "unstartable", "unloggable", "unfinishable"),
        *("dying", "lingering", "sleeping", "unmakable"),
    )
}
BAD = ["unstartable", "unloggable", "unfinishable", "dying", "lingering"]

Install = Callable[..., Path]


def install_tracker(site: Path, names: dict[str, str], package: str = "strangers-tracker") -> None:
    """As pip leaves it: one module, and the entry points that its distribution declares."""
    site.mkdir(exist_ok=True)
    (site / "strangers_tracker.py").write_text(STRANGERS_TRACKER)
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nProvides-Extra: needy\n")
    lines = [f"{name} = {place}" for name, place in names.items()]
    (info / "entry_points.txt").write_text("\n".join(["[archbench.trackers]", *lines, ""]))
    importlib.invalidate_caches()


def put_on_path(patch: pytest.MonkeyPatch, site: Path) -> None:
    patch.syspath_prepend(site)
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trackers") / "site"
    install_tracker(folder, NAMES)
    return folder


@pytest.fixture(autouse=True)
def _installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(monkeypatch, site)


@pytest.fixture(scope="module")
def tracked(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with a run that many trackers followed, all but one of them bad, and one that none did."""
    folder = with_small_corpus(tmp_path_factory.mktemp("tracked"))
    options = ["run", "gpt1", *UNCHECKED, "--phases", "train,quality", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        put_on_path(patch, site)
        alone = archbench(*options, "--out", "alone", cwd=folder)
        done = archbench(*options, *(part for name in ["recorder", *BAD] for part in ("--track", name)), cwd=folder)
    assert alone.returncode == 0, alone.stderr
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def frame(tracked: tuple[Path, Any]) -> pd.DataFrame:
    return read_results(tracked[0] / "results")


def recorded(out: Path) -> list[dict[str, Any]]:
    (file,) = out.glob("*/recorded.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def logged(told: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(one["step"], one["values"][name]) for one in told if name in one.get("values", {})]


def test_a_tracker_is_told_every_step_as_it_is_in_the_results(tracked: tuple[Path, Any], frame: pd.DataFrame) -> None:
    told = recorded(tracked[0] / "results")
    rows = frame[frame.phase == "train"]
    for metric in ("loss", "learning_rate", "grad_norm", "step_seconds", "validation_loss", "validation_bits_per_byte"):
        own = rows[rows.metric == metric].sort_values("repeat")
        assert logged(told, f"train/{metric}") == list(zip(own.repeat, own.value, strict=True)), metric
    assert [step for step, _ in logged(told, "train/tokens_per_second")] == [1, 2, 3, 4, 5], "not of the first"
    by_step = rows[rows.metric == "loss"].set_index("repeat").tokens_seen
    assert all(one["tokens"] == by_step[one["step"]] for one in told if "train/loss" in one.get("values", {}))


def test_it_is_told_the_configuration_first_and_all_phases_rows_last(
    tracked: tuple[Path, Any], frame: pd.DataFrame
) -> None:
    first, *_, last = recorded(tracked[0] / "results")
    assert first["start"] == frame.run_id.iloc[0]
    assert first["configuration"]["run"]["training"]["steps"] == 6
    assert first["configuration"]["model"]["n_layer"] == 1
    assert last["status"] == "finished"
    assert len(last["rows"]) == len(frame)
    bits = frame[(frame.phase == "quality") & (frame.metric == "bits_per_byte")].value.iloc[0]
    assert summary(last["rows"])["quality/bits_per_byte"] == bits


def test_numbers_are_bit_identical_with_trackers_and_without(tracked: tuple[Path, Any], frame: pd.DataFrame) -> None:
    alone = read_results(tracked[0] / "alone")
    assert losses(frame) == losses(alone)
    for measured in (frame, alone):
        measured["key"] = measured.phase + " " + measured.metric
    exact = frame[frame.unit.isin(["nats/token", "bit/byte", "B/token", "token", "FLOP/token"])].key.unique()
    assert {"train loss", "train validation_loss", "quality bits_per_byte"} <= set(exact)
    for key in [*exact, "train grad_norm", "train learning_rate", "quality perplexity"]:
        pd.testing.assert_series_equal(
            frame[frame.key == key].value, alone[alone.key == key].value, check_exact=True, check_index=False
        )
    assert set(frame.key) == set(alone.key)
    assert set(frame.config_hash) == set(alone.config_hash), "seeds of both can be averaged"


def test_each_tracker_that_fails_costs_one_warning(tracked: tuple[Path, Any]) -> None:
    _, done = tracked
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning")]
    causes = {
        "unstartable": "RuntimeError: no server",
        "unloggable": "ConnectionError: cut off",
        "unfinishable": "SystemExit: giving up",
        "dying": "exit code 3",
    }
    for name, cause in causes.items():
        (warning,) = [line for line in warnings if f"tracker '{name}'" in line]
        assert cause in warning
    assert len(warnings) == len(causes), warnings


def test_what_a_tracker_prints_is_not_among_the_rows(tracked: tuple[Path, Any], frame: pd.DataFrame) -> None:
    assert len([json.loads(line) for line in tracked[1].stdout.splitlines()]) == len(frame)


def test_a_run_that_is_killed_and_resumed_is_one_run_to_its_tracker(tmp_path: Path) -> None:
    folder = with_small_corpus(tmp_path)
    rare = ["--config", "training.validate_every=100", "--config", "training.checkpoint_every=20"]
    options = [*UNCHECKED, *rare, "--phases", "train", "--steps", "150"]
    run = ForkedCommand("run", "gpt1", *options, "--track", "recorder", cwd=folder)
    wait_for(lambda: any(folder.glob("results/*/checkpoints/step-*")))
    os.killpg(run.process.pid, signal.SIGKILL)
    assert run.finished().returncode == -signal.SIGKILL
    wait_for(lambda: recorded(folder / "results")[-1].get("status") == "interrupted")
    before = len(logged(recorded(folder / "results"), "train/loss"))
    assert 20 <= before < 150
    done = archbench("run", "gpt1", "--resume", "last", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = recorded(folder / "results")
    assert len({one["start"] for one in told if "start" in one}) == 1
    assert [one["status"] for one in told if "status" in one] == ["interrupted", "finished"]
    assert logged(told, "train/loss") == list(enumerate(losses(read_results(folder / "results")))), "each step once"


def wait_for(seen: Callable[[], bool]) -> None:
    for _ in range(1200):
        if seen():
            return
        time.sleep(0.05)
    raise AssertionError("it never happened")


def test_an_unknown_tracker_ends_all_runs_before_anything_is_made(tmp_path: Path) -> None:
    done = archbench("run", "gpt1", "gpt2", *UNCHECKED, "--track", "recordr", cwd=with_small_corpus(tmp_path))
    assert done.returncode == 2
    assert "'recorder'" in done.stderr
    assert done.stderr.count("Error") == 1
    assert not (tmp_path / "results").exists()


def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "other"
    install_tracker(site, {"needy": "needy_tracker:Needy", "bare": "needy_tracker:Needy"}, package="needy")
    (site / "needy_tracker.py").write_text("import no_such_library.deep\n")
    put_on_path(monkeypatch, site)
    done = archbench("run", "gpt1", *UNCHECKED, "--track", "needy", cwd=with_small_corpus(tmp_path))
    assert done.returncode == 2
    assert "no_such_library" in done.stderr
    assert "pip install 'needy[needy]'" in done.stderr
    assert not (tmp_path / "results").exists()
    with pytest.raises(UsageError, match="pip install no_such_library"), followed_by(("bare",), quiet=True):
        pass  # there is no extra of that name


def test_a_tracker_that_cannot_be_made_and_a_name_claimed_twice_are_errors_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PluginError, match="no licence"), followed_by(("unmakable",), quiet=True):
        pass
    install_tracker(tmp_path / "second", {"recorder": "strangers_tracker:Recorder"}, package="second")
    put_on_path(monkeypatch, tmp_path / "second")
    with (
        pytest.raises(DuplicateNameError, match=r"second .*and strangers-tracker"),
        followed_by(("recorder",), quiet=True),
    ):
        pass


def test_a_tracker_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with followed_by(("sleeping",), quiet=True) as trackers:
        monkeypatch.setattr(following, "LONGEST_START", 1.0)
        with pytest.warns(ArchbenchWarning, match="'sleeping'.*1 s"):
            trackers.start("run", {}, tmp_path)
        trackers.finish([], "finished")


def test_steps_made_again_and_half_lines_are_not_told(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed:
        for step in range(4):
            feed.log(step, 10 * step, {"loss": 1 / 3 + step})
    with (tmp_path / FEED).open("a") as file:
        file.write('{"step": 4, "tok')  # as a process leaves it that is killed there
    reader = FeedReader(tmp_path)
    assert [step for step, _, _ in reader.read()] == [0, 1, 2, 3]
    position = reader.position
    with Feed(tmp_path) as feed:
        for step, loss in ((2, 7.0), (3, 7.0), (4, math.nan)):
            feed.log(step, 10 * step, {"loss": loss})
        feed.log(4, 40, {"validation_loss": 5.0})
    for later in (reader, FeedReader(tmp_path, position)):
        (step, tokens, values), validation = later.read()
        assert (step, tokens) == (4, 40)
        assert math.isnan(values["train/loss"])
        assert validation == (4, 40, {"train/validation_loss": 5.0})


def test_a_feed_that_cannot_be_written_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / FEED).mkdir()
    with Feed(tmp_path) as feed:
        with pytest.warns(ArchbenchWarning, match="not affected|cannot be written"):
            feed.log(0, 10, {"loss": 1.0})
        feed.log(1, 20, {"loss": 1.0})


def test_the_summary_has_one_number_a_case() -> None:
    rows: list[dict[str, Any]] = [
        {"phase": "train", "metric": "loss", "value": 3.0},
        {"phase": "train", "metric": "mfu", "value": None},
        {"phase": "environment", "metric": "load_before", "value": 1.0},
        {"phase": "quality", "metric": "bits_per_byte", "value": 2.0},
        *({"phase": "decode", "metric": "s", "value": v, "prompt_length": 8, "batch_size": 1} for v in (1.0, 9.0, 2.0)),
        {"phase": "decode", "metric": "s", "value": 5.0, "prompt_length": 16, "batch_size": 1},
    ]
    assert summary(rows) == {"quality/bits_per_byte": 2.0, "decode/s/P8_B1": 2.0, "decode/s/P16_B1": 5.0}


def test_trackers_change_no_configuration_hash() -> None:
    assert (
        RunConfig(architecture="gpt1", trackers=("wandb",)).config_hash()
        == RunConfig(architecture="gpt1").config_hash()
    )


def test_each_training_of_a_study_is_followed_and_measured_once_whoever_follows_it(
    tmp_path: Path, minimal_plugin: str
) -> None:
    (tmp_path / "bigram.py").write_text(minimal_plugin)
    command = [
        "probe", "bigram", "--plugin", "bigram.py", "--task", "state-parity", "--parameters", "0", "--updates", "12",
        "--examples", "40", "--seeds", "2", "--unchecked", "--jobs", "1", "--learning-rate", "0.01", "--out", "out",
    ]  # fmt: skip
    done = archbench(*command, "--track", "recorder", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "out" / "probe.json").read_text())["scores"]
    values = {score["condition"]: score["values"] for score in scores}
    followed = sorted((tmp_path / "out" / "runs").iterdir())
    assert len(followed) == 2
    for folder in followed:
        told = recorded(folder)
        seed = told[0]["configuration"]["run"]["seed"]
        assert len(logged(told, "train/loss")) == 12
        assert told[-1]["status"] == "finished"
        assert {row["metric"]: row["value"] for row in told[-1]["rows"]} == {
            f"accuracy/{condition}": own[seed] for condition, own in values.items()
        }
    again = archbench(*command, cwd=tmp_path)
    assert "2 of them known" in again.stderr
    absent = archbench(*command, "--track", "recorders", cwd=tmp_path)
    assert absent.returncode == 2
    assert "recorders" in absent.stderr
