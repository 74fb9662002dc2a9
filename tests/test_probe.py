"""``archbench probe`` from the command line: what it leaves, how it goes on, and what goes wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import archbench
from archbench.probing.outcome import verdict_of
from installations import RunCLI, kill_when_said, write_package

SMALL = ("--parameters", "0", "--updates", "12", "--examples", "40", "--seeds", "1", "--unchecked", "--jobs", "1")

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


@pytest.fixture
def bigram(tmp_path: Path, minimal_plugin: str) -> Path:
    file = tmp_path / "bigram.py"
    file.write_text(minimal_plugin)
    return file


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    file = tmp_path / "echo.py"
    file.write_text(OWN_TASK)
    return file


def outcome_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "probe.json").read_text())
    return found


def test_a_table_of_next_tokens_learns_what_needs_no_memory_and_nothing_that_does(
    cli: RunCLI, bigram: Path, echo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = (
        "probe", "bigram", "--plugin", bigram, "--plugin", echo, "--task", "echo", "--task", "state-parity",
        "--parameters", "0", "--updates", "400", "--examples", "500", "--seeds", "2", "--learning-rate", "0.03",
        "--out", out,
    )  # fmt: skip
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    scores = {(score["task"], score["condition"]): score for score in outcome_of(out)["scores"]}
    assert scores["echo", "at once"]["verdict"] == "solved"
    assert scores["echo", "at once"]["updates"] < 400  # all validation examples were answered before
    for length in (32, 64, 128):
        score = scores["state-parity", f"length {length}"]
        assert score["verdict"] == "not learned under this budget"
        assert abs(score["mean"] - 0.5) < 0.1
    assert "1.000 =" in done.stdout
    assert "not: cannot be learned" in done.stdout
    assert "About" in done.stderr.splitlines()[0]

    rows = archbench.read_results(out / "runs.parquet")
    assert set(rows.phase) == {"probe"}
    accuracy = rows[(rows.metric == "accuracy") & (rows.corpus == "echo")]
    assert list(accuracy.value) == scores["echo", "at once"]["values"]
    assert set(accuracy.operation) == {"at once"}
    assert set(accuracy.seed) == {0, 1}
    assert rows[rows.metric == "chance"].value.isin([0.5, 1 / 8]).all()

    before = {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    again = cli(*command)
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()} == before
    assert outcome_of(out)["scores"] == list(scores.values())
    more = cli(*[part if part != "2" else "3" for part in command])
    assert more.returncode == 0, more.stderr
    assert "4 of them known" in more.stderr

    page = tmp_path / "page.html"
    shown = cli("report", out, "-o", page, "--md", tmp_path / "page.md")
    assert shown.returncode == 0, shown.stderr
    text = page.read_text()
    assert "Scores of probes" in text
    assert "state-parity, length 128" in text


def test_an_architecture_that_breaks_takes_no_part_and_the_others_do(
    cli: RunCLI, bigram: Path, minimal_plugin: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.py"
    build = "    return Bigram(config)"
    broken.write_text(
        minimal_plugin.replace('"bigram"', '"broken"').replace(
            build, "    raise RuntimeError('out of order')\n" + build
        )
    )
    out = tmp_path / "out"
    done = cli(
        "probe", "broken", "bigram", "--plugin", bigram, "--plugin", broken, "--task", "state-parity", *SMALL,
        "--learning-rate", "0.01", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "broken takes no part" in done.stderr
    assert "out of order" in done.stderr
    outcome = outcome_of(out)
    assert {score["architecture"] for score in outcome["scores"]} == {"bigram"}
    alone = cli("probe", "broken", "--plugin", broken, "--task", "state-parity", *SMALL, "--out", tmp_path / "o")
    assert alone.returncode == 2
    assert "nothing is left to probe" in alone.stderr


def test_an_architecture_that_looks_ahead_is_not_probed_unless_told_to(
    cli: RunCLI, minimal_plugin: str, tmp_path: Path
) -> None:
    seer = tmp_path / "seer.py"
    looks = (
        minimal_plugin.replace('"bigram"', '"seer"').replace("    return Bigram(config)", "    return Seer(config)")
        + "\n\nclass Seer(Bigram):\n    def forward(self, tokens):\n        return super().forward(tokens.flip(-1))\n"
    )
    seer.write_text(looks)
    command = ("probe", "seer", "--plugin", seer, "--task", "state-parity", "--out", tmp_path / "out")
    done = cli(*command, *(option for option in SMALL if option != "--unchecked"))
    assert done.returncode == 2
    assert "conformance check" in done.stderr
    assert cli(*command[:-1], tmp_path / "other", *SMALL).returncode == 0


def test_a_training_that_diverges_is_stated_and_answers_nothing(cli: RunCLI, bigram: Path, tmp_path: Path) -> None:
    bigram.write_text(
        bigram.read_text().replace("    return Bigram(config)", "    return Bigram(config).apply(filled)")
        + "\n\ndef filled(module):\n    if hasattr(module, 'weight'):\n"
        + "        nn.init.constant_(module.weight, float('nan'))\n"
    )
    out = tmp_path / "out"
    done = cli("probe", "bigram", "--plugin", bigram, "--task", "state-parity", *SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    outcome = outcome_of(out)
    assert {trial["outcome"] for trial in outcome["trials"]} == {"diverged"}
    assert "no longer finite at update 0" in outcome["trials"][0]["cause"]
    assert {score["mean"] for score in outcome["scores"]} == {0.0}
    assert "diverged or failed" in done.stdout


def test_a_model_that_raises_where_it_is_scored_costs_only_its_own_trainings(
    cli: RunCLI, bigram: Path, minimal_plugin: str, tmp_path: Path
) -> None:
    short = tmp_path / "short.py"
    short.write_text(
        minimal_plugin.replace('"bigram"', '"short"').replace("    return Bigram(config)", "    return Short(config)")
        + "\n\nclass Short(Bigram):\n    def forward(self, tokens):\n        if tokens.shape[0] > 64:\n"
        + "            raise RuntimeError('too many at a time')\n        return super().forward(tokens)\n"
    )
    out = tmp_path / "out"
    done = cli(
        "probe", "short", "bigram", "--plugin", bigram, "--plugin", short, "--task", "state-parity", *SMALL,
        "--examples", "70", "--learning-rate", "0.01", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = outcome_of(out)
    causes = {trial["architecture"]: trial["cause"] for trial in outcome["trials"]}
    assert "too many at a time" in causes["short"]
    assert causes["bigram"] is None
    verdicts = {score["architecture"]: score["verdict"] for score in outcome["scores"]}
    assert verdicts["short"] == "not measured"


def test_trainings_that_all_fail_are_not_measured_and_say_why(cli: RunCLI, bigram: Path, tmp_path: Path) -> None:
    bigram.write_text(
        bigram.read_text().replace(
            "    return next_token_step(state, batch)",
            "    assert state.step < 9, 'tired'\n    return next_token_step(state, batch)",
        )
    )
    out = tmp_path / "out"
    done = cli("probe", "bigram", "--plugin", bigram, "--task", "state-parity", *SMALL, "--json", "--out", out)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert {score["verdict"] for score in outcome["scores"]} == {"not measured"}
    assert all("tired" in trial["cause"] for trial in outcome["trials"])
    assert "failed: " in done.stderr
    shown = cli("probe", "bigram", "--plugin", bigram, "--task", "state-parity", *SMALL, "--out", out)
    assert shown.returncode == 0, shown.stderr
    assert "failed" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no architecture is named"),
        (("gtp1",), "Did you mean 'gpt1'"),
        (("gpt1", "--task", "recal"), "Did you mean 'recall'"),
        (("gpt1", "gpt1"), "named twice"),
        (("gpt1", "--parameters", "10"), "parameters"),
        (("gpt1", "--learning-rate", "-1"), "--learning-rate -1"),
        (("gpt1", "--set", "n_layers=3"), "n_layer"),
        (("gpt1", "--preset", "huge"), "preset"),
    ],
)
def test_bad_input_names_the_culprit_and_the_next_step(
    cli: RunCLI, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = cli("probe", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_another_plan_is_left_alone(cli: RunCLI, bigram: Path, tmp_path: Path) -> None:
    command = ("probe", "bigram", "--plugin", bigram, "--task", "state-parity", *SMALL, "--out", tmp_path / "out")
    assert cli(*command, "--learning-rate", "0.01").returncode == 0
    before = (tmp_path / "out" / "probe.json").read_bytes()
    other = cli(*command, "--learning-rate", "0.02")
    assert other.returncode == 2
    assert "another plan" in other.stderr
    assert (tmp_path / "out" / "probe.json").read_bytes() == before


def test_the_tasks_are_listed_with_those_of_a_file_and_of_an_installed_package(
    cli: RunCLI, echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    write_package(site, "more-tasks", "more", OWN_TASK.replace('"echo"', '"echo-2"'))
    entry_points = site / "more_tasks-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text(entry_points.read_text().replace("[archbench]", "[archbench.tasks]"))
    write_package(site, "bad-tasks", "bad", "raise RuntimeError('no')")
    entry_points = site / "bad_tasks-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text(entry_points.read_text().replace("[archbench]", "[archbench.tasks]"))
    done = cli("probe", "--list", "--plugin", echo, "--json", env={"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    names = {json.loads(line)["name"] for line in done.stdout.splitlines()}
    assert {"echo", "echo-2", "recall", "copying", "memorisation"} <= names
    assert "bad" in done.stderr  # left out, and said so
    assert "echo" not in cli("list", "--plugin", echo).stdout  # tasks are no architecture
    copy = tmp_path / "copy.py"
    copy.write_text(OWN_TASK)
    claimed = cli("probe", "--list", "--plugin", echo, "--plugin", copy)
    assert claimed.returncode == 3
    assert "2 plugins claim that name" in claimed.stderr
    unmarked = tmp_path / "unmarked.py"
    unmarked.write_text(OWN_TASK.replace("@hookimpl", ""))
    silent = cli("probe", "--list", "--plugin", unmarked)
    assert silent.returncode == 3
    assert "not marked as a hook" in silent.stderr
    twice = cli("probe", "--list", "--plugin", echo, env={"PYTHONPATH": str(site), "ARCHBENCH_PLUGINS": str(echo)})
    assert twice.returncode == 0, twice.stderr


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_a_killed_probe_leaves_no_process_and_goes_on_where_it_was(cli: RunCLI, bigram: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("probe", "bigram", "--plugin", bigram, "--task", "state-parity", "--task", "memorisation", *SMALL)
    kill_when_said("[1/", *command, "--out", out)
    assert not (out / "probe.json").exists()
    again = cli(*command, "--out", out)
    assert again.returncode == 0, again.stderr
    assert "of them known" in again.stderr
    assert len(outcome_of(out)["trials"]) == 6


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
