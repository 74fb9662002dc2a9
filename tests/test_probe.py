"""``archbench probe`` from the command line: what it writes, how it resumes, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import archbench as package
from archbench.files.seal import unsealed
from archbench.study.probe import verdict_of
from command_line import archbench
from installations import RunCLI, kill_when_said, write_package

EXAMPLE = (Path(__file__).parent / "example_plugins" / "bigram.py").read_text()
SMALL = ("--parameters", "0", "--updates", "12", "--examples", "70", "--seeds", "1", "--jobs", "1")
PARITY = ("--task", "state-parity", "--learning-rate", "0.01")

OWN_TASK = """
import numpy as np
from archbench import Examples, Task, hookimpl

def draw(random, count):
    inputs = random.integers(8, size=(count, 12))
    return Examples(inputs, inputs.copy())

@hookimpl
def tasks():
    return [Task(name="echo", summary="Say it again", source="none", vocab_size=8, context_length=12, train=draw,
                 tests={"at once": draw}, chance={"at once": 1 / 8}, updates=400, learning_rates=(0.03,))]
"""

BUILD, STEP = "    return Bigram(config)", "    return next_token_step(state, batch)"
CLASS = "\n\nclass Mine(Bigram):\n    def forward(self, tokens):\n"
FAULTY: dict[str, tuple[tuple[str, str], str]] = {
    "broken": ((BUILD, "    raise RuntimeError('out of order')\n" + BUILD), ""),
    "nan": (
        (BUILD, BUILD + ".apply(filled)"),
        "\n\ndef filled(module):\n    if hasattr(module, 'weight'):\n"
        "        nn.init.constant_(module.weight, float('nan'))\n",
    ),
    "short": (
        (BUILD, "    return Mine(config)"),
        CLASS + "        if tokens.shape[0] > 64:\n            raise RuntimeError('too many at a time')\n"
        "        return super().forward(tokens)\n",
    ),
    "tired": ((STEP, "    assert state.step < 9, 'tired'\n" + STEP), ""),
    "seer": ((BUILD, "    return Mine(config)"), CLASS + "        return super().forward(tokens.flip(-1))\n"),
}
"""Architectures that go wrong: a text of the example that is replaced, by what, and what is added."""


def write_plugins(folder: Path) -> tuple[str, ...]:
    """bigram, and each faulty one; the options that load them."""
    (folder / "plugins").mkdir()
    (folder / "plugins" / "bigram.py").write_text(EXAMPLE)
    for name, ((text, instead), added) in FAULTY.items():
        assert text in EXAMPLE
        source = EXAMPLE.replace('"bigram"', f'"{name}"').replace(text, instead) + added
        (folder / "plugins" / f"{name}.py").write_text(source)
    return ("--plugin", str(folder / "plugins"))


def outcome_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = unsealed(json.loads((folder / "probe.json").read_text()))
    return found


@dataclass(frozen=True)
class Probed:
    """A finished probe."""

    command: tuple[str, ...]
    done: subprocess.CompletedProcess[str]
    out: Path

    @property
    def outcome(self) -> dict[str, Any]:
        return outcome_of(self.out)

    def again(self, *more: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [part for part in self.command if part not in without]
        return archbench(*command, *more, cwd=self.out.parent)


def probed(folder: Path, *command: str) -> Probed:
    whole = ("probe", *command, "--out", str(folder / "out"))
    done = archbench(*whole, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Probed(whole, done, folder / "out")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Probed:
    """A task that needs no memory and one that does, learned by a table of next tokens."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "bigram.py").write_text(EXAMPLE)
    (folder / "echo.py").write_text(OWN_TASK)
    return probed(
        folder, "bigram", "--plugin", "bigram.py", "--plugin", "echo.py", "--task", "echo", "--task", "state-parity",
        "--parameters", "0", "--updates", "200", "--examples", "200", "--seeds", "2", "--learning-rate", "0.03",
    )  # fmt: skip


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Probed:
    """One architecture that is right beside all that go wrong, unchecked."""
    folder = tmp_path_factory.mktemp("faulty")
    plugins = write_plugins(folder)
    return probed(folder, "bigram", *FAULTY, *plugins, *PARITY, *SMALL, "--unchecked")


def test_a_table_of_next_tokens_learns_what_needs_no_memory_and_nothing_else(learned: Probed) -> None:
    scores = {(score["task"], score["condition"]): score for score in learned.outcome["scores"]}
    assert scores["echo", "at once"]["verdict"] == "solved"
    assert scores["echo", "at once"]["updates"] < 200, "it ends when all validation examples are answered"
    for length in (32, 64, 128):
        score = scores["state-parity", f"length {length}"]
        assert score["verdict"] == "not learned under this budget"
        assert abs(score["mean"] - 0.5) < 0.1
    assert "1.000 =" in learned.done.stdout


def test_its_rows_are_its_scores(learned: Probed) -> None:
    rows = package.read_results(learned.out / "runs.parquet")
    assert set(rows.phase) == {"probe"}
    assert set(rows.role) == {"confirm"}
    accuracy = rows[(rows.metric == "accuracy") & (rows.corpus == "echo")]
    (score,) = (score for score in learned.outcome["scores"] if score["task"] == "echo")
    assert list(accuracy.value) == score["values"]
    assert set(accuracy.operation) == {"at once"}
    assert set(accuracy.seed) == {0, 1}
    assert rows[rows.metric == "chance"].value.isin([0.5, 1 / 8]).all()


def test_the_same_command_measures_nothing_again_and_the_report_shows_its_scores(
    learned: Probed, tmp_path: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in (learned.out / "cells").iterdir()}
    scores = learned.outcome["scores"]
    again = learned.again("--json")
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in (learned.out / "cells").iterdir()} == before
    assert json.loads(again.stdout)["scores"] == scores

    page = tmp_path / "page.html"
    shown = archbench("report", learned.out, "-o", page, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "state-parity, length 128" in page.read_text()


def test_each_fault_has_its_stated_outcome_and_costs_no_other(faulty: Probed) -> None:
    outcome = faulty.outcome
    trials = {trial["architecture"]: trial for trial in outcome["trials"]}
    assert {name: trial["outcome"] for name, trial in trials.items()} == {
        "bigram": "ok", "nan": "diverged", "short": "failed", "tired": "failed", "seer": "ok",
    }  # fmt: skip
    assert "update 0" in trials["nan"]["cause"]
    assert "too many at a time" in trials["short"]["cause"]
    assert "tired" in trials["tired"]["cause"]
    assert "broken" in faulty.done.stderr
    assert "out of order" in faulty.done.stderr
    scores = {score["architecture"]: score for score in outcome["scores"]}
    assert scores["nan"]["mean"] == 0.0, "a seed that diverged answers nothing"
    assert scores["short"]["verdict"] == scores["tired"]["verdict"] == "not measured"
    assert scores["bigram"]["mean"] > 0.3
    assert "broken" not in scores
    assert "diverged" in faulty.done.stdout


def test_one_that_sees_the_future_is_probed_only_if_told_to(tmp_path: Path) -> None:
    plugins = write_plugins(tmp_path)
    done = archbench("probe", "seer", "broken", *plugins, *PARITY, *SMALL, cwd=tmp_path)
    assert done.returncode == 2
    assert "seer" in done.stderr
    assert "conformance check" in done.stderr
    assert "archbench probe" in done.stderr.splitlines()[-1], "nothing is left to probe"
    assert not list(tmp_path.rglob("probe.json"))


def test_a_folder_of_another_plan_is_left_alone(faulty: Probed) -> None:
    before = (faulty.out / "probe.json").read_bytes()
    other = faulty.again("--learning-rate", "0.02")
    assert other.returncode == 2
    assert str(faulty.out) in other.stderr
    assert (faulty.out / "probe.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ((), "archbench probe"),
        (("gtp1",), "'gpt1'"),
        (("gpt1", "--task", "recal"), "'recall'"),
        (("gpt1", "gpt1"), "'gpt1'"),
        (("gpt1", "--parameters", "10"), "parameters"),
        (("gpt1", "--learning-rate", "-1"), "--learning-rate -1"),
        (("gpt1", "--set", "n_layers=3"), "n_layer"),
        (("gpt1", "--preset", "huge"), "preset"),
    ],
)
def test_bad_input_names_the_culprit(cli: RunCLI, arguments: tuple[str, ...], culprit: str, tmp_path: Path) -> None:
    done = cli("probe", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert culprit in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tasks_are_listed_with_those_of_files_and_of_installed_packages(cli: RunCLI, tmp_path: Path) -> None:
    echo, copy, unmarked = (tmp_path / f"{name}.py" for name in ("echo", "copy", "unmarked"))
    for file in (echo, copy):
        file.write_text(OWN_TASK)
    unmarked.write_text(OWN_TASK.replace("@hookimpl", ""))
    site = tmp_path / "site"
    for package_name, name, source in (
        ("more-tasks", "more", OWN_TASK.replace('"echo"', '"echo-2"')),
        ("bad-tasks", "bad", "raise RuntimeError('no')"),
    ):
        write_package(site, package_name, name, source)
        entry_points = site / f"{package_name.replace('-', '_')}-1.0.dist-info" / "entry_points.txt"
        entry_points.write_text(entry_points.read_text().replace("[archbench]", "[archbench.tasks]"))
    twice = {"PYTHONPATH": str(site), "ARCHBENCH_PLUGINS": str(echo)}
    done = cli("probe", "--list", "--plugin", echo, "--json", env=twice, fresh=True)
    assert done.returncode == 0, done.stderr
    names = {json.loads(line)["name"] for line in done.stdout.splitlines()}
    assert {"echo", "echo-2", "recall", "copying", "memorisation"} <= names
    assert "bad" in done.stderr, "it is left out, and the user is warned"
    assert "echo" not in cli("list", "--plugin", echo).stdout, "tasks are no architecture"
    claimed = cli("probe", "--list", "--plugin", echo, "--plugin", copy)
    assert claimed.returncode == 3
    assert "'echo'" in claimed.stderr
    silent = cli("probe", "--list", "--plugin", unmarked)
    assert silent.returncode == 3
    assert "unmarked.py" in silent.stderr


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_a_killed_probe_leaves_no_process_and_is_resumed(cli: RunCLI, tmp_path: Path) -> None:
    (tmp_path / "bigram.py").write_text(EXAMPLE)
    out = tmp_path / "out"
    command = (
        "probe", "bigram", "--plugin", tmp_path / "bigram.py", *PARITY, *SMALL, "--seeds", "2", "--unchecked",
        "--out", out,
    )  # fmt: skip
    kill_when_said("[1/", *command, cwd=tmp_path)
    assert not (out / "probe.json").exists()
    known = {file.name: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    again = cli(*command)
    assert again.returncode == 0, again.stderr
    assert known.items() <= {file.name: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}.items()
    assert len(outcome_of(out)["trials"]) == 2


@pytest.mark.parametrize(
    ("values", "chance", "verdict"),
    [
        ((1.0, 0.995, 0.99), 0.25, "solved"),
        ((1.0, 1.0, 0.98), 0.25, "partly learned"),
        ((0.34, 0.34, 0.34), 0.25, "partly learned"),
        ((0.3, 0.31, 0.29), 0.25, "not learned under this budget"),
        ((0.0, 0.0, 0.0), 0.25, "not learned under this budget"),
        ((), 0.25, "not measured"),
    ],
)
def test_the_verdict_never_says_that_something_cannot_be_learned(
    values: tuple[float, ...], chance: float, verdict: str
) -> None:
    assert verdict_of(values, chance) == verdict
