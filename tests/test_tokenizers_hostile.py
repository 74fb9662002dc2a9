"""Tokenizer files that anybody may have written: one clear error, in seconds, in bounded memory, and no panic."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archbench.config import DataConfig
from archbench.data import tokenizer_trial, watched_encoding
from archbench.data.dataset import prepare
from archbench.data.tokenizers import load_tokenizer
from archbench.errors import DataError
from command_line import archbench
from forked_children import forked_children

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def definition(**changes: Any) -> dict[str, Any]:
    """A small tokenizer.json; keys with a dot change the model."""
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyzĠĊ", start=1)}
    model: dict[str, Any] = {
        "type": "BPE",
        "vocab": {"<unk>": 0, **letters},
        "merges": [["a", "b"]],
        "unk_token": "<unk>",
    }
    model["vocab"]["ab"] = len(model["vocab"])
    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": GPT2, "model": model}
    whole |= {"truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": None}
    for name, value in changes.items():
        part = model if name.startswith("model_") else whole
        part[name.removeprefix("model_")] = value
    return whole


def added(number: int, content: str) -> list[dict[str, Any]]:
    return [{"id": number, "content": content, **FLAGS}]


def charsmap(data: bytes) -> dict[str, str]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def nested(depth: int) -> str:
    text = json.dumps(definition(normalizer="HERE"))
    return text.replace('"HERE"', '{"type": "Sequence", "normalizers": [' * depth + "]}" * depth)


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "an id of four billion": (lambda: definition(model_vocab={"a": 0, "b": 4_000_000_000}), r"vocab.*b.*2097152"),
    "a negative id": (lambda: definition(model_vocab={"a": -1, "b": 0, "ab": 1}), r"vocab.*greater than or equal to 0"),
    "an id that is no number": (lambda: definition(model_vocab={"a": None, "b": 0}), "vocab"),
    "an id twice": (lambda: definition(model_vocab={"a": 1, "b": 0, "ab": 1}), r"'ab' has the id 1"),
    "an added id of four billion": (lambda: definition(added_tokens=added(4_000_000_000, "x")), r"added_tokens\.0\.id"),
    "an absurd added token": (lambda: definition(added_tokens=added(99, "x" * 100_000)), r"added_tokens\.0\.content"),
    "too many added tokens": (
        lambda: definition(added_tokens=[added(n, f"<{n}>")[0] for n in range(70_000)]),
        r"added_tokens.*65536",
    ),
    "a merge of unknown tokens": (lambda: definition(model_merges=[["a", "q1"]]), "vocabulary"),
    "random merges": (lambda: definition(model_dropout=0.1), r"dropout 0\.1"),
    "no vocabulary": (lambda: definition(model_vocab={}, model_merges=[], model_unk_token=None), "empty"),
    "no model": (lambda: {"version": "1.0"}, "model"),
    "a list": (lambda: [1, 2], "dictionary"),
    "a broken pattern": (lambda: definition(pre_tokenizer=split("(a")), "parenthesis"),
    "a huge pattern": (lambda: definition(pre_tokenizer=split("a|" * 10_000)), "20,000 characters"),
    "a repetition of repetitions": (lambda: definition(pre_tokenizer=split("(?:a{99999}){99999}")), "repeat|used it"),
    "a pattern that explodes": (lambda: definition(pre_tokenizer=split("(a+)+$")), r"panic|retry|took longer"),
    "a charsmap that is too short": (lambda: definition(normalizer=charsmap(b"\0\0\0")), "Precompiled"),
    "a charsmap that points outside": (
        lambda: definition(normalizer=charsmap(b"\x08\0\0\0\xff\xff\xff\xff\0\0\0\0")),
        "index|out of",
    ),
    "a replacement that explodes": (
        lambda: definition(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x" * 100_000}),
        "100,000 characters",
    ),
    "replacements of replacements": (
        lambda: definition(
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 4000}] * 4,
            }
        ),
        r"used it|memory",
    ),
    "millions of tokens": (lambda: '{"model": {"vocab": {' + '"a":1,' * 3_000_000 + '"b":2}}}', "no vocabulary of"),
    "millions of parts": (lambda: '{"model": {"vocab": [' + "{}," * 2_000_000 + "{}]}}", "no vocabulary of"),
    "a deep sequence": (lambda: nested(100), "recursion"),
    "a deeper sequence": (lambda: nested(100_000), "recursion|RecursionError"),
}


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forks instead of processes, and less patience with them."""
    monkeypatch.setattr(tokenizer_trial, "SECONDS", 3.0)
    monkeypatch.setattr(watched_encoding, "SECONDS", 3.0)
    with forked_children():
        yield


def written(folder: Path, content: Any) -> str:
    path = folder / "tokenizer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return f"file:{path}"


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_cannot_be_used_is_named_with_its_fault(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, says = HOSTILE[kind]
    with pytest.raises(DataError, match=rf"tokenizer\.json.*({says})") as raised:
        load_tokenizer(written(tmp_path, make()), cache=tmp_path)
    assert len(str(raised.value)) < 2000
    assert "panicked" not in capfd.readouterr().err


def test_a_file_larger_than_any_published_one_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(DataError, match=r"tokenizer\.json.*64 MiB"):
        load_tokenizer(f"file:{tmp_path / 'tokenizer.json'}")


def test_a_vocabulary_with_holes_is_a_vocabulary(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path, definition(model_vocab={"a": 3, "b": 9, "ab": 5, "<unk>": 7})))
    assert tokenizer.encode("abba").tolist() == [5, 9, 3]
    assert tokenizer.separator in (7, 10)
    assert tokenizer.decode([4, 5]) == "ab"


def test_truncation_padding_and_templates_of_the_file_change_no_text(tmp_path: Path) -> None:
    twice = [{"Sequence": {"id": "A", "type_id": 0}}] * 2
    template = {"type": "TemplateProcessing", "single": twice, "pair": twice, "special_tokens": {}}
    changed = definition(
        truncation={"max_length": 2, "strategy": "LongestFirst", "direction": "Right", "stride": 3},
        padding={
            "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
        },
        post_processor=template,
    )  # fmt: skip
    tokenizers = [load_tokenizer(written(tmp_path, made)) for made in (changed, definition())]
    assert tokenizers[0].encode("abc abba").tolist() == tokenizers[1].encode("abc abba").tolist()


def test_a_tokenizer_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = written(tmp_path, definition(pre_tokenizer=split(r"\w+|\W")))
    assert len(load_tokenizer(spec, cache=tmp_path).encode("ab ab")) == 3
    monkeypatch.setattr(tokenizer_trial, "Child", None)
    assert len(load_tokenizer(spec, cache=tmp_path).encode("ab ab")) == 3


def test_a_tokenizer_of_a_well_known_kind_needs_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_trial, "Child", None)
    assert load_tokenizer(written(tmp_path, definition()), cache=tmp_path).is_linear


def test_a_tokenizer_that_fails_only_at_the_corpus_ends_as_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("plain text\n" * 100 + "z" * 40 + "!\n" + "plain text\n" * 100)
    spec = written(tmp_path, definition(pre_tokenizer=split(r"(z|zz)*y|\w+|\W")))
    load_tokenizer(spec, cache=tmp_path)
    with pytest.raises(DataError, match=r"tokenizer\.json.*(fails at a text|took longer than)"):
        prepare(DataConfig(corpus=str(tmp_path / "text.txt"), tokenizer=spec), cache=tmp_path)
    assert not list(tmp_path.glob("tokens/*"))


def test_what_is_encoded_apart_is_what_would_be_encoded_here(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("plain text, twice\n" * 100)
    spec = written(tmp_path, definition(pre_tokenizer=split(r"\w+|\W")))
    data = prepare(DataConfig(corpus=str(tmp_path / "text.txt"), tokenizer=spec), cache=tmp_path)
    tokenizer = load_tokenizer(spec, cache=tmp_path)
    assert not tokenizer.is_linear
    assert data.train.tolist() == [tokenizer.separator, *tokenizer.encode(data.corpus.splits["train"][0].text).tolist()]


@pytest.mark.parametrize(
    "saved",
    ["{", "[]", '{"name": 3}', '{"name": "bpe:300", "separator": 4000000000}', '{"name": "bpe:300", "separator": -1}'],
)
def test_a_damaged_saved_tokenizer_is_named(saved: str, tmp_path: Path) -> None:
    (tmp_path / "archbench_tokenizer.json").write_text(saved)
    written(tmp_path, definition())
    with pytest.raises(DataError, match=r"archbench_tokenizer\.json"):
        load_tokenizer(f"saved:{tmp_path}")


def test_the_command_ends_with_code_4_and_no_traceback(tmp_path: Path) -> None:
    make, _ = HOSTILE["a charsmap that is too short"]
    spec = written(tmp_path, make())
    done = archbench("run", "gpt1", "--profile", "smoke", "--tokenizer", spec, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 4
    assert spec in done.stderr
    assert "panicked" not in done.stderr
    assert "Traceback" not in done.stderr
