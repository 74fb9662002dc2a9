"""One comparison: on this machine, on a Ray cluster of which each part dies once, and on nodes that share no folder."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from archbench import read_results
from archbench.errors import LauncherError

pytest.importorskip("ray", reason="pip install 'archbench[ray]'")

from command_line import own_process
from ray_orders import cluster_of, killed
from small_runs import UNCHECKED, losses_by_run, with_small_corpus
from test_kills import documents, keys, measured, quality

pytestmark = pytest.mark.slow

COMPARE = (
    "compare", "gpt1", "gpt2", "--profile", "smoke", "--corpus", "small.txt", "--threads", "1", "--device", "cpu",
    "--config", "training.checkpoint_every=2", "--match", "tokens", "--tokens", "16384", "--seeds", "2",
    "--no-tuning", "--sweeps", "1", "--contexts", "none", "--out", "out",
)  # fmt: skip


class Study:
    """A comparison in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.folder, self.options = with_small_corpus(folder), options
        self.start()

    def start(self) -> None:
        script = str(Path(sys.executable).with_name("archbench"))
        text = str(self.folder / "small.txt")  # its workers have other working directories
        command = [script, *(text if word == "small.txt" else word for word in COMPARE), *self.options]
        with (self.folder / "said").open("ab") as said:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )

    def said(self) -> str:
        return (self.folder / "said").read_text()[-3000:]

    def finished(self) -> dict[str, Any]:
        assert self.process.wait(3600) == 0, self.said()
        outcome: dict[str, Any] = json.loads((self.folder / "out" / "comparison.json").read_text())
        assert all(cell["outcome"] == "ok" for cell in outcome["cells"]), self.said()
        return outcome

    def has_records(self, count: int) -> None:
        """Wait for so many records."""
        while len(list((self.folder / "out" / "cells").glob("*.json"))) < count:
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(tmp_path_factory.mktemp("local") / "study")
    study.finished()
    return study


def same(one: Study, other: Study) -> bool:
    """Whether all that does not depend on time is the same bit for bit, each run once."""
    found, wanted = measured(one.folder), measured(other.folder)
    assert Counter(keys(found).values()) == Counter(keys(wanted).values())
    assert documents(one.folder) == documents(other.folder)
    return quality(found) == quality(wanted)


def test_a_node_the_submitter_and_the_head_are_killed_and_the_same_command_finishes(
    unbroken: Study, tmp_path: Path
) -> None:
    with cluster_of(3) as cluster:
        study = Study(tmp_path / "study", *on(cluster))
        study.has_records(1)
        killed(node := next(iter(cluster.worker_nodes)))
        study.has_records(3)
        study.process.kill()
        study.process.wait()
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=2)
        study.start()
        study.has_records(4)
        killed(cluster.head_node)
        assert study.process.wait(120) == LauncherError.exit_code, study.said()
        assert study.said().count("it is not reached any more") == 1
        assert "Traceback" not in study.said()
    with cluster_of(2) as cluster:
        study.options = on(cluster)
        study.start()
        study.finished()
    assert same(study, unbroken)
    cells = {file.stem for file in (study.folder / "out" / "cells").iterdir()}
    claims = {file.name.partition(".")[0] for file in (study.folder / "out" / "claims").iterdir()}
    assert {claim for claim in claims if "-" not in claim} <= cells, "a claim of a killed process, to what is recorded"


def test_without_a_shared_folder_the_numbers_are_the_same(unbroken: Study, tmp_path: Path) -> None:
    with cluster_of(3) as cluster:
        study = Study(tmp_path / "study", *on(cluster), "--launcher-set", "shared=false")
        study.has_records(3)
        study.process.kill()
        study.process.wait()
        study.start()
        study.finished()
    assert same(study, unbroken)
    assert not list((study.folder / "out").rglob("checkpoints/*"))


def on(cluster: Any) -> tuple[str, ...]:
    return ("--launcher", "ray", "--launcher-set", f"address={cluster.address}")


def test_plain_runs_come_back_from_nodes_with_and_without_a_shared_folder(tmp_path: Path) -> None:
    text = str(with_small_corpus(tmp_path) / "small.txt")
    options = [text if option == "small.txt" else option for option in UNCHECKED]
    runs = ["run", "gpt1", *options, "--device", "cpu", "--phases", "train,quality", "--seed", "0", "--seed", "1"]
    scores: dict[str, dict[int, float]] = {}
    with cluster_of(2) as cluster:
        launched = on(cluster)
        for out, more in (("alone", ()), ("true", launched), ("false", (*launched, "--launcher-set", "shared=false"))):
            done = own_process(*runs, "--out", out, *more, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert losses_by_run(tmp_path / out) == losses_by_run(tmp_path / "alone")
            rows = read_results(tmp_path / out)
            assert rows.host.notna().all()
            scores[out] = rows[rows.metric == "bits_per_byte"].set_index("seed").value.to_dict()
            assert scores[out] == scores["alone"]
            left = sorted(path.suffix for path in (tmp_path / out).iterdir())
            assert left == ["", "", ".json", ".json", ".parquet", ".parquet"]
            has_weights = bool(list((tmp_path / out).glob("*/checkpoints/*")))
            assert has_weights == (out != "false"), "weights stay where they are"
