"""Shards of tokens: the same data as the text they were made from, and one error for each way to be no shard."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from archbench.config import DataConfig
from archbench.data import text_index
from archbench.data.batches import BatchSampler
from archbench.data.dataset import Dataset, prepare
from archbench.data.shard_file import ShardFile
from archbench.errors import DataError, UsageError
from archbench.measure.scoring import score
from command_line import archbench

TEXTS = [f"document {number}, naïve 漢字: {'very ' * (number % 7)}long\n" * 5 for number in range(40)]


def write_bin(path: Path, tokens: np.ndarray, magic: int = 20240520, version: int = 1) -> None:
    dtype = np.uint16 if version == 1 else np.uint32
    path.write_bytes(struct.pack("<256i", magic, version, len(tokens), *[0] * 253) + tokens.astype(dtype).tobytes())


def write_npy(path: Path, tokens: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), tokens.astype(np.uint16))


def write_wide(path: Path, tokens: np.ndarray) -> None:
    write_bin(path, tokens, 20240801, 7)


def stream(texts: list[str]) -> np.ndarray:
    return np.concatenate([np.array([256, *text.encode()]) for text in texts])


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four of training and one of validation; those of training end in the middle of documents."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, part in enumerate(np.array_split(stream(TEXTS[:36]), 4)):
        write_bin(folder / f"my_train_{number:06d}.bin", part)
    write_bin(folder / "my_val_000000.bin", stream(TEXTS[36:]))
    return folder


def load(folder: Path | str, tokenizer: str = "byte", **more: object) -> Dataset:
    data = DataConfig.model_validate({"corpus": str(folder), "tokenizer": tokenizer, **more})
    return prepare(data, cache=Path(folder).parent / "cache")


@pytest.mark.parametrize("write", [write_bin, write_npy, write_wide])
def test_shards_are_the_text_that_they_were_made_from(write: Callable[..., None], tmp_path: Path) -> None:
    texts, folder = tmp_path / "texts", tmp_path / "shards"
    texts.mkdir()
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (texts / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    expected = load(texts)
    held = len(expected.validation)
    for number, part in enumerate(np.array_split(stream(TEXTS[:-held]), 4)):
        write(folder / f"my_train_{number:06d}.bin", part)
    write(folder / "my_val_000000.bin", stream(TEXTS[-held:]))
    found = load(folder)
    assert (found.lossless, len(found.train)) == (True, len(expected.train))
    for sampling in ("epochs", "random"):
        pair = [
            BatchSampler(data.train, batch_size=5, context_length=64, seed=2, sampling=sampling).batch(40)
            for data in (found, expected)
        ]
        assert torch.equal(pair[0].inputs, pair[1].inputs)
    assert [(one.tokens.tolist(), one.n_bytes) for one in found.validation] == [
        (one.tokens.tolist(), one.n_bytes) for one in expected.validation
    ]
    for split in ("train", "validation"):  # what n-grams and compressors read
        assert found.corpus.to_bytes(split) == expected.corpus.to_bytes(split)


def test_the_last_share_is_held_out_from_a_separator_on_where_no_shard_is_for_validation(shards: Path) -> None:
    (shards / "my_val_000000.bin").unlink()
    data = load(shards, validation_fraction=0.3)
    whole = stream(TEXTS[:36])
    held = sum(len(one.tokens) + 1 for one in data.validation)
    assert held / len(whole) == pytest.approx(0.3, rel=0.1)
    assert np.array_equal(data.train[: len(data.train)], whole[: len(data.train)])
    assert whole[len(data.train)] == 256
    kept = whole[len(data.train) :]
    assert np.concatenate([one.tokens for one in data.validation]).tolist() == kept[kept != 256].tolist()
    assert "% of the tokens" in data.corpus.held_out


def test_a_pattern_or_one_file_names_shards_too(shards: Path) -> None:
    expected = load(shards)
    assert load(f"{shards}/my_*.bin").train[:50].tolist() == expected.train[:50].tolist()
    assert len(load(shards / "my_train_000001.bin").train) < len(expected.train) / 4


class Uniform(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, 257)


def test_without_a_tokenizer_there_is_a_perplexity_and_no_bits_per_byte(shards: Path) -> None:
    data = load(shards, "ids:257")
    assert (data.lossless, data.validation_bytes, dict(data.corpus.splits)) == (None, None, {})
    result = score(Uniform(), data.validation, separator=data.tokenizer.separator, context_length=64)
    assert result.perplexity == pytest.approx(257)
    assert (result.bits_per_byte, result.bytes) == (None, None)
    with pytest.raises(DataError, match=r"ids:257.*knows no text"):
        data.tokenizer.encode("a")


@pytest.mark.parametrize("spec", ["ids:", "ids:1", "ids:ten", "ids:300:300", "ids:300:1:2"])
def test_a_number_of_ids_that_is_none_is_refused(spec: str, shards: Path) -> None:
    with pytest.raises(UsageError, match=spec):
        load(shards, spec)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def without_header(path: Path) -> None:
    stream(TEXTS).astype(np.uint16).tofile(path)


def large_id(path: Path) -> None:
    write_bin(path, np.array([256, 65, 300, 66]))


def wide(path: Path) -> None:
    write_wide(path, stream(TEXTS))


def empty(path: Path) -> None:
    write_bin(path, np.array([], dtype=int))


def negative(path: Path) -> None:
    path.write_bytes(struct.pack("<256i", 20240520, 1, -5, *[0] * 253))


def text(path: Path) -> None:
    path.write_bytes(b"some text\n" * 1000)


def floats(path: Path) -> None:
    path.unlink()
    np.save(path.with_suffix(".npy"), np.zeros(100))


def objects(path: Path) -> None:
    path.unlink()
    path.with_suffix(".npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': 'O'   " + bytes(2000))


DAMAGES: dict[Callable[[Path], None], str] = {
    cut: r"truncated: 2,\d+ tokens take .* bytes, and it has",
    cut_header: "truncated: a header has 1024 bytes",
    lengthen: "longer than it says",
    without_header: "begins with .* not with 20240520 and 1",
    large_id: "token 2 has the id 300, and the tokenizer 257 ids",
    wide: "two widths",
    empty: "no token",
    negative: "gives it -5 tokens",
    text: "begins with",
    floats: r"float64 of shape \(100,\)",
    objects: "no array of numpy",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_one_error_that_names_the_shard(damage: Callable[[Path], None], shards: Path) -> None:
    damage(shards / "my_train_000002.bin")
    with pytest.raises(DataError, match=rf"my_train_000002.*{DAMAGES[damage]}|{DAMAGES[damage]}.*my_train_000002"):
        load(shards)


def test_shards_without_a_name_for_training_and_a_tokenizer_that_needs_text_are_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="bpe:300 is trained on text"):
        load(shards, "bpe:300")
    for path in shards.glob("*train*"):
        path.unlink()
    with pytest.raises(DataError, match=r"none of its files \(1\) is for training"):
        load(shards)


def test_a_later_phase_reads_none_of_them_again_and_refuses_others(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_index, "_SETTLED", 0)
    first = load(shards)
    read = ShardFile.read
    monkeypatch.setattr(ShardFile, "read", None)
    again = load(shards)
    assert again.corpus.sha256 == first.corpus.sha256
    assert [one.n_bytes for one in again.validation] == [one.n_bytes for one in first.validation]
    monkeypatch.setattr(ShardFile, "read", read)
    write_bin(shards / "my_train_000001.bin", stream(TEXTS[:9]))
    config = DataConfig(corpus=str(shards), tokenizer="byte")
    with pytest.raises(DataError, match="not the one that the run began with"):
        prepare(config, cache=shards.parent / "cache", sha256=first.corpus.sha256)


def test_a_study_refuses_tokens_of_which_nobody_knows_the_bytes(shards: Path) -> None:
    where = ("--corpus", shards, "--tokenizer", "ids:257", "--out", shards.parent / "out")
    done = archbench("compare", "gpt1", "llama", "--profile", "smoke", *where, cwd=shards.parent)
    assert (done.returncode, "ids:257" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


@pytest.mark.slow
@pytest.mark.parametrize(("tokenizer", "known"), [("byte", True), ("ids:257", False)])
def test_a_run_on_shards(tokenizer: str, known: bool, shards: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    options = ("--profile", "smoke", "--phases", "train,quality,positions", "--tokenizer", tokenizer)
    done = archbench("run", "gpt1", *options, "--corpus", shards, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").glob("*.parquet")
    rows = {(row["phase"], row["metric"]): row["value"] for row in pq.read_table(results).to_pylist()}
    assert rows["quality", "perplexity"] > 1
    assert (rows["quality", "bits_per_byte"] is not None) == known
    assert (("quality", "floor_xz") in rows) == known
    assert ("Bits per byte are not known" in done.stdout + done.stderr) == (not known)
