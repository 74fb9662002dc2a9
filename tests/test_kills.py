"""The kill harness: whatever is killed, at whatever moment, nothing is left running, lost, doubled or torn.

A trial is made by its number: the command, the signal, whom it hits and when. The command runs in a folder of its own,
in which its processes are found, whatever session they are in. Five seconds after the signal nothing of it may live,
and every file that can be seen must be whole. Then the run is resumed, or the same command run again: what it measured
of quality must be that of an unbroken one, bit for bit.

``ARCHBENCH_KILLS=200 pytest -n 2 -m slow tests/test_kills.py`` makes 200 trials. Every second one of ``run`` and
``probe`` is in processes that import torch themselves. With ``ARCHBENCH_KILLS_LOG=FILE`` each trial is a line of a
file, of which ``python tests/test_kills.py FILE`` prints the table.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from archbench import read_results
from archbench.files.writing import writer
from archbench.results.reading import run_failed
from command_line import archbench
from forked_children import ForkedCommand
from small_runs import with_small_corpus

if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # tests under nohup: what they start does not ignore it

TRIALS = int(os.environ.get("ARCHBENCH_KILLS", "200"))
LOG = os.environ.get("ARCHBENCH_KILLS_LOG")
SECONDS_TO_END = 5.0

LEFT = Path(__file__).parent / "golden" / "left.py"
STRAY = """
    if state.step == 0:  # what a plugin starts, in a session of its own
        subprocess.Popen(["sleep", "900"], start_new_session=True)
    time.sleep(0.005)
"""
PLUGINS = ("--plugin", "plugins", "--out", "out", "--quiet")
SHORT = (
    "--profile", "smoke", "--threads", "1", "--corpus", "small.txt", "--config", "checked=false",
    "--config", "speed.repeats=1", "--config", "speed.new_tokens=3",
)  # fmt: skip
STUDY = (*PLUGINS, "--device", "cpu", "--jobs", "2")
COMMANDS = {
    "run": (
        "run", "kill-a", *PLUGINS, *SHORT, "--steps", "10", "--phases", "train,quality,prefill,decode",
        "--config", "training.checkpoint_every=2", "--config", "training.validate_every=3",
    ),
    "compare": (
        "compare", "kill-a", "kill-b", *STUDY, *SHORT, "--seeds", "2", "--no-tuning", "--sweeps", "1",
        "--contexts", "1", "--tokens", "4096",
    ),
    "probe": (
        "probe", "kill-a", *STUDY, "--unchecked", "--task", "state-parity", "--learning-rate", "0.01",
        "--parameters", "0", "--updates", "12", "--examples", "40", "--seeds", "2",
    ),
    "scale": ("scale", "kill-a", *STUDY, *SHORT, "--sizes", "10k,20k", "--budgets", "2k,4k", "--no-tuning"),
}  # fmt: skip
TARGETS = ("parent", "worker", "group")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

QUALITY = {
    "train": ("loss", "grad_norm", "learning_rate", "validation_loss", "validation_bits_per_byte", "steps"),
    "quality": ("loss", "perplexity", "bits_per_byte", "tokens_scored", "bytes_scored"),
    "probe": ("accuracy", "updates", "learning_rate"),
}
"""Phase -> its metrics that do not depend on time."""

KEYS = ["architecture", "seed", "role", "phase", "metric", "repeat", "operation", "context_length", "batch_size"]


@dataclass
class Trial:
    """What a number stands for, and what came of it."""

    number: int
    command: str
    target: str
    signal: str
    moment: float
    own: bool
    hit: bool = False
    orphans: int = 0
    lost: int = 0
    doubled: int = 0
    identical: bool = False
    seconds: float = 0.0


def trial(number: int, *, own: bool) -> Trial:
    """``own``: in processes that import torch themselves, instead of forks of one that has."""
    chance = random.Random(number)
    command = list(COMMANDS)[number % len(COMMANDS)]
    target, what = chance.choice(TARGETS), chance.choice(SIGNALS)
    return Trial(number, command, target, what.name, chance.random(), own)


def prepared(folder: Path) -> Path:
    """The folder with what the commands read."""
    with_small_corpus(folder)
    (folder / "plugins").mkdir()
    for letter in "ab":
        source = (
            LEFT.read_text()
            .replace("golden-left", f"kill-{letter}")
            .replace("n_layer: int = Field(2", "n_layer: int = Field(1")
        )
        hook = "def train_step(state, batch):\n"
        assert hook in source
        source = source.replace("import torch\n", "import subprocess\nimport time\n\nimport torch\n", 1)
        (folder / "plugins" / f"kill_{letter}.py").write_text(source.replace(hook, hook + STRAY))
    return folder


@dataclass
class Unbroken:
    """What an unbroken command measured, and the seconds that it took."""

    rows: pd.DataFrame
    documents: list[str]
    seconds: float


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Unbroken]:
    return {}


def unbroken_run(known: dict[tuple[str, bool], Unbroken], trial: Trial, factory: pytest.TempPathFactory) -> Unbroken:
    key = trial.command, trial.own
    if key not in known:
        folder = prepared(factory.mktemp(trial.command))
        began = time.monotonic()
        process = Started(trial, folder)
        code, said = process.end()
        seconds = time.monotonic() - began
        assert code == 0, said
        known[key] = Unbroken(measured(folder), documents(folder), seconds)
    return known[key]


class Started:
    """A command that has been started."""

    def __init__(self, trial: Trial, folder: Path) -> None:
        arguments = COMMANDS[trial.command]
        self.folder, self._forked = folder, None
        if trial.own:
            script = Path(sys.executable).with_name("archbench")
            self._process: Any = subprocess.Popen(
                [script, *arguments], cwd=folder, stdin=-3, stdout=-1, stderr=-1, text=True, process_group=0
            )
        else:
            self._forked = ForkedCommand(*arguments, cwd=folder)
            self._process = self._forked.process
        self.pid = self._process.pid

    def end(self) -> tuple[int, str]:
        if self._forked is not None:
            done = self._forked.finished()
            return done.returncode, done.stderr
        said = self._process.communicate()[1]
        return self._process.returncode, said


def tree(folder: Path) -> list[int]:
    """The processes that live in a folder: a command's, and all that came of it."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(place / "cwd")).is_relative_to(folder) and state(int(place.name)) != "Z":
                found.append(int(place.name))
        except OSError:
            continue  # it has ended, or is a zombie
    return found


def handles(process: int, number: int) -> bool:
    """Whether the process has a handler for that signal (proc_pid_status(5))."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (caught,) = [line.split()[1] for line in lines if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (number - 1) & 1)


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def signalled(trial: Trial, started: Started) -> bool:
    """Send the signal; whether there was anybody to send it to."""
    number = signal.Signals[trial.signal]
    everybody = tree(started.folder)
    begun = started.pid in everybody and handles(started.pid, signal.SIGTERM)  # else it is still Python that begins
    workers = [process for process in everybody if process != started.pid]
    chosen = {"parent": [started.pid], "worker": workers, "group": everybody}[trial.target]
    if trial.target == "worker" and workers:
        chosen = [random.Random(trial.number).choice(workers)]
    hit = False
    for process in chosen:
        try:
            os.kill(process, number)
            hit = True
        except ProcessLookupError:
            continue
    return hit and begun


def documents(folder: Path) -> list[str]:
    """The scores of each document, of all runs."""
    return sorted(pd.read_parquet(file).to_json() for file in (folder / "out").rglob("documents.parquet"))


def measured(folder: Path) -> pd.DataFrame:
    """All rows, as keys and values; the first step of a process is a step like others."""
    rows = read_results(folder / "out", trials=True)
    rows["metric"] = rows.metric.replace("first_step_seconds", "step_seconds")
    # How often a speed is warmed up depends on time; steps are audited anew in each process, if it makes enough.
    return rows[(rows.metric != "warmup_seconds") & ~((rows.phase == "train") & rows.metric.str.startswith("audit_"))]


def keys(rows: pd.DataFrame) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(rows[name].astype(str) for name in KEYS), strict=True))


def quality(rows: pd.DataFrame) -> Counter[tuple[Any, ...]]:
    """Key and value of all that does not depend on time."""
    kept = pd.concat([rows[(rows.phase == phase) & rows.metric.isin(names)] for phase, names in QUALITY.items()])
    return Counter(zip(*(kept[name].astype(str) for name in KEYS), kept.value, strict=True))


def whole(folder: Path) -> None:
    """Every file that can be seen is whole; hidden ones tell who was writing them."""
    for file in (folder / "out").rglob("*"):
        if file.is_dir() or any(part.startswith(".") for part in file.relative_to(folder).parts):
            known = file.is_dir() or file.name in (".lock", ".lock-owner") or writer(file) is not None
            assert known or any(part.startswith(".step-") for part in file.parts), f"{file} is nobody's"
        elif file.suffix == ".parquet":
            pd.read_parquet(file)
        elif file.suffix == ".json":
            json.loads(file.read_text())


def gone_on_with(trial: Trial, folder: Path) -> None:
    """Resume the run, or give the same command again, unless it had finished."""
    if trial.command == "run":
        finished = [file for file in (folder / "out").glob("*.parquet") if not run_failed(file)]
        if finished:
            return
        if list((folder / "out").glob("*/config.json")):
            done = archbench("run", "kill-a", "--resume", "last", "--out", "out", "--quiet", cwd=folder)
            assert done.returncode == 0, done.stderr
            return
    for record in (folder / "out" / "cells").glob("*.json"):  # of a cell whose worker was hit
        if json.loads(record.read_text())["outcome"] == "failed":
            assert trial.target == "worker"
            record.unlink()
    done = archbench(*COMMANDS[trial.command], cwd=folder)
    assert done.returncode == 0, done.stderr


def made(trial: Trial, known: Unbroken, folder: Path) -> None:
    """Make a trial and note what came of it."""
    began = time.monotonic()
    started = Started(trial, folder)
    time.sleep(trial.moment * 1.05 * known.seconds)
    trial.hit = signalled(trial, started)
    at = time.monotonic()
    if trial.target == "worker":
        code, said = started.end()  # it fails, or goes on without that cell
        at = time.monotonic()
    else:
        while (left := tree(folder)) and time.monotonic() - at < SECONDS_TO_END:
            time.sleep(0.05)
        trial.orphans = len(left)
        assert not left, [Path(f"/proc/{one}/cmdline").read_bytes() for one in left if Path(f"/proc/{one}").exists()]
        code, said = started.end()
        expected = -9 if trial.signal == "SIGKILL" else 128 + signal.Signals[trial.signal]
        assert not trial.hit or code in (expected, 0), (code, said)
    assert "Traceback" not in said or not trial.hit, said
    assert code != 70, said
    while (left := tree(folder)) and time.monotonic() - at < SECONDS_TO_END:
        time.sleep(0.05)
    trial.orphans = len(left)
    assert not left
    whole(folder)
    gone_on_with(trial, folder)
    rows = measured(folder)
    found, wanted = keys(rows), keys(known.rows)
    trial.doubled, trial.lost = (found - wanted).total(), (wanted - found).total()
    trial.identical = quality(rows) == quality(known.rows) and documents(folder) == known.documents
    trial.seconds = time.monotonic() - began
    assert (trial.lost, trial.doubled) == (0, 0), (list(wanted - found)[:5], list(found - wanted)[:5])
    assert set(rows.status) == {"ok"}
    assert trial.identical


def check(number: int, unbroken: Any, factory: pytest.TempPathFactory, folder: Path, *, own: bool) -> None:
    one = trial(number, own=own)
    known = unbroken_run(unbroken, one, factory)
    try:
        made(one, known, prepared(folder))
    finally:
        if LOG is not None:
            with Path(LOG).open("a") as log:
                log.write(json.dumps(asdict(one)) + "\n")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc, and only Linux has a guard")
class TestKills:
    @pytest.mark.parametrize(
        "number", [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
    )
    def test_a_few(self, number: int, unbroken: Any, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
        check(number, unbroken, tmp_path_factory, tmp_path, own=False)

    @pytest.mark.slow
    @pytest.mark.parametrize("number", range(TRIALS))
    def test_many(self, number: int, unbroken: Any, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
        check(number, unbroken, tmp_path_factory, tmp_path, own=number % 8 in (4, 6))


def table(lines: list[dict[str, Any]]) -> str:
    """Command × signal × target: trials, orphans, rows lost and doubled, bit-identical ones."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["command"], line["signal"], line["target"]].append(line)
        groups["all", "", ""].append(line)
    shown = [
        "| command | signal | target | trials | orphans | lost | doubled | bit-identical | seconds a trial |",
        "|" + "---|" * 9,
    ]
    for group in sorted(groups, key=lambda one: (one[0] == "all", one)):
        found = groups[group]
        sums = [sum(one[name] for one in found) for name in ("orphans", "lost", "doubled", "identical")]
        seconds = sum(one["seconds"] for one in found) / len(found)
        shown.append(f"| {' | '.join([*group, str(len(found)), *map(str, sums), f'{seconds:.1f}'])} |")
    return "\n".join(shown)


if __name__ == "__main__":
    print(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
