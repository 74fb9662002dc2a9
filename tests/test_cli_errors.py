"""Whatever goes wrong is one paragraph on stderr and a non-zero exit code; the traceback comes with --debug only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from installations import RunCLI

Install = Callable[..., Path]


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["lst"], "No such command 'lst'"),
        (["list", "--jsn"], "No such option"),
        (["regress"], "Missing argument"),
        (["results", "--limit", "many"], "--limit"),
    ],
)
def test_a_mistyped_command_is_one_line_that_points_to_help(cli: RunCLI, arguments: list[str], phrase: str) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert phrase in done.stderr
    assert "--help." in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_command_prints_help_and_version_prints_the_version(cli: RunCLI) -> None:
    from archbench import __version__

    assert cli().returncode == 0
    assert "archbench run gpt1" in cli().stdout
    assert cli("--version").stdout == f"archbench {__version__}\n"


@pytest.mark.parametrize("where", ["before", "after", "environment"])
def test_debug_shows_the_traceback_wherever_it_is_written(where: str, cli: RunCLI, install: Install) -> None:
    install("acme-bigram", "bigram", "raise KeyError('why')")
    plain = cli("show", "bigram")
    assert plain.returncode == 3
    assert "Traceback" not in plain.stderr
    assert "KeyError: 'why'" in plain.stderr
    if where == "environment":
        debug = cli("show", "bigram", env={"ARCHBENCH_DEBUG": "1"})
    else:
        debug = cli(*(["--debug", "show", "bigram"] if where == "before" else ["show", "bigram", "--debug"]))
    assert debug.returncode == 3
    assert "Traceback" in debug.stderr
    assert "acme_bigram.py" in debug.stderr
    assert debug.stderr.splitlines()[-1] == plain.stderr.strip()


BUGS = {
    "ZeroDivisionError()": (70, "ZeroDivisionError"),
    "OSError(28, 'No space left on device', 'disk.bin')": (7, "disk.bin"),
    "MemoryError('9 GB')": (5, "out of memory"),
}


@pytest.mark.parametrize("raised", BUGS)
def test_what_nobody_foresaw_is_said_plainly(raised: str, tmp_path: Path) -> None:
    """The real main, around a command that raises."""
    code, phrase = BUGS[raised]
    script = tmp_path / "command.py"
    script.write_text(
        "import sys\nfrom archbench.cli import app\n"
        f"def boom() -> None:\n    raise {raised}\n"
        "app.app.command('boom')(boom)\nsys.exit(app.main(sys.argv[1:]))\n"
    )
    done = subprocess.run([sys.executable, script, "boom"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert phrase in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    command = [sys.executable, script, "boom", "--debug"]
    debug = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" in debug.stderr


@pytest.mark.slow
def test_an_interrupt_exits_with_130_and_one_word(tmp_path: Path) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text(
        "from pathlib import Path\nimport time\nPath(__file__).with_name('started').touch()\ntime.sleep(60)\n"
    )
    command = [Path(sys.executable).with_name("archbench"), "list", "--plugin", plugin]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert (child.returncode, stdout, stderr) == (130, "", "Interrupted\n")


def test_a_warning_of_ours_is_one_line_without_source_code(tmp_path: Path, cli: RunCLI) -> None:
    (tmp_path / "broken.py").write_text("import no_such_thing")
    done = cli("show", "gpt1", "--plugin", tmp_path / "broken.py")
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("Warning: ")
    assert "broken.py" in warning
    assert "no_such_thing" in warning


@pytest.mark.parametrize(("backend", "cause"), [("triton", "triton"), ("flex", "flex")])
def test_attention_that_cannot_run_is_refused_before_any_work(
    backend: str, cause: str, tmp_path: Path, cli: RunCLI
) -> None:
    done = cli("run", "gpt1", "--profile", "smoke", "--device", "cpu", "--attention", backend, cwd=tmp_path)
    assert done.returncode == 5
    assert cause in done.stderr
    assert not (tmp_path / "results").exists()
