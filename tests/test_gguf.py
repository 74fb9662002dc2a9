"""A GGUF file gives the model, the tokenizer and the numbers that the same model has in transformers' layout."""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import archbench
from archbench import read_results
from archbench.cli.app import main
from archbench.data import text_cuts
from archbench.data.byte_tokenizer import Tokenizer
from archbench.data.gguf import read_gguf
from archbench.data.tokenizers import load_tokenizer
from archbench.errors import CheckpointError, DataError
from archbench.training.checkpoints import load_weights
from archbench.training.published_config import read_published
from forked_children import forked_children
from small_runs import value, with_small_corpus

pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
from gguf_files import VOCABULARY, published_llama, write_gguf, write_llama  # noqa: E402

PRE_TOKENIZERS = sorted(VOCABULARY["ids"])
Kind = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def model() -> Any:
    return published_llama(tie_word_embeddings=True)


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf", model)


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_in_the_file_has_the_logits_of_transformers(tied: bool, tmp_path: Path) -> None:
    published = published_llama(tie_word_embeddings=tied, head_dim=None if tied else 12)
    path = write_llama(
        tmp_path / "model.gguf", published, metadata={"llama.attention.key_length": None if tied else 12}
    )
    llama = archbench.load("llama")
    found = read_published(path)
    assert found is not None
    config = llama.import_config(found.fields)
    assert config == llama.import_config(published.config.to_dict()), "as from its config.json"
    ours = llama.build(config).eval()
    ours.load_state_dict(llama.import_weights(load_weights(path), config))
    tokens = torch.randint(config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), published(tokens).logits, atol=1e-4, rtol=0)


def test_every_type_is_read_at_its_place_and_dequantised_as_the_package_does(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values = {
        "f32.1d": generator.standard_normal(7, dtype=np.float32),
        "f32.2d": generator.standard_normal((3, 5), dtype=np.float32),
        "f16": generator.standard_normal((3, 5)).astype(np.float16),
    }
    quantised: dict[str, Any] = {}
    for kind in (Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0):
        exact = generator.standard_normal((4, 96), dtype=np.float32)
        quantised[kind.name] = (gguf.quants.quantize(exact, kind), kind)
        rounding = 0.2 if kind.name.startswith("Q4") else 0.12
        assert np.abs(gguf.quants.dequantize(*quantised[kind.name]) - exact).max() < rounding * np.abs(exact).max()
    for kind in (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        # Any bytes are a block, and below 0x40 none of its half-precision scales is infinite.
        quantised[kind.name] = (generator.integers(0x40, size=(4, 2 * size), dtype=np.uint8), kind)
        assert gguf.quants.dequantize(*quantised[kind.name]).shape == (4, 2 * block)
    file = read_gguf(write_gguf(tmp_path / "types.gguf", {}, {**values, **quantised}))
    for name, expected in values.items():
        np.testing.assert_array_equal(file.read(name), expected.astype(np.float32))
    for name, (data, kind) in quantised.items():
        np.testing.assert_array_equal(file.read(name), gguf.quants.dequantize(data, kind))
        assert file.read(name).dtype == np.float32


def with_tokenizer(path: Path, **changes: Any) -> Tokenizer:
    """The tokenizer of :data:`VOCABULARY` in a file of its own, some of its keys changed."""
    keys = {"model": "gpt2", "pre": "gpt-2", **{key: VOCABULARY[key] for key in ("tokens", "token_type", "merges")}}
    metadata = {f"tokenizer.ggml.{key}": changed for key, changed in {**keys, **changes}.items()}
    write_gguf(path / "tokenizer.gguf", metadata, {})
    return load_tokenizer(f"gguf:{path / 'tokenizer.gguf'}")


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_texts_have_the_ids_of_llama_cpp_and_their_bytes_add_up(pre: str, tmp_path: Path) -> None:
    tokenizer = with_tokenizer(tmp_path, pre=pre)
    tokenizer.save(tmp_path / "saved")
    saved = load_tokenizer(f"saved:{tmp_path / 'saved'}")
    added = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert {token["content"] for token in added if token["special"]} == {"<|endoftext|>", "<|begin|>"}
    table = tokenizer.token_bytes()
    assert table is not None
    assert tokenizer.lossless
    assert tokenizer.vocab_size == len(VOCABULARY["tokens"])
    for text, expected in zip(VOCABULARY["texts"], VOCABULARY["ids"][pre], strict=True):
        ids = tokenizer.encode(text).tolist()
        assert ids == expected, text
        assert b"".join(table[i] for i in ids) == text.encode()
        assert saved.encode(text).tolist() == expected
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("pre", VOCABULARY["ids"])
def test_a_long_text_read_in_pieces_has_the_ids_it_has_whole(
    pre: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = [kind if kind == 3 else 1 for kind in VOCABULARY["token_type"]]  # others match across any cut
    tokenizer = with_tokenizer(tmp_path, pre=pre, token_type=ordinary)
    text = "".join(f"{text}{i}\n{text}\n\n" for i, text in enumerate(VOCABULARY["texts"] * 3))
    whole = tokenizer.encode(text).tolist()
    monkeypatch.setattr(text_cuts, "PIECE", 50)
    pieces = [piece for batch in tokenizer.batches([text]) for piece in batch]
    assert tokenizer.encode(text).tolist() == whole
    assert len(pieces) > 20


def test_the_separator_is_what_the_model_saw_before_a_text(tmp_path: Path) -> None:
    index = VOCABULARY["tokens"].index
    end, begin = index("<|endoftext|>"), index("<|begin|>")
    ids = {"bos_token_id": begin, "eos_token_id": begin}
    assert with_tokenizer(tmp_path, **ids).separator == end
    assert with_tokenizer(tmp_path, **ids, add_bos_token=True).separator == begin
    assert with_tokenizer(tmp_path, **ids, pre="llama-bpe").separator == begin, "as llama.cpp has it by default"
    assert with_tokenizer(tmp_path, **ids, pre="llama-bpe", add_bos_token=False).separator == end
    nameless = [token.replace("<|endoftext|>", "<unk>") for token in VOCABULARY["tokens"]]
    assert with_tokenizer(tmp_path, **ids, tokens=nameless).separator == begin, "its eos"


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"model": "llama", "pre": None}, "its kind is SentencePiece"),
        ({"model": None}, "its kind is None"),
        ({"pre": "tekken"}, "its pre-tokenizer is 'tekken', but archbench knows default, gpt-2, llama-bpe"),
        ({"pre": None}, "its pre-tokenizer is None"),
        ({"tokens": None}, "its tokens and merges do not form a tokenizer"),
        ({"merges": ["a nowhere"]}, "its tokens and merges do not form a tokenizer"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_says_why_and_what_to_name_instead(
    changes: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=cause) as caught:
        with_tokenizer(tmp_path, **changes)
    assert "--tokenizer file:tokenizer.json" in str(caught.value)


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    def write(file: Path, folder: Path) -> Path:
        path = folder / "damaged.gguf"
        path.write_bytes(change(file.read_bytes()))
        return path

    return write


def changed(**changes: Any) -> Callable[[Path, Path], Path]:
    def write(file: Path, folder: Path) -> Path:
        return write_llama(folder / "changed.gguf", published_llama(tie_word_embeddings=True), **changes)

    return write


def torn(content: bytes) -> bytes:
    """A count of keys that no file can hold."""
    return content[:16] + struct.pack("<Q", 1 << 60) + content[24:]


BAD: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "empty": (damaged(lambda content: b""), "it cannot be read as GGUF"),
    "magic": (damaged(lambda content: b"GGML" + content[4:]), "it cannot be read as GGUF .*magic"),
    "magic alone": (damaged(lambda content: content[:4]), "it cannot be read as GGUF"),
    "header cut": (damaged(lambda content: content[:3000]), "it cannot be read as GGUF"),
    "tensors cut": (damaged(lambda content: content[:-100]), "it cannot be read as GGUF .*Get the file again"),
    "endless": (damaged(torn), "it cannot be read as GGUF"),
    "version 1": (
        damaged(lambda content: content[:4] + struct.pack("<I", 1) + content[8:]),
        "it cannot be read as GGUF .*version 1",
    ),
    "big-endian": (
        lambda file, folder: write_gguf(folder / "big.gguf", {}, {}, byte_order=gguf.GGUFEndian.BIG),
        "byte order of another machine",
    ),
    "split": (changed(metadata={"split.count": 3}), "it is one of 3 parts"),
    "other architecture": (changed(architecture="qwen2"), "general.architecture: it is 'qwen2'. Supported: llama."),
    "no size": (changed(metadata={"llama.block_count": None}), "metadata llama.block_count: it is missing"),
    "size is a text": (changed(metadata={"llama.embedding_length": "big"}), "embedding_length: it is 'big'"),
    "experts": (changed(metadata={"llama.expert_count": 8}), "llama.expert_count: it is 8, .* Mixtral"),
    "sizes by layer": (changed(metadata={"llama.feed_forward_length": [48, 32]}), "feed_forward_length: it is"),
    "unknown key": (changed(metadata={"llama.logit_scale": 0.5}), "metadata llama.logit_scale: it is 0.5"),
    "partial rotation": (changed(metadata={"llama.rope.dimension_count": 4}), "it is 4, but a head is 8 wide"),
    "scaled rotation": (
        changed(metadata={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}),
        "field rope_scaling: it is .*yarn",
    ),
    "no embedding": (changed(leave_out=("token_embd.weight",)), r"tensor token_embd\.weight: it is missing"),
    "no such file": (lambda file, folder: folder / "nowhere.gguf", "there is no such file or folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_one_paragraph_before_anything_runs(
    case: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, cause = BAD[case]
    path = write(file, tmp_path)
    monkeypatch.chdir(with_small_corpus(tmp_path))
    arguments = ["--weights", str(path), "--tokenizer", "byte", "--corpus", "small.txt", "--set", "context_length=32"]
    code = main(["run", "llama", "--profile", "smoke", "--quiet", *arguments])
    said = capsys.readouterr()
    assert code == (2 if case == "no such file" else 6), said.err
    assert said.out == ""
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    assert str(path) in said.err
    assert re.search(cause, said.err), said.err
    assert not list(tmp_path.glob("results/*/"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"metadata": {"llama.rope.scaling.factor": 2.0}}, "rope_scaling: it is .*linear"),  # llama.cpp's default
        ({"more": {"rope_freqs.weight": torch.ones(4)}}, "rope_scaling: it is .*llama3"),
        ({"more": {"blk.0.attn_q.bias": torch.ones(32)}}, "attention_bias: it is 'True'"),
        ({"more": {"blk.0.ffn_up.bias": torch.ones(48)}}, "mlp_bias: it is 'True'"),
    ],
)
def test_what_only_some_llamas_have_is_refused(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    found = read_published(write_llama(tmp_path / "model.gguf", published_llama(), **changes))
    assert found is not None
    with pytest.raises(CheckpointError, match=f"field {field}"):
        archbench.load("llama").import_config(found.fields)


def test_a_scaling_that_is_off_changes_nothing(tmp_path: Path) -> None:
    published = published_llama()
    for keys in ({"type": "none", "factor": 4.0}, {"type": "linear", "factor": 1.0}, {"factor": 0.0}):
        metadata = {f"llama.rope.scaling.{key}": setting for key, setting in keys.items()}
        found = read_published(write_llama(tmp_path / "model.gguf", published, metadata=metadata))
        assert found is not None
        llama = archbench.load("llama")
        assert llama.import_config(found.fields) == llama.import_config(published.config.to_dict())


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"leave_out": ("blk.1.ffn_up.weight",)}, r"tensor model\.layers\.1\.mlp\.up_proj\.weight: it is missing"),
        ({"more": {"blk.2.ffn_up.weight": torch.ones(48, 32)}}, r"blk\.2\.ffn_up\.weight: transformers'"),
        (
            {"more": {"blk.0.attn_sub_norm.weight": torch.ones(32)}},
            r"blk\.0\.attn_sub_norm\.weight: transformers'",
        ),
    ],
)
def test_tensors_have_to_be_those_of_the_configuration(changes: dict[str, Any], cause: str, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "model.gguf", published_llama(tie_word_embeddings=True), **changes)
    llama, found = archbench.load("llama"), read_published(path)
    assert found is not None
    with pytest.raises(CheckpointError, match=cause):
        llama.import_weights(load_weights(path), llama.import_config(found.fields))


def test_a_type_that_the_package_cannot_dequantise_is_named(tmp_path: Path) -> None:
    file = read_gguf(write_gguf(tmp_path / "types.gguf", {}, {"ids": np.arange(4, dtype=np.int32)}))
    with pytest.raises(CheckpointError, match=r"tensor ids: it is of type I32, which the package gguf does not"):
        file.read("ids")


def test_without_the_package_the_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"pip install 'archbench\[gguf\]'"):
        load_weights(file)


def test_one_model_scores_the_same_from_both_layouts_and_no_size_is_named(
    model: Any, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``archbench run llama --weights …``: a GGUF file, and the folder that transformers and tokenizers save."""
    model.save_pretrained(tmp_path / "tiny")
    tokenizer = load_tokenizer(f"gguf:{file}")
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").rename(tmp_path / "tiny" / "tokenizer.json")
    monkeypatch.chdir(with_small_corpus(tmp_path))
    text = Path("small.txt").read_text()[:3000]
    Path("small.txt").write_text(text)
    frames = {}
    for weights in (str(file), "tiny"):
        arguments = [
            "--weights", weights, "--corpus", "small.txt", "--phases", "quality", "--profile", "smoke",
            "--set", "context_length=48", "--threads", "1", "--unchecked", "--quiet",
        ]  # fmt: skip
        with forked_children():
            code, said = main(["run", "llama", *arguments]), capsys.readouterr()
        assert code == 0, said.err
        found = read_results(tmp_path / "results")
        frames[weights] = found[~found.run_id.isin([run for frame in frames.values() for run in frame.run_id])]
        name = "tiny.F32" if weights == str(file) else "tiny"
        assert set(frames[weights].preset) == {f"published:{name}"}
        assert f"llama published:{name}: {sum(p.numel() for p in model.parameters()):,} parameters" in said.out
        assert "bits per byte" in said.out
        assert f"Scored: the whole text of {tmp_path / 'small.txt'}, {len(text.encode()):,} bytes." in said.out
        assert set(frames[weights].context_length) == {48}, "--set wins over the file"
        assert set(frames[weights].lossless) == {True}
        assert frames[weights].tokens_seen.isna().all(), "nobody counted them"
    of_file, of_folder = frames.values()
    assert value(of_file, "quality", "tokens_scored") == value(of_folder, "quality", "tokens_scored")
    assert value(of_file, "quality", "loss") == pytest.approx(value(of_folder, "quality", "loss"), rel=1e-6)
    (run,) = (tmp_path / "results").glob(f"{of_file.run_id.iloc[0]}/config.json")
    assert '"preset": "published:tiny.F32"' in run.read_text()
    saved = load_tokenizer(f"saved:{run.parent / 'tokenizer'}")
    assert saved.name == f"gguf:{file}"
    assert saved.encode("First Citizen: 1599").tolist() == tokenizer.encode("First Citizen: 1599").tolist()
