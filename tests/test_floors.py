"""Floors: n-grams that are probabilities and that a written-out count agrees with, and compressors as published."""

from __future__ import annotations

import bz2
import os
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from archbench.config import DataConfig
from archbench.data import corpora
from archbench.data.corpora import load_corpus
from archbench.data.dataset import prepare
from archbench.errors import DataError
from archbench.measure import text_floors
from archbench.measure.text_floors import COMPRESSORS, byte_ngrams, compressed_bits_per_byte, floors, floors_of

EMBEDDED = Path(corpora.__file__).with_name("embedded")
DATA = os.environ.get("ARCHBENCH_DATA", "")


def probability(train: bytes, history: bytes, byte: int) -> float:
    """Interpolated Witten-Bell by counting, one probability at a time."""
    if len(history) == 0:
        lower, starts = 1 / 256, range(len(train))
    else:
        lower = probability(train, history[1:], byte)
        starts = range(len(history), len(train))
    followers = [train[i] for i in starts if train[i - len(history) : i] == history]
    kinds = len(set(followers))
    return (followers.count(byte) + kinds * lower) / (len(followers) + kinds) if followers else lower


def test_ngrams_are_the_formula_counted_out() -> None:
    train, text = b"abracadabra, abracadabra! cadabra", b"bra abra, zcada"
    for n, found in enumerate(byte_ngrams(train, text, order=5)):
        expected = [probability(train, text[max(0, i - n + 1) : i], text[i]) for i in range(len(text))]
        assert found == pytest.approx(expected if n else [1 / 256] * len(text))


@pytest.mark.parametrize("history", [b"", b"t", b"the ", b"\0\0\0\0", b"zqxj", b"And "])
def test_probabilities_of_the_next_byte_sum_to_one(history: bytes) -> None:
    train = load_corpus("shakespeare").splits["train"][0].text[:3000].encode()
    totals = np.zeros(6)
    for byte in range(256):
        totals += [found[-1] for found in byte_ngrams(train, history + bytes([byte]), order=5)]
    assert totals == pytest.approx(np.ones(6), abs=1e-12)


def test_longer_histories_beat_shorter_ones_on_real_text_within_seconds() -> None:
    corpus = load_corpus("shakespeare")
    start = time.process_time()
    found = floors(corpus.to_bytes("train"), corpus.blocks("validation"))
    seconds = time.process_time() - start
    assert found["fivegram"] < found["bigram"] < found["unigram"] < 8
    assert found["bz2"] < found["xz"] < found["zlib"] < found["bigram"]
    expected = {"unigram": 4.776, "bigram": 3.647, "fivegram": 2.568}
    assert {name: round(found[name], 3) for name in expected} == expected
    assert seconds < 6  # 0.5 s here; the phase must not notice it


def assert_known(data: bytes, expected: list[float]) -> None:
    found = {name: compressed_bits_per_byte(data, name) for name in COMPRESSORS}
    assert found["zlib"] == pytest.approx(expected[0], rel=0.02)  # some Pythons are built with zlib-ng
    assert [round(found[name], 3) for name in ("bz2", "xz")] == expected[1:]


@pytest.mark.parametrize(
    ("file", "expected"),
    [("shakespeare_train.txt", [3.195, 2.425, 2.687]), ("python_stdlib.txt", [2.014, 1.695, 1.662])],
)
def test_compressors_give_the_known_sizes(file: str, expected: list[float]) -> None:
    assert_known((EMBEDDED / file).read_bytes(), expected)


@pytest.mark.skipif(not DATA, reason="ARCHBENCH_DATA is not set: no tinyshakespeare here")
def test_compressors_give_the_known_sizes_of_tinyshakespeare() -> None:
    assert_known(Path(DATA, "tinyshakespeare", "input.txt").read_bytes(), [3.112, 2.356, 2.614])


def test_texts_shorter_than_a_history_have_floors_too() -> None:
    assert all(value > 0 for value in floors(b"ab", [b"a"]).values())


def test_without_a_text_to_count_in_there_are_compressors_alone() -> None:
    assert floors(None, [b"a ", b"text"]) == {name: compressed_bits_per_byte(b"a text", name) for name in COMPRESSORS}


def test_an_empty_split_has_no_floors() -> None:
    with pytest.raises(DataError, match="empty"):
        floors(b"text", [])


def test_a_long_text_is_counted_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    train = load_corpus("shakespeare").splits["train"][0].text[:20_000].encode()
    validation = train[5_000:9_000]
    whole = floors(train, [validation])
    monkeypatch.setattr(text_floors, "AT_ONCE", 700)
    monkeypatch.setattr(text_floors, "COUNTED_AT_ONCE", 3000)
    parts = [validation[start : start + 900] for start in range(0, len(validation), 900)]
    assert floors(train, parts) == pytest.approx(whole, rel=1e-12)
    one_shot = {"zlib": zlib.compress(validation, 9), "bz2": bz2.compress(validation, 9)}
    assert {name: whole[name] * len(validation) / 8 for name in one_shot} == {
        name: len(data) for name, data in one_shot.items()
    }


def test_floors_are_made_once_for_a_text_and_again_if_what_is_kept_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("some lines of text\n" * 200)
    data = prepare(DataConfig(corpus=str(tmp_path / "text.txt"), tokenizer="byte"))
    found = floors_of(data, counting=True)
    assert found == floors(data.corpus.to_bytes("train"), data.corpus.blocks("validation"))
    assert set(floors_of(data, counting=False)) == set(COMPRESSORS)
    monkeypatch.setattr(text_floors, "_count", None)
    assert floors_of(data, counting=True) == found
    monkeypatch.undo()
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path / "cache"))
    for path in (tmp_path / "cache").glob("texts/*.json"):
        path.write_text("{" + path.read_text())
    assert floors_of(data, counting=True) == found
