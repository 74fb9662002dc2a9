"""Checkpoints are whole or absent: killed writers, full disks, flipped bits and malicious files."""

from __future__ import annotations

import json
import multiprocessing.connection
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from archbench_plugins.gpt1 import GPT1
from torch import nn

from archbench.errors import ArchbenchError, CheckpointError, StorageError
from archbench.files.seal import sealed, unsealed
from archbench.training.checkpoints import latest_checkpoint, load_latest, load_weights, save_checkpoint
from training_setup import FORKSERVER, losses, model_config, recipe, run

FILES = ("model.safetensors", "training.pt", "manifest.json")


def save(folder: Path, step: int, value: float = 0.0) -> Path:
    return save_checkpoint(
        folder, step, filled(value).state_dict(), {"value": value, "moments": torch.full((4000,), value)}
    )


def filled(value: float) -> nn.Module:
    module = nn.Linear(40, 40)
    nn.init.constant_(module.weight, value)
    return module


def test_a_checkpoint_comes_back_to_the_last_bit_and_two_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT1(model_config())
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, model.state_dict(), {"moments": model.embedding.weight * 2, "name": "x"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.training["name"]) == (3, "x")
    assert torch.equal(checkpoint.training["moments"], model.embedding.weight * 2)
    weights = model.state_dict()
    assert checkpoint.weights.keys() == weights.keys()
    assert all(torch.equal(checkpoint.weights[name], weights[name]) for name in weights)


def test_no_checkpoints_is_not_an_error(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink], ids=["flipped bit", "truncated", "deleted"])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_the_file_and_the_way_back_are_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage(newest / name)
    with pytest.raises(CheckpointError) as caught:
        load_latest(tmp_path)
    assert str(newest / name) in caught.value.culprit
    assert caught.value.next_step == f"Delete the folder {newest} to continue from step-00000001"
    if name != "training.pt":
        with pytest.raises(CheckpointError, match=name):
            load_weights(newest)


def test_deleting_a_damaged_checkpoint_continues_from_the_older_one(tmp_path: Path) -> None:
    config = recipe(steps=8, checkpoint_every=3)
    unbroken = run(config, tmp_path)
    flip_bit(tmp_path / "step-00000008" / "model.safetensors")
    with pytest.raises(CheckpointError, match="continue from step-00000006"):
        run(config, tmp_path)
    for file in (tmp_path / "step-00000008").iterdir():
        file.unlink()
    (tmp_path / "step-00000008").rmdir()
    resumed = run(config, tmp_path)
    assert resumed.resumed_from == 6
    assert losses(resumed) == losses(unbroken)


def _killed_at_each_event(root: Path, answer: multiprocessing.connection.Connection) -> None:
    """For n = 1, 2, …: save, in a process that is killed at the n-th thing Python asks of the file system."""
    torch.set_num_threads(1)
    status = signal.SIGKILL
    n = 0
    while status == signal.SIGKILL:
        n += 1
        save(root / str(n), 1, 1.0)
        save(root / str(n), 2, 2.0)
        if (child := os.fork()) == 0:
            sys.addaudithook(_killer(n))
            save(root / str(n), 3, 3.0)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    answer.send((n, status))


def _killer(n: int) -> Callable[[str, object], None]:
    seen = 0

    def hook(event: str, args: object) -> None:
        nonlocal seen
        if event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def test_killed_at_any_file_operation_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    receiver, sender = FORKSERVER.Pipe(duplex=False)
    process = FORKSERVER.Process(target=_killed_at_each_event, args=(tmp_path, sender))
    process.start()
    sender.close()
    attempts, last_status = receiver.recv()
    process.join(60)
    assert last_status == 0
    assert attempts > 15, "the writer has more file operations than it was killed at"
    found = []
    for n in range(1, attempts + 1):
        folder = tmp_path / str(n)
        checkpoint = load_latest(folder)
        assert checkpoint is not None
        assert torch.equal(checkpoint.weights["weight"], filled(checkpoint.step).weight)
        assert checkpoint.training["value"] == checkpoint.step
        found.append(checkpoint.step)
        save(folder, 4, 4.0)
        assert len(list(folder.iterdir())) == 2, "what the dead writer left is cleared away"
    assert found == sorted(found), "once renamed into place it stays"
    assert (found[0], found[-1]) == (2, 3)


def _save_with_little_room(folder: Path, limit: int, answer: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    # A write past the limit fails with EFBIG at the very byte, as one on a full disk fails with ENOSPC.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save(folder, 2, 2.0)
    except ArchbenchError as error:
        answer.send((type(error), str(error)))
    else:
        answer.send((None, ""))


@pytest.mark.parametrize("limit", [0, 100, 3000, 6500, 8000, 16000], ids=lambda limit: f"{limit} bytes")
def test_no_room_is_a_storage_error_and_the_last_checkpoint_is_intact(tmp_path: Path, limit: int) -> None:
    save(tmp_path, 1, 1.0)
    receiver, sender = FORKSERVER.Pipe(duplex=False)
    process = FORKSERVER.Process(target=_save_with_little_room, args=(tmp_path, limit, sender))
    process.start()
    kind, message = receiver.recv()
    process.join(60)
    assert process.exitcode == 0
    assert kind is StorageError
    assert "step-00000002" in message
    assert "step-00000001 is intact" in message
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"], "the space is given back"


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        save(tmp_path / "file" / "checkpoints", 1)


def _save_as_a_stranger(folder: Path, answer: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write anywhere
    try:
        save(folder, 2, 2.0)
    except ArchbenchError as error:
        answer.send((type(error), str(error)))
    else:
        answer.send((None, ""))


def test_a_read_only_folder_is_a_storage_error_and_the_last_checkpoint_is_intact() -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, which strangers cannot reach
        folder = Path(name)
        save(folder, 1, 1.0)
        folder.chmod(0o555)
        receiver, sender = FORKSERVER.Pipe(duplex=False)
        process = FORKSERVER.Process(target=_save_as_a_stranger, args=(folder, sender))
        process.start()
        kind, message = receiver.recv()
        process.join(60)
        folder.chmod(0o755)
        assert kind is StorageError
        assert "Permission denied" in message
        assert "step-00000001 is intact" in message
        checkpoint = load_latest(folder)
        assert checkpoint is not None
        assert checkpoint.step == 1


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_checkpoint_runs_no_code_even_if_its_checksums_are_right(tmp_path: Path) -> None:
    newest = save(tmp_path, 1)
    marker = tmp_path / "ran"
    torch.save({"optimizer": Malicious(marker)}, newest / "training.pt")
    manifest = unsealed(json.loads((newest / "manifest.json").read_text()))
    content = (newest / "training.pt").read_bytes()
    manifest["files"]["training.pt"] = {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
    (newest / "manifest.json").write_text(sealed(manifest))
    with pytest.raises(CheckpointError, match="runs no code"):
        load_latest(tmp_path)
    assert not marker.exists()
