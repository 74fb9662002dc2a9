"""``archbench run --nproc``: rows, a rank that dies, a signal, other numbers of ranks, several machines, refusals."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from archbench import read_results
from archbench.child.own_time import OwnTime
from archbench.config import RunConfig
from archbench.errors import ArchbenchError, ConfigError, DeviceError
from archbench.runs.ranks import device_of_rank, resolved_ranks
from archbench.runs.scaling import covered
from archbench.training.distribution import host
from command_line import archbench
from small_runs import UNCHECKED, losses, value, with_small_corpus
from test_interruption import LONGEST, wait_for

TRAIN = [*(option for option in UNCHECKED if option != "--quiet"), "--phases", "train", "--set", "n_layer=2"]

LONGEST_START = 600.0
"""Seconds until a first checkpoint, on however busy a machine: what never comes is a failure."""

SCORED = ["--phases", "train,quality,positions"]

LONGEST_DEATH = 30.0
"""Seconds from the death of a rank to the end of the run, that the issue allows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_small_corpus(tmp_path_factory.mktemp("devices"))


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[float]:
    assert archbench("run", "gpt1", *TRAIN, *SCORED, "--out", "alone", cwd=folder).returncode == 0
    return losses(read_results(folder / "alone"))


@pytest.mark.slow
def test_the_rows_of_a_run_on_several_devices(folder: Path, alone: list[float]) -> None:
    more = ["--nproc", "2", "--parallel", "fsdp", "--scaling-efficiency", "--out", "two"]
    done = archbench("run", "gpt1", *TRAIN, *SCORED, *more, cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = read_results(folder / "two")
    assert losses(rows) == pytest.approx(alone, rel=1e-5)
    same_scores(rows, read_results(folder / "alone"))
    rows = rows[rows.phase == "train"]
    assert set(rows.world_size) == {2}
    speed = value(rows, "train", "tokens_per_second")
    assert value(rows, "train", "tokens_per_second_per_device") == speed / 2
    assert value(rows, "train", "fsdp_blocks") == 2
    assert 0 < value(rows, "train", "communication_share") <= 1
    alone_step, shared = (
        rows[rows.metric == name].value.median() for name in ("one_device_step_seconds", "shared_step_seconds")
    )
    assert value(rows, "train", "scaling_efficiency") == pytest.approx(alone_step / 2 / shared)
    flops = value(rows, "train", "flops_per_token")
    single = read_results(folder / "alone")
    assert flops == value(single, "train", "flops_per_token")
    assert set(rows.parameters) == set(single.parameters)
    peak = value(rows, "train", "peak_flops_measured")
    assert value(rows, "train", "mfu") == pytest.approx(flops * speed / 2 / peak)
    assert value(rows, "train", "audit_passed") == 1


def same_scores(rows: pd.DataFrame, single: pd.DataFrame) -> None:
    """Those of two processes, each of a share of the text, are those of one, of models that differ by rounding."""
    rows, single = (every[every.phase.isin(["quality", "positions"])] for every in (rows, single))
    assert set(rows.world_size) == {2}
    found, expected = (
        every[~every.metric.str.contains("memory|audit")]
        .set_index(["phase", "metric", "repeat", "context_length"])
        .value
        for every in (rows, single)
    )
    assert list(found.index) == list(expected.index)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4, nan_ok=True)
    assert value(rows, "quality", "audit_passed") == 1


LOUD = [*TRAIN, "--steps", "200", "--lr", "1e-4", "--config", "training.validate_every=null"]
"""At a rate without spikes of the loss, which make much of rounding."""


@pytest.fixture(scope="module")
def long_alone(folder: Path) -> list[float]:
    assert archbench("run", "gpt1", *LOUD, "--out", "long", cwd=folder).returncode == 0
    return losses(read_results(folder / "long"))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_rank_that_dies_ends_the_run_with_its_name_and_others_resume_it(
    folder: Path, long_alone: list[float], parallel: str
) -> None:
    out = f"dies-{parallel}"
    run = begun(folder, *LOUD, "--nproc", "2", "--parallel", parallel, "--out", out)
    wait_for(lambda: list((folder / out).glob("*/checkpoints/step-*")), LONGEST_START)
    os.kill(ranks_of([run], 1)[0].pid, signal.SIGKILL)
    assert seconds_to_end(run) < LONGEST_DEATH
    error = run.communicate()[1]
    assert run.returncode == 8
    assert error.count("Error") == 1
    assert f"rank 1 on host {host()}" in error
    assert "killed" in error
    (row,) = read_results(folder / out).to_dict("records")
    assert row["metric"] == "failed"
    assert "rank 1" in row["status"]
    resumed = archbench("run", "gpt1", "--resume", "last", "--out", out, "--nproc", "3", cwd=folder)
    assert resumed.returncode == 0, resumed.stderr
    rows = read_results(folder / out)
    assert losses(rows) == pytest.approx(long_alone, rel=1e-4)  # 200 updates: rounding has had time to grow
    assert set(rows[rows.metric == "loss"].world_size) == {2, 3}


@pytest.mark.slow
def test_a_signal_stops_all_ranks_after_the_same_update(folder: Path, long_alone: list[float]) -> None:
    out = "signal"
    run = begun(folder, *LOUD, "--nproc", "2", "--out", out)
    wait_for(lambda: list((folder / out).glob("*/checkpoints/step-*")), LONGEST_START)
    run.send_signal(signal.SIGTERM)
    assert seconds_to_end(run) < LONGEST
    run.communicate()
    assert run.returncode == 143
    (row,) = read_results(folder / out).to_dict("records")
    assert (row["metric"], row["status"]) == ("interrupted", "Interrupted: by SIGTERM")
    resumed = archbench("run", "gpt1", "--resume", "last", "--out", out, "--nproc", "1", cwd=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(read_results(folder / out)) == pytest.approx(long_alone, rel=1e-4)


@pytest.mark.slow
def test_scoring_together_that_takes_too_long_is_ended(folder: Path) -> None:
    more = ["--phases", "quality", "--nproc", "2", "--config", "time_limit=0.001", "--out", "late"]
    done = archbench("run", "gpt1", *TRAIN, *more, cwd=folder)
    assert done.returncode == 8
    assert "took longer than 0.001 s" in done.stderr
    assert "Traceback" not in done.stderr


def begun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own, whose ranks can be found by their environment."""
    command = [sys.executable, "-P", "-m", "archbench", "run", "gpt1", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def seconds_to_end(run: subprocess.Popen[str]) -> float:
    """Seconds until the command has ended, without those in which a busy machine keeps it and its ranks waiting."""
    clock, seconds = OwnTime(run.pid), 0.0
    while run.poll() is None:
        time.sleep(0.2)
        seconds = clock()
    return seconds


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def agent(node: int, port: int, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A torchrun agent of two, as on a machine of its own, with one process."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend",
        "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test", "--local-addr", "127.0.0.1",
        "--rdzv-conf", f"is_host={node == 0}", "-m", "archbench", "run", "gpt1", *arguments,
    ]  # fmt: skip
    variables = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_two_machines_of_torchrun_train_one_model(folder: Path, alone: list[float]) -> None:
    """Two agents on the loopback; the one with rank 0 checks, prints and writes what one command does."""
    port = free_port()
    checked = [option for option in TRAIN if option != "--unchecked"]
    agents = [agent(node, port, folder, *checked, *SCORED, "--out", "nodes") for node in range(2)]
    said = [one.communicate(timeout=300) for one in agents]
    assert [one.returncode for one in agents] == [0, 0], said
    assert sorted("Results:" in out for out, _ in said) == [False, True]
    assert sum(error.count(", check: done") for _, error in said) == 1
    rows = read_results(folder / "nodes")
    assert "unchecked" not in set(rows.conformance)
    assert losses(rows) == pytest.approx(alone, rel=1e-5)
    same_scores(rows, read_results(folder / "alone"))
    assert set(rows[rows.phase == "train"].world_size) == {2}


@pytest.mark.slow
def test_a_rank_that_dies_on_another_machine_is_named(folder: Path) -> None:
    port = free_port()
    agents = [agent(node, port, folder, *LOUD, "--steps", "3000", "--out", "lost") for node in range(2)]
    wait_for(lambda: ranks_of(agents, 1) and list((folder / "lost").glob("*/checkpoints/step-*")), LONGEST_START)
    os.kill(ranks_of(agents, 1)[0].pid, signal.SIGKILL)
    assert seconds_to_end(agents[0]) < LONGEST_DEATH
    said = [one.communicate(timeout=300) for one in agents]
    assert all(one.returncode for one in agents)
    assert f"rank 1 on host {host()}" in "".join(error for _, error in said)
    (row,) = read_results(folder / "lost").to_dict("records")
    assert row["metric"] == "failed"
    assert "rank 1" in row["status"]


def ranks_of(agents: list[subprocess.Popen[str]], rank: int) -> list[psutil.Process]:
    """The processes that train as that rank: the last below the agents."""
    found = []
    for one in agents:
        for process in psutil.Process(one.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                trains = "entry.py" in " ".join(process.cmdline()) and not process.children()
                if trains and process.environ().get("RANK") == str(rank):
                    found.append(process)
    return found


def config(**values: Any) -> RunConfig:
    return RunConfig(**{"architecture": "gpt1", "profile": "smoke", **values})


GPU = {"device": "cuda", "nproc": 3}
REFUSED = [
    (GPU, DeviceError, "--nproc 3"),
    ({"device": "cuda:1", "nproc": 2}, ConfigError, "--device cuda:1"),
    ({"nproc": 9}, ConfigError, "--nproc 9"),
    ({"nproc": 2, "phases": ("decode",)}, ConfigError, "--nproc 2"),
    ({"nproc": 2, "phases": ("quality",), "scaling_efficiency": True}, ConfigError, "--scaling-efficiency"),
    ({"parallel": "fsdp"}, ConfigError, "--parallel fsdp"),
    ({"scaling_efficiency": True}, ConfigError, "--scaling-efficiency"),
    *(
        ({"nproc": 2, "parallel": "fsdp", **more}, ConfigError, "--parallel fsdp")
        for more in ({"training": {"optimizer": "muon"}}, {"dtype": "float16"}, {"compile": True})
    ),
]


@pytest.mark.parametrize(("values", "kind", "culprit"), REFUSED)
def test_what_processes_cannot_share_is_refused_before_anything_begins(
    values: dict[str, Any], kind: type[ArchbenchError], culprit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(kind) as refused:
        resolved_ranks(config(**values))
    assert refused.value.culprit == culprit


def test_auto_is_a_process_for_each_gpu_or_core_that_gets_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("archbench.runs.ranks.usable_cpus", lambda: list(range(64)))
    assert resolved_ranks(config(device="cuda", nproc="auto")).nproc == 2
    assert resolved_ranks(config(nproc="auto")).nproc == 8  # sequences of a batch
    assert resolved_ranks(config(device="cuda", nproc="auto", phases=("quality",))).nproc == 2
    assert resolved_ranks(config(nproc="auto", phases=("decode",))).nproc == 1


def test_each_rank_has_a_gpu_of_its_own() -> None:
    """Never all on GPU 0 (tritonbench's pull request 869)."""
    assert [device_of_rank("cuda", {"LOCAL_RANK": str(rank)}) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:2"]
    assert device_of_rank("cpu", {"LOCAL_RANK": "1"}) == "cpu"


def test_a_run_on_one_device_has_the_hash_and_the_file_that_it_always_had() -> None:
    assert config(nproc=1, parallel="ddp").config_hash() == config().config_hash() != config(nproc=2).config_hash()
    assert not {"nproc", "parallel", "scaling_efficiency"} & config().model_dump().keys()


def test_time_in_collectives_that_overlap_counts_once() -> None:
    assert covered([(5, 9), (0, 4), (3, 6), (20, 21)]) == 10
