"""Datasets: tokens are what the tokenizer says, checked against the bytes, and cached without being trusted."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from archbench.child.pool import Pool
from archbench.config import DataConfig
from archbench.data.dataset import prepare
from archbench.data.token_file import TokenFile
from archbench.errors import StorageError
from forked_children import forked_children

HARD = "naïve 👩‍👩‍👧‍👦\r\n\0 漢字 e\u0301 <|endoftext|>\n"


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.txt").write_bytes(f"document {number} {HARD * 3}".encode())
    return str(folder)


def test_training_documents_stand_after_separators_and_validation_documents_alone(corpus: str, tmp_path: Path) -> None:
    data = prepare(DataConfig(corpus=corpus, tokenizer="byte"), cache=tmp_path)
    texts = [(Path(corpus) / f"{number}.txt").read_bytes() for number in range(10)]
    stream = [token for text in texts[:9] for token in (256, *text)]
    assert data.train.tolist() == stream
    assert [bytes(document.tokens.tolist()) for document in data.validation] == texts[9:]
    assert [(document.name, document.n_bytes) for document in data.validation] == [("9.txt", len(texts[9]))]
    assert (data.corpus.to_bytes("train"), data.corpus.to_bytes("validation")) == (b"".join(texts[:9]), texts[9])


@pytest.mark.parametrize("spec", ["byte", "bpe:300"])
def test_token_bytes_add_up_to_raw_bytes(corpus: str, tmp_path: Path, spec: str) -> None:
    data = prepare(DataConfig(corpus=corpus, tokenizer=spec), cache=tmp_path)
    lengths = np.array([len(token) for token in data.tokenizer.token_bytes() or ()])
    assert data.lossless
    assert lengths[data.train].sum() == len(data.corpus.to_bytes("train"))
    assert [lengths[document.tokens].sum() for document in data.validation] == [d.n_bytes for d in data.validation]


def test_a_tokenizer_that_drops_bytes_is_recorded_as_such(corpus: str, tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "document": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    config = DataConfig(corpus=corpus, tokenizer=f"file:{tmp_path / 'words.json'}")
    assert [prepare(config, cache=tmp_path).lossless for _ in ("made", "cached")] == [False, False]


def test_tokens_are_memory_mapped_in_the_smallest_type_that_fits(tmp_path: Path) -> None:
    data = prepare(DataConfig(corpus="shakespeare", tokenizer="byte"), cache=tmp_path)
    assert isinstance(data.train, np.memmap)
    assert data.train.dtype == np.uint16


def test_tokens_are_made_once(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(corpus=corpus, tokenizer="bpe:300")
    first = prepare(config, cache=tmp_path)
    monkeypatch.setattr(TokenFile, "write", None)
    again = prepare(config, cache=tmp_path)
    assert again.train.tolist() == first.train.tolist()
    assert again.lossless == first.lossless


def test_other_text_or_another_split_finds_no_cached_tokens(corpus: str, tmp_path: Path) -> None:
    def lengths(fraction: float) -> tuple[int, int]:
        data = prepare(
            DataConfig(corpus=corpus, tokenizer="byte", validation_fraction=fraction), cache=tmp_path / "cache"
        )
        return len(data.train), len(data.validation)

    first = lengths(0.1)
    assert lengths(0.3)[1] == 3
    (Path(corpus) / "0.txt").write_bytes(b"changed")
    assert lengths(0.1)[0] < first[0]


@pytest.mark.parametrize("damage", ["flip", "truncate", "record", "an end"])
def test_damaged_tokens_are_made_again_and_it_is_said(
    corpus: str, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(corpus=corpus, tokenizer="byte")
    expected = prepare(config, cache=tmp_path).train.tolist()
    (tokens,) = tmp_path.glob("tokens/*.npy")
    content = bytearray(tokens.read_bytes())
    content[-7] ^= 1
    if damage == "record":
        tokens.with_suffix(".json").write_text("{")
    elif damage == "an end":
        record = tokens.with_suffix(".json").read_text()
        tokens.with_suffix(".json").write_text(record.replace('"lossless": true', '"lossless": false'))
    else:
        tokens.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    assert prepare(config, cache=tmp_path).train.tolist() == expected
    assert "damaged" in caplog.text
    assert str(tokens) in caplog.text


def test_processes_may_prepare_the_same_data_at_once(tmp_path: Path, corpus: str) -> None:
    config = DataConfig(corpus=corpus, tokenizer="bpe:300")
    with forked_children(), Pool(3, culprit="the data") as pool:
        for number in range(3):
            pool.call(str(number), partial(prepare, cache=tmp_path), config)
        made = []
        while pool.running:
            if (ended := pool.ended(10.0)) is not None:
                made.append(ended.result)
    assert len(made) == 3
    assert len({data.train.tobytes() for data in made}) == 1
    assert len(list((tmp_path / "tokens").iterdir())) == 2, "the tokens and their record, and nothing half-written"


def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, pathlib; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "  # stands in for the disk's end
        "from archbench.config import DataConfig; from archbench.data.dataset import prepare; "
        "prepare(DataConfig(corpus='shakespeare', tokenizer='byte'), cache=pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "StorageError: cache folder" in done.stderr
    assert "Free space" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(os.name == "nt", reason="needs /dev/null")
def test_a_cache_that_cannot_be_written_names_the_way_out(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", "/dev/null/cache")
    with pytest.raises(StorageError, match=r"/dev/null/cache.*set ARCHBENCH_CACHE"):
        prepare(DataConfig(corpus=corpus, tokenizer="byte"))
