"""What TensorBoard, Weights & Biases and MLflow have of a run, read back with their own code; W&B offline."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from archbench import read_results
from archbench.plugin.registry import TRACKER, find
from archbench.trackers.feed import Feed
from archbench.trackers.following import followed_by
from command_line import archbench
from small_runs import UNCHECKED, losses, with_small_corpus

pytestmark = pytest.mark.slow

LIBRARIES = ("tensorboard", "wandb", "mlflow")
INSTALLED = [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]


@pytest.fixture(scope="module", autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Offline, and nothing of a developer's own servers, projects and home."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.setenv("WANDB_MODE", "offline")
        for kind in ("CONFIG", "CACHE", "DATA"):
            patch.setenv(f"WANDB_{kind}_DIR", str(home))
        yield


@pytest.fixture(scope="module")
def tracked(_own_settings: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A run that all libraries which are installed have followed: its folder, after it went on once more; its rows."""
    folder = with_small_corpus(tmp_path_factory.mktemp("libraries"))
    tracks = [part for name in INSTALLED for part in ("--track", name)]
    done = archbench("run", "gpt1", *UNCHECKED, "--phases", "train,quality", *tracks, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    frame = read_results(folder / "results")
    run_id = str(frame.run_id.iloc[0])
    run = folder / "results" / run_id
    with Feed(run) as feed:  # as a resumed run would
        feed.log(6, 1000, {"loss": 0.25})
    with followed_by(INSTALLED, quiet=True) as trackers:
        trackers.start(run_id, json.loads((run / "config.json").read_text()), run)
        trackers.finish([], "failed")
    return run, frame


def bits_per_byte(frame: pd.DataFrame) -> float:
    return float(frame[(frame.phase == "quality") & (frame.metric == "bits_per_byte")].value.iloc[0])


def test_the_three_are_found_under_their_names() -> None:
    assert list(find(TRACKER, LIBRARIES)) == list(LIBRARIES)


@pytest.mark.parametrize("name", LIBRARIES)
def test_without_its_library_each_names_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = f"raise ModuleNotFoundError('No module named {name}', name='{name}')\n"
    (tmp_path / f"{name}.py").write_text(missing)  # stands before the real one on the path
    path = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    done = archbench("run", "gpt1", *UNCHECKED, "--track", name, cwd=with_small_corpus(tmp_path))
    assert done.returncode == 2
    assert f"pip install 'archbench[{name}]'" in done.stderr
    assert not (tmp_path / "results").exists()


def test_tensorboard_has_every_loss_the_results_and_the_configuration(tracked: tuple[Path, pd.DataFrame]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    run, frame = tracked
    events = EventAccumulator(str(run / "tensorboard")).Reload()

    def scalars(tag: str) -> list[tuple[int, float]]:
        return [(event.step, make_ndarray(event.tensor_proto).item()) for event in events.Tensors(tag)]

    steps, values = zip(*scalars("train/loss"), strict=True)
    assert steps == tuple(range(7)), "the resumed run goes on in the same one"
    assert values == pytest.approx([*losses(frame), 0.25], rel=1e-6)  # TensorBoard's scalars are float32
    assert [step for step, _ in scalars("train/validation_loss")] == [3, 6]
    assert scalars("quality/bits_per_byte")[0][1] == pytest.approx(bits_per_byte(frame), rel=1e-6)
    text = make_ndarray(events.Tensors("configuration")[0].tensor_proto).item().decode()
    assert '"architecture": "gpt1"' in text


def test_wandb_has_an_offline_run_with_the_whole_history_under_the_runs_id(tracked: tuple[Path, pd.DataFrame]) -> None:
    pytest.importorskip("wandb")
    run, frame = tracked
    first, second = sorted((run / "wandb").glob(f"offline-run-*-{run.name}"))
    told = wandb_history(first / f"run-{run.name}.wandb")
    by_step = {one["_step"]: one["train/loss"] for one in told if "train/loss" in one}
    assert by_step == dict(enumerate(losses(frame)))
    assert {one["_step"] for one in told if "train/validation_loss" in one} == {3, 6}
    (more,) = wandb_history(second / f"run-{run.name}.wandb")
    assert (more["_step"], more["train/loss"]) == (6, 0.25), "to be sent to the same run"
    shown = subprocess.run(
        ["wandb", "sync", "--dry-run", str(first)], capture_output=True, text=True, check=False, cwd=run
    )
    assert shown.returncode == 0, shown.stderr
    assert run.name in shown.stdout + shown.stderr


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """The history in one of W&B's files: records of its protocol, in a LevelDB log of 32 KiB blocks."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record, history = file.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed = Record.FromString(record)
            record = b""
            if parsed.WhichOneof("record_type") == "history":
                items = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in parsed.history.item
                }
                history.append({"_step": parsed.history.step.num, **items})
    return history


def test_mlflow_has_one_run_with_every_loss_the_results_and_the_configuration(
    tracked: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    run, frame = tracked
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((run.parent / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("archbench")
    (found,) = client.search_runs([experiment.experiment_id], f"tags.`archbench.run_id` = '{run.name}'")
    assert found.info.status == "FAILED", "as it was told last"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert {one.step: one.value for one in history} == dict(enumerate([*losses(frame), 0.25]))
    assert len(history) == 7, "no step twice"
    assert found.data.metrics["quality/bits_per_byte"] == bits_per_byte(frame)
    assert found.data.params["run.training.steps"] == "6"
    assert found.data.params["model.n_layer"] == "1"
