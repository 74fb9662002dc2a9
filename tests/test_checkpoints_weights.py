"""Published weights are read from every usual layout, and no file can make archbench run code."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from archbench.errors import CheckpointError
from archbench.training.checkpoints import load_weights
from archbench.training.weights import digest_of, read_weights, require_numbers, write_weights

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4), "c": torch.tensor([1, 2])}


def same(weights: dict[str, Tensor], expected: dict[str, Tensor] = WEIGHTS) -> bool:
    return weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)


def write_shards(folder: Path, suffix: str) -> None:
    shards = [f"model-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    first, second = {"a.weight": WEIGHTS["a.weight"]}, {name: WEIGHTS[name] for name in ("b.weight", "c")}
    for shard, tensors in zip(shards, (first, second), strict=True):
        save_file(tensors, folder / shard) if suffix == "safetensors" else torch.save(tensors, folder / shard)
    placed = {name: shards[0] if name in first else shards[1] for name in WEIGHTS}
    index = "model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def test_files_and_folders_of_every_layout_give_the_same_weights(tmp_path: Path) -> None:
    layouts = {name: tmp_path / name for name in ("one", "bin", "shards", "bin-shards")}
    for folder in layouts.values():
        folder.mkdir()
    save_file(WEIGHTS, layouts["one"] / "model.safetensors")
    torch.save(WEIGHTS, layouts["bin"] / "pytorch_model.bin")
    write_shards(layouts["shards"], "safetensors")
    write_shards(layouts["bin-shards"], "bin")
    torch.save(WEIGHTS, tmp_path / "weights.pt")
    torch.save(WEIGHTS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    files = [layouts["one"] / "model.safetensors", tmp_path / "weights.pt", tmp_path / "old.pt"]
    for path in [*layouts.values(), *files]:
        assert same(load_weights(path)), path


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.arange(12.0).view(3, 4))
        self.register_buffer("slice", self.table[1:, ::2])


@pytest.mark.parametrize("writer", [write_weights, save_model], ids=["archbench", "safetensors"])
def test_tied_weights_are_stored_once_and_read_under_both_names(tmp_path: Path, writer: object) -> None:
    module = Tied()
    path = tmp_path / "model.safetensors"
    if writer is save_model:
        module.slice = module.slice.clone()
        save_model(module, str(path))
    else:
        write_weights(module.state_dict(), path)
    assert same(load_weights(path), module.state_dict())
    assert path.stat().st_size < 2 * module.embedding.weight.nbytes + 500


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["evil.bin", "evil.pt", "evil.pkl", "pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("form", ["pickle", "torch", "old torch"])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, name: str, form: str) -> None:
    marker = tmp_path / "ran"
    content = {"a.weight": torch.ones(2), "b": Malicious(marker)}
    path = tmp_path / name
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    for asked in [path, tmp_path] if name in ("pytorch_model.bin", "model.safetensors") else [path]:
        with pytest.raises(CheckpointError) as caught:
            load_weights(asked)
        assert str(path) in str(caught.value)
        assert not marker.exists()


def test_an_index_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(WEIGHTS, tmp_path / "secret.safetensors")
    index = {"weight_map": {"a.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_weights(folder)


def test_unusable_weights_say_which_file_and_why(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    garbage, nested, cut = tmp_path / "garbage.bin", tmp_path / "nested.pt", tmp_path / "cut.safetensors"
    garbage.write_bytes(os.urandom(500))
    torch.save({"model": WEIGHTS}, nested)
    save_file(WEIGHTS, cut)
    cut.write_bytes(cut.read_bytes()[:-3])
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    write_shards(lacking, "safetensors")
    (lacking / "model-00002-of-00002.safetensors").unlink()
    cases = {
        tmp_path / "nowhere": "no such file",
        empty: "it holds none of model.safetensors",
        garbage: "garbage.bin",
        nested: "not a flat mapping",
        cut: "cannot be read as safetensors",
        lacking: "model-00002-of-00002.safetensors: there is no such file",
    }
    for path, cause in cases.items():
        with pytest.raises(CheckpointError, match=cause) as caught:
            load_weights(path)
        assert path.name in str(caught.value)


def test_a_name_that_is_there_twice_and_a_shard_above_the_folder_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    header = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="'a' is there twice"):
        read_weights(file)
    index = tmp_path / "model.safetensors.index.json"
    for shard in ("..", ".", "", "model.safetensors.index.json", "../model.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(CheckpointError, match="outside its folder"):
            read_weights(index)


def test_nan_in_weights_is_said_and_their_digest_is_of_every_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*'b' holds NaN"):
        require_numbers({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}, tmp_path / "model.safetensors")
    write_shards(tmp_path, "safetensors")
    before = digest_of(tmp_path)
    assert digest_of(tmp_path) == before
    shard = sorted(tmp_path.glob("*-of-*"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert digest_of(tmp_path) != before
