"""A plugin whose import hangs, exits or crashes takes no command down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from archbench.plugin.importing import import_file
from forked_children import ForkedCommand
from installations import RunCLI

BROKEN = {
    "loops.py": "while True: pass",
    "hangs.py": "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\ntime.sleep(1000)",
    "exits.py": "import os\nos._exit(0)",
    "crashes.py": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
}


def test_list_shows_plugins_that_hang_exit_or_crash_as_broken(
    cli: RunCLI, tmp_path: Path, minimal_plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir()
    for name, source in {**BROKEN, "fine.py": minimal_plugin}.items():
        (folder / name).write_text(source + "\n")
    monkeypatch.setenv("ARCHBENCH_IMPORT_LIMIT", "0.5")
    shown = cli("list", "--plugin", folder, "--json")
    assert shown.returncode == 0, shown.stderr
    rows = {row["name"]: row["error"] for row in map(json.loads, shown.stdout.splitlines())}
    causes = {Path(name).name: error["cause"] for name, error in rows.items() if error is not None}
    assert causes.keys() == BROKEN.keys()
    for name, part in {
        "loops.py": "0.5 s",
        "hangs.py": "longer",
        "exits.py": "code 0",
        "crashes.py": "SIGSEGV",
    }.items():
        assert part in causes[name]
    assert rows["bigram"] is None
    assert rows["gpt1"] is None


def test_a_command_that_needs_a_plugin_says_that_its_import_does_not_end(
    cli: RunCLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loops.py").write_text(BROKEN["loops.py"])
    monkeypatch.setenv("ARCHBENCH_IMPORT_LIMIT", "0.2")
    shown = cli("show", "loops", "--plugin", tmp_path / "loops.py")
    assert shown.returncode == 3
    assert "0.2 s" in shown.stderr


def test_an_import_that_a_busy_machine_slows_down_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text("import time\nbegun = time.thread_time()\nwhile time.thread_time() < begun + 0.2: pass\n")
    monkeypatch.setenv("ARCHBENCH_IMPORT_LIMIT", "0.4")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(allowed)])
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        time.sleep(0.2)  # until they run
        begun = time.monotonic()
        import_file(str(plugin))
        assert time.monotonic() - begun > 0.4, "the machine was not busy"
    finally:
        for other in others:
            other.kill()
            other.wait()
        os.sched_setaffinity(0, allowed)


def test_without_foreign_plugins_nothing_is_started(cli: RunCLI, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Callable[..., object]] = []
    monkeypatch.setattr("archbench.plugin.description.Child", started.append)
    assert cli("list", "--json").returncode == 0
    assert not started


def test_an_interrupted_import_is_named(tmp_path: Path) -> None:
    plugin = tmp_path / "loops.py"
    plugin.write_text(f"open({str(tmp_path / 'begun')!r}, 'w').close()\nwhile True: pass\n")
    command = ForkedCommand("show", "loops", "--plugin", plugin, cwd=tmp_path)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    command.process.send_signal(signal.SIGINT)
    done = command.finished()
    assert done.returncode == 130
    assert str(plugin) in done.stderr
    assert done.stderr.count("\n") == 1
