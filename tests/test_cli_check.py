"""``archbench check`` judges whatever it is given: what hangs or dies costs one check, and JSON stays JSON."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archbench.testing.evaluation import LEVEL
from forked_children import ForkedCommand
from installations import RunCLI
from test_import_cost import imported  # noqa: F401  a fixture

Hostile = Callable[..., Path]
Install = Callable[..., Path]

CHECKS = ("logits", "generate", "save_load")
ONLY = [word for name in CHECKS for word in ("--check", name)]


@pytest.fixture
def hostile(minimal_plugin: str, tmp_path: Path) -> Hostile:
    """A plugin called hostile: bigram, with lines at the beginning of its hooks, in its model and at its end."""

    def write(*, model: str = "", end: str = "", **hooks: str) -> Path:
        source = minimal_plugin.replace('"bigram"', '"hostile"') + end
        for hook, line in hooks.items():
            head, found, body = source.partition(f"def {hook}(")
            first, newline, rest = body.partition("\n")
            assert newline, f"there is no hook {hook}"
            source = f"{head}{found}{first}\n    {line}\n{rest}"
        source = source.replace("        self.config = config\n", f"        self.config = config\n{model}")
        path = tmp_path / "hostile.py"
        path.write_text("import ctypes, os, subprocess, sys, time\n" + source)
        return path

    return write


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def statuses(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {line["check"]: line["status"] for line in lines(done)[:-1]}


@pytest.mark.slow
def test_gpt1_conforms_in_under_a_minute_and_triton_is_left_alone(cli: RunCLI, imported: Path) -> None:  # noqa: F811
    start = time.monotonic()
    done = cli("check", "gpt1", "--json", fresh=True)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr + done.stdout
    *checks, last = lines(done)
    assert {line["status"] for line in checks} <= {"passed", "not applicable"}
    for line in checks:
        assert line["why"].endswith("."), line
        assert (line["architecture"], line["preset"], line["level"]) == ("gpt1", "nano", LEVEL)
    assert last["conforms"] is True
    assert (last["failed"], last["expected_failures"], last["not_run"]) == ([], [], [])
    assert sum(line["seconds"] for line in checks) <= last["seconds"] <= seconds < 60
    assert not imported.exists(), imported.read_text()


@pytest.mark.parametrize(
    ("line", "evidence"),
    [
        ("time.sleep(1000)", "2 s (HERE: time.sleep(1000)). If it is slow rather than stuck, --limit"),
        ("os._exit(3)", "exit code 3"),
        pytest.param("ctypes.string_at(0)", "SIGSEGV (HERE: ctypes.string_at(0))", marks=pytest.mark.slow),
        pytest.param("sys.exit('enough')", "SystemExit: enough (HERE: sys.exit('enough'))", marks=pytest.mark.slow),
    ],
    ids=["sleeps", "exits", "segfaults", "sys.exit"],
)
def test_a_check_that_does_not_come_back_has_failed_and_the_others_are_judged(
    line: str, evidence: str, cli: RunCLI, hostile: Hostile
) -> None:
    path = hostile(generate=line)
    done = cli("check", "hostile", "--plugin", path, "--limit", 2, *ONLY, env={"COLUMNS": "400"})
    assert done.returncode == 9
    number = path.read_text().splitlines().index(f"    {line}") + 1
    rows = {row.split()[0]: row for row in done.stdout.splitlines() if row.startswith(CHECKS)}
    assert "failed" in rows["generate"]
    assert evidence.replace("HERE", f"{path}:{number}") in rows["generate"]
    assert "passed" in rows["logits"]
    assert "passed" in rows["save_load"]
    assert "generate failed" in done.stdout.splitlines()[-1]
    again = f"archbench check hostile --plugin {path} --check generate --debug"
    assert again in done.stderr.splitlines()[-1]


def test_a_model_that_cannot_be_built_leaves_a_table_all_the_same(cli: RunCLI, hostile: Hostile) -> None:
    done = cli("check", "hostile", "--plugin", hostile(build="os._exit(3)"), "--json")
    assert done.returncode == 9
    found = statuses(done)
    assert found.pop("hooks") == "failed"
    assert set(found.values()) == {"not run"}
    assert lines(done)[-1]["failed"] == ["hooks"]


@pytest.mark.parametrize(
    ("edits", "cause"),
    [
        pytest.param({"end": "\nraise KeyError('why')\n"}, "KeyError: 'why'", marks=pytest.mark.slow),
        ({"end": "\ntime.sleep(1000)\n"}, "2 s"),
        pytest.param({"end": "\ndel generate\n"}, "generate", marks=pytest.mark.slow),
    ],
    ids=["raises", "sleeps", "lacks a hook"],
)
def test_a_plugin_that_cannot_be_loaded_fails_the_first_check(
    edits: dict[str, str], cause: str, cli: RunCLI, hostile: Hostile
) -> None:
    command = ["check", "hostile", "--plugin", hostile(**edits), "--limit", 2, "--quiet"]
    done = cli(*command, "--json")
    assert done.returncode == 9
    hooks, *others, last = lines(done)
    assert (hooks["check"], hooks["status"]) == ("hooks", "failed")
    assert cause in hooks["evidence"]
    assert {line["status"] for line in others} == {"not run"}
    assert last["conforms"] is False


def test_a_plugin_that_cannot_be_loaded_is_an_error_where_its_hooks_are_not_judged(
    cli: RunCLI, hostile: Hostile
) -> None:
    done = cli("check", "hostile", "--plugin", hostile(end="\nos._exit(4)\n"), "--check", "causality")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "exit code 4" in done.stderr


def test_what_a_plugin_prints_is_kept_out_of_the_json(cli: RunCLI, hostile: Hostile) -> None:
    shout = "print('{\"a\": 1}'); os.write(1, b'raw\\n'); subprocess.run(['echo', 'from a child'])"
    model = f"\n    def forward(self, tokens):\n        {shout}\n        return super().forward(tokens)\n"
    done = cli("check", "hostile", "--plugin", hostile(model=model, end=f"\n{shout}\n"), "--json", "--check", "logits")
    assert done.returncode == 0, done.stderr
    assert statuses(done) == {"logits": "passed"}
    assert lines(done)[-1]["conforms"] is None  # one check is no conformance
    for words in ('{"a": 1}', "raw", "from a child"):
        assert words in done.stderr.splitlines()


def test_a_copy_that_a_plugin_forks_off_reports_nothing(cli: RunCLI, hostile: Hostile) -> None:
    done = cli("check", "hostile", "--plugin", hostile(generate="os.fork()"), "--json", *ONLY)
    assert [line.get("check") for line in lines(done)] == [*CHECKS, None], done.stderr


def test_progress_is_plain_lines_where_there_is_no_terminal(cli: RunCLI, hostile: Hostile) -> None:
    path = hostile()
    done = cli("check", "hostile", "--plugin", path, *ONLY)
    assert [line.split()[2:4] for line in done.stderr.splitlines()] == [[name, "passed"] for name in CHECKS]
    assert "hostile" in done.stdout.splitlines()[-1]


def test_the_progress_of_a_terminal_does_not_take_over_standard_output(hostile: Hostile, tmp_path: Path) -> None:
    ours, terminal = pty.openpty()
    command = ForkedCommand("check", "hostile", "--plugin", hostile(), "--json", *ONLY, cwd=tmp_path, stderr=terminal)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # what Linux says when the last writer has closed a terminal
            break
    os.close(ours)
    out = command.finished().stdout
    assert [json.loads(line).get("check") for line in out.splitlines()] == [*CHECKS, None]
    assert b"save_load (3 of 3)" in shown
    assert b"passed" not in shown


def test_an_expected_failure_is_no_failure_and_no_conformance_either(cli: RunCLI, hostile: Hostile) -> None:
    reason = "decoding is written in C, and that is not ready"
    done = cli("check", "hostile", "--plugin", hostile(generate="os._exit(3)"), *ONLY, "--xfail", f"generate={reason}")
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("generate")]
    assert "expected failure" in row
    assert reason in row
    assert "exit code 3" in row
    assert "generate" in done.stdout.splitlines()[-1], "an expected failure is no conformance"


def test_an_expected_failure_that_passes_is_a_failure(cli: RunCLI, hostile: Hostile) -> None:
    done = cli(
        "check", "hostile", "--plugin", hostile(), "--check", "logits", "--xfail", "logits=it was wrong", "--json"
    )
    assert done.returncode == 9
    assert lines(done)[0]["status"] == "unexpected pass"
    assert lines(done)[-1]["failed"] == ["logits"]
    assert "it was wrong" in lines(done)[0]["evidence"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--xfail", "causality"], "--xfail"),
        (["--xfail", "causality= "], "--xfail"),
        (["--xfail", "causalty=it leaks"], "'causality'"),
        (["--check", "causalty"], "'causality'"),
        (["--set", "n_layers=2"], "'n_layer'"),
        (["--device", "tpu:0"], "--device tpu:0"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_is_checked(
    arguments: list[str], said: str, cli: RunCLI
) -> None:
    done = cli("check", "gpt1", *arguments)
    assert done.returncode == (5 if "--device" in arguments else 2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_the_configuration_asked_for_is_the_one_that_is_checked(cli: RunCLI) -> None:
    sizes = [word for size in ("d_model=36", "d_ff=8", "vocab_size=65537") for word in ("--set", size)]
    done = cli("check", "gpt1", *sizes, "--check", "meta", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")  # --quiet: no progress
    assert "gpt1 nano d_model=36 d_ff=8 vocab_size=65537" in done.stdout


def test_debug_shows_where_the_plugin_raised(cli: RunCLI, hostile: Hostile) -> None:
    command = ["check", "hostile", "--plugin", hostile(generate="raise KeyError('why')"), "--check", "generate"]
    debug = cli(*command, "--debug").stderr
    assert "in check generate:\nTraceback" in debug
    assert "hostile.py" in debug


def test_an_interruption_ends_all_that_a_plugin_has_begun(hostile: Hostile, tmp_path: Path) -> None:
    began = tmp_path / "began"
    sleeper = "subprocess.Popen(['sleep', '1000']).pid"
    start = f"print({sleeper}, file=open({str(began)!r}, 'w'), end=' ', flush=True); time.sleep(1000)"
    command = ForkedCommand("check", "hostile", "--plugin", hostile(generate=start), *ONLY, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (began.exists() and began.read_text().endswith(" ")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command.process.send_signal(signal.SIGINT)
    done = command.finished()
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "Interrupted"
    while _runs(int(began.read_text())):
        assert time.monotonic() < deadline, "the plugin's process goes on"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    """Whether it exists, and is more than an entry that nobody has collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
