"""The published GPT-2 and GPT-1 vocabularies give the published ids through ``file:``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from archbench.data.tokenizers import load_tokenizer

DATA = os.environ.get("ARCHBENCH_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="ARCHBENCH_DATA is not set: no published vocabularies here")


def merges(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")[1:]  # after "#version: 0.2"
    return [(pair[0], pair[1]) for pair in map(str.split, lines) if len(pair) == 2]


def test_gpt2_counts_tinyshakespeare_as_nanogpt_does(tmp_path: Path) -> None:
    folder = Path(DATA, "tokenizers", "gpt2")
    vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges(folder / "vocab.bpe")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "gpt2.json"))
    loaded = load_tokenizer(f"file:{tmp_path / 'gpt2.json'}")
    text = Path(DATA, "tinyshakespeare", "input.txt").read_bytes().decode()
    cut = int(0.9 * len(text))  # nanoGPT's data/shakespeare/prepare.py
    assert len(loaded.encode(text[:cut])) == 301_966
    assert len(loaded.encode(text[cut:])) == 36_059
    assert (loaded.vocab_size, loaded.separator, loaded.lossless) == (50_257, 50_256, True)


def test_gpt1_gives_the_published_ids_and_is_not_lossless(tmp_path: Path) -> None:
    folder = Path(DATA, "tokenizers", "gpt1")
    vocabulary = json.loads((folder / "encoder_bpe_40000.json").read_text(encoding="utf-8"))
    model = models.BPE(vocabulary, merges(folder / "vocab_40000.bpe"), unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.save(str(tmp_path / "gpt1.json"))
    loaded = load_tokenizer(f"file:{tmp_path / 'gpt1.json'}")
    assert loaded.encode("the president is").tolist() == [481, 4735, 544]
    assert loaded.encode("The  President\nis").tolist() == [481, 4735, 544], "case and spacing are lost"
    assert not loaded.lossless
    assert loaded.vocab_size == 40_478, "the published model has no row for one more id"
