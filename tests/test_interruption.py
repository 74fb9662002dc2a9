"""Signals that interrupt a command: exit code, row, checkpoint, how to continue; and that a second one ends it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from archbench import read_results
from archbench.runs.folder import open_run
from command_line import archbench
from forked_children import ForkedCommand
from small_runs import UNCHECKED, with_small_corpus
from test_kills import handles

LONGEST = 5.0
"""Seconds that the issue allows."""


def wait_for(seen: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONG = ["--phases", "train", "--steps", "100000", "--config", "training.checkpoint_every=40000"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_training_writes_a_checkpoint_and_a_row_and_says_how_to_continue(tmp_path: Path, name: str) -> None:
    folder = with_small_corpus(tmp_path)
    loud = [option for option in UNCHECKED if option != "--quiet"]
    run = ForkedCommand("run", "gpt1", *loud, *LONG, cwd=folder)
    wait_for(lambda: "validation loss" in run.said())
    began = time.monotonic()
    run.process.send_signal(signal.Signals[name])
    done = run.finished()
    assert time.monotonic() - began < LONGEST
    assert done.returncode == 128 + signal.Signals[name]
    assert "Traceback" not in done.stderr
    (row,) = read_results(folder / "results").to_dict("records")
    assert (row["metric"], row["phase"], row["status"]) == ("interrupted", "train", f"Interrupted: by {name}")
    run_folder = open_run(folder / "results", "last")
    assert f"archbench run gpt1 --resume {run_folder.run_id}" in done.stderr
    (checkpoint,) = run_folder.checkpoints.glob("step-*")
    assert checkpoint.name not in ("step-00040000", "step-00000000")


def test_a_terminal_that_closes_takes_neither_the_checkpoint_nor_the_row(tmp_path: Path) -> None:
    folder = with_small_corpus(tmp_path)
    ours, theirs = os.openpty()
    loud = [option for option in UNCHECKED if option != "--quiet"]
    run = ForkedCommand("run", "gpt1", *loud, *LONG, cwd=folder, stderr=theirs)
    os.close(theirs)
    said = b""
    while b"validation loss" not in said:
        said += os.read(ours, 1000)
    os.close(ours)
    for _ in range(2):  # the kernel and the shell send one each
        run.process.send_signal(signal.SIGHUP)
    assert run.finished().returncode == 129
    assert set(read_results(folder / "results").metric) == {"interrupted"}
    assert list(open_run(folder / "results", "last").checkpoints.glob("step-*"))


def test_a_run_that_is_still_running_has_an_owner(tmp_path: Path) -> None:
    folder = with_small_corpus(tmp_path)
    run = ForkedCommand("run", "gpt1", *UNCHECKED, *LONG, cwd=folder)
    wait_for(lambda: list(folder.glob("results/*/.lock-owner")))
    refused = archbench("run", "gpt1", "--resume", "last", cwd=folder)
    assert refused.returncode == 2
    assert f"process {run.process.pid} on " in refused.stderr
    run.process.kill()
    run.finished()
    with open_run(folder / "results", "last").owned():  # death releases it
        pass


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    program = f"""
import signal, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from archbench.interruption import continued, exit_code, interruptible, underway
with interruptible(), underway(), continued("archbench compare"), continued("archbench run"):
    try:
        print("ready", flush=True)
        time.sleep(100)
    except KeyboardInterrupt as interruption:
        print("tidying", flush=True)
        time.sleep(float(sys.argv[1]))
        sys.exit(exit_code(interruption))
"""
    for signals, slow, code in (((15, 15), 100, 143), ((1, 1), 0.5, 129), ((2, 15), 100, 143)):
        child = subprocess.Popen([sys.executable, "-c", program, str(slow)], stdout=-1, stderr=-1, text=True)
        assert child.stdout is not None
        for number, said in zip(signals, ("ready", "tidying"), strict=False):
            assert child.stdout.readline() == said + "\n"
            child.send_signal(number)
        began = time.monotonic()
        lines = child.communicate(timeout=60)[1].splitlines()
        assert lines[:-1] == ["archbench compare"] * (slow == 100), "how to continue the whole, not its part"
        assert child.returncode == code, "of two SIGHUP that a closing terminal sends one counts"
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "ready\nwhole\ninterrupted\n"), (100, "ready\n")])
def test_an_import_is_made_whole_first_unless_it_takes_too_long(tmp_path: Path, seconds: float, said: str) -> None:
    """Modules in C++ abort when an exception comes through them."""
    (tmp_path / "slow.py").write_text(
        f"import time\nprint('ready', flush=True)\ntime.sleep({seconds})\nprint('whole')\n"
    )
    program = f"""
import sys, time
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(tmp_path)!r}]
from archbench import interruption
from archbench.interruption import exit_code, interruptible, underway
assert interruption.LONGEST < {LONGEST}
interruption.LONGEST = 1.0
with interruptible(), underway():
    try:
        import slow
        time.sleep(60)
    except KeyboardInterrupt as interruption:
        print("interrupted")
        sys.exit(exit_code(interruption))
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True)
    assert child.stdout is not None
    first, began = child.stdout.readline(), time.monotonic()
    child.send_signal(signal.SIGTERM)
    rest, _ = child.communicate(timeout=60)
    assert first + rest == said
    assert child.returncode == 143
    assert time.monotonic() - began < LONGEST


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("archbench"), "where"]
    child = subprocess.Popen(
        command, stdout=-1, stderr=-1, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    for _ in range(20):
        child.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    child.communicate(timeout=60)
    assert child.returncode == 0


@pytest.mark.parametrize("module", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_interrupt_during_start_up_is_one_line(tmp_path: Path, module: bool) -> None:
    """From archbench's first line on; before it is Python's own start (a few hundredths of a second)."""
    script = [Path(sys.executable).with_name("archbench")]
    command = [sys.executable, "-P", "-m", "archbench"] if module else script
    moments = random.Random(21)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        child = subprocess.Popen(
            [*command, "run", "gpt1", "--out", tmp_path / "results"], stdout=-1, stderr=-1, text=True, cwd=tmp_path
        )
        wait_for(lambda pid=child.pid: handles(pid, signal.SIGTERM))
        time.sleep(moments.uniform(0.0, 1.5))
        began = time.monotonic()
        child.send_signal(signal.Signals[name])
        stdout, stderr = child.communicate(timeout=60)
        assert time.monotonic() - began < LONGEST
        assert child.returncode == 128 + signal.Signals[name]
        assert stdout == ""
        assert stderr.splitlines()[-1].startswith("Interrupted")
        assert "Traceback" not in stderr


def test_a_signal_after_the_end_changes_neither_exit_code_nor_what_is_printed(tmp_path: Path) -> None:
    """A module's exit handler may take a while, as torch's does."""
    program = f"""
import atexit, sys, time
sys.path[:0] = [{str(Path(__file__).parents[1])!r}]
sys.argv = ["archbench", "show", "nosuch"]
def slow():
    print("leaving", flush=True)
    time.sleep(60)
from archbench.__main__ import main
from archbench import cli
command, cli.main = cli.main, lambda: (atexit.register(slow), command())[1]
sys.exit(main())
"""
    child = subprocess.Popen([sys.executable, "-P", "-c", program], stdout=-1, stderr=-1, text=True, cwd=tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == "leaving\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60)[1].count("\n") == 1
    assert child.returncode == 2
