"""One comparison: on this machine, on a Ray cluster whose node and submitter die, and on nodes that share no folder."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="pip install 'archbench[ray]'")

from ray_orders import killed, three_nodes
from small_runs import with_small_corpus
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
        assert self.process.wait(900) == 0, self.said()
        outcome: dict[str, Any] = json.loads((self.folder / "out" / "comparison.json").read_text())
        assert all(cell["outcome"] == "ok" for cell in outcome["cells"]), self.said()
        return outcome

    def has_records(self, count: int) -> None:
        """Wait for so many records."""
        while len(list((self.folder / "out" / "cells").glob("*.json"))) < count:
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with three_nodes() as found:
        yield found


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


def test_a_node_and_the_submitter_are_killed_and_the_same_command_finishes(
    cluster: Any, unbroken: Study, tmp_path: Path
) -> None:
    study = Study(tmp_path / "study", "--launcher", "ray", "--launcher-set", f"address={cluster.address}")
    study.has_records(2)
    killed(node := next(iter(cluster.worker_nodes)))
    study.has_records(4)
    study.process.kill()
    study.process.wait()
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=2)
    study.start()
    study.finished()
    assert same(study, unbroken)
    assert {file.name.partition("-")[0] for file in (study.folder / "out" / "claims").iterdir()} <= {"session"}


def test_without_a_shared_folder_the_numbers_are_the_same(cluster: Any, unbroken: Study, tmp_path: Path) -> None:
    settings = ("--launcher-set", f"address={cluster.address}", "--launcher-set", "shared=false")
    study = Study(tmp_path / "study", "--launcher", "ray", *settings)
    study.finished()
    assert same(study, unbroken)
    assert not list((study.folder / "out").rglob("checkpoints/*"))
