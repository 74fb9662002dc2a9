"""docs/how-to/cluster.md cannot drift: its example is a launcher, its settings are all there are, its commands run."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from archbench_plugins.launchers.ray import RaySettings

from archbench.launch.launcher import Order

PAGE = (Path(__file__).parent.parent / "docs" / "how-to" / "cluster.md").read_text()

SMALLEST = (
    "--profile", "smoke", "--seeds", "2", "--match", "tokens", "--tokens", "8192", "--no-tuning", "--sweeps", "1",
    "--contexts", "none", "--threads", "1",
)  # fmt: skip


def section(title: str) -> str:
    return re.split(r"(?m)^## ", PAGE.partition(f"## {title}\n")[2])[0]


def test_the_example_is_a_launcher(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", section("Write a launcher"), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(example, "cluster.md", "exec"), scope)
    kind = scope["PythonPool"]
    with kind(kind.settings_class(), tmp_path, 1) as launcher:
        names = [
            launcher.submit(Order("one.1", "one", math.sqrt, 4.0)),
            launcher.submit(Order("two.1", "two", math.sqrt, -1)),
        ]
        while any(state.phase in ("queued", "running") for state in launcher.states(names).values()):
            launcher.wait(60.0)
        done, lost = launcher.states(names).values()
    assert (done.phase, done.result) == ("done", 2.0)
    assert (lost.phase, launcher.states(["unknown"])["unknown"].phase) == ("lost", "lost")


def test_every_setting_of_ray_is_on_the_page() -> None:
    table = re.findall(r"(?m)^\| (`\w+`.*?) \|", section("Ray"))
    assert set(re.findall(r"`(\w+)`", " ".join(table))) == set(RaySettings.model_fields)


@pytest.mark.slow
def test_the_commands_for_ray_run(tmp_path: Path) -> None:
    """As on the page, but on the smallest budget, and all machines are this one."""
    pytest.importorskip("ray", reason="pip install 'archbench[ray]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_usage_stats_enabled": "0"}
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for command in re.findall(r"(?m)^\$ (.+)$", section("Ray")):
            words = shlex.split(command.replace("HEAD", "127.0.0.1").replace("6379", port))
            if words[0] == "pip":
                continue  # this environment has it
            if words[0] == "export":
                name, _, value = words[1].partition("=")
                variables[name] = value
            elif words[0] == "ray":
                nodes.append(
                    subprocess.Popen([*words, "--num-cpus=2", "--block"], env=variables, stdout=subprocess.DEVNULL)
                )
                time.sleep(20)
            else:
                if words[:2] == ["archbench", "compare"]:
                    words += SMALLEST
                ended = subprocess.run(words, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=900)
                assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
        assert "is finished" in ended.stdout
    finally:
        for node in nodes[::-1]:
            node.send_signal(signal.SIGTERM)
            node.wait(60)
