"""What keeps a launcher from queueing anything: a missing extra, a cluster that is not there, a host that differs."""

from __future__ import annotations

import copy
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from archbench_plugins.launchers.ray import Ray, RaySettings
from pydantic import ValidationError

from archbench.errors import LauncherError
from archbench.interruption import interruptible, underway
from archbench.launch.host_check import examination, require_same
from archbench.launch.permit import permits_of, permitted
from archbench.results.claims import sweep
from command_line import archbench


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LauncherError, match="ray") as raised, Ray(RaySettings(), tmp_path, None):
        pass
    assert "archbench[ray]" in raised.value.next_step


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="pip install 'archbench[ray]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    for settings in (RaySettings(), RaySettings(address=address), RaySettings(address="ray://" + address)):
        with pytest.raises(LauncherError, match=address), Ray(settings, tmp_path, None):
            pass
    assert not list(tmp_path.iterdir())


SINFO = "#!/bin/sh\necho 'debug*|4:00:00'\n"
REFUSES = "#!/bin/sh\necho 'sbatch: error: Invalid account' >&2\nexit 1\n"


@pytest.mark.parametrize(
    ("launcher", "commands", "culprit"),
    [
        ("ray", {}, "127.0.0.1:9"),
        ("slurm", {}, "sbatch"),
        ("slurm", {"sinfo": SINFO, "sbatch": ""}, "partition 'gpu'"),
        ("slurm", {"sinfo": SINFO.replace("debug", "gpu"), "sbatch": REFUSES}, "Invalid account"),
    ],
)
def test_an_engine_that_takes_nothing_leaves_no_folder(
    launcher: str, commands: dict[str, str], culprit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray" if launcher == "ray" else "submitit", reason="pip install 'archbench[ray,slurm]'")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep if commands else None)
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "squeue", "scancel", "sinfo", "srun") if commands else ():
        (tmp_path / "bin" / name).write_text(commands.get(name) or "#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    options = [] if launcher == "ray" else ["--launcher-set", "partition=gpu"]
    done = archbench("compare", "gpt1", "gpt2", "--device", "cpu", "--launcher", launcher, *options, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("Error")) == (13, 1), done.stderr
    assert culprit in done.stderr
    assert [place.name for place in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize("wrong", [{"num_cpus": "0"}, {"resources": "a100"}, {"nodes": "3"}, {"max_tasks": "0"}])
def test_a_setting_that_means_nothing_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        RaySettings(**wrong)


def test_a_host_with_other_code_or_without_a_text_is_named(tmp_path: Path) -> None:
    text, mark = tmp_path / "text.txt", tmp_path / "mark"
    text.write_text("to be")
    mark.write_text("secret")
    examine = examination()
    here = examine(str(mark), [str(text)])
    assert here["mark"] == "secret"
    require_same("other", here, examine(str(tmp_path / "elsewhere"), [str(text)]), send="--send")
    for name in ("archbench", "torch"):
        for version in ("0.0.1", None):
            there = copy.deepcopy(here)
            there["versions"][name] = version
            with pytest.raises(LauncherError, match=name) as raised:
                require_same("other", here, there, send="--send")
            assert "other" in raised.value.culprit
            assert here["versions"][name] in raised.value.cause
    text.write_text("not to be")
    for _ in range(2):
        with pytest.raises(LauncherError, match=str(text)):
            require_same("other", here, examine(str(mark), [str(text)]), send="--send")
        text.unlink(missing_ok=True)


def test_an_order_is_interrupted_when_its_permit_goes_and_does_not_begin_without(tmp_path: Path) -> None:
    permit = tmp_path / "order"
    permit.touch()
    threading.Timer(0.05, permit.unlink).start()
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), interruptible(), underway(), permitted(permit):
        time.sleep(60)
    with pytest.raises(LauncherError, match=socket.gethostname()), permitted(permit):
        pass


def test_permits_of_a_killed_process_go_and_those_of_a_living_one_and_of_another_machine_stay(tmp_path: Path) -> None:
    mine = permits_of(tmp_path)
    dead = mine.with_name(mine.name.replace(f".{os.getpid()}-", f".{2**22 + 1}-"))
    elsewhere = dead.with_name(".orders-00000000" + dead.name.removeprefix(".orders-")[8:])
    for place in (mine, dead, elsewhere):
        place.mkdir()
        (place / "mark").touch()
    sweep(tmp_path)
    assert {place.name for place in tmp_path.iterdir()} == {mine.name, elsewhere.name}
