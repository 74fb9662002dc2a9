"""Where texts are cut: the pieces have exactly the words of the whole, for every pattern that is said to allow it."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from archbench.data import text_cuts
from archbench.data.text_cuts import DEFAULT_GGUF_PATTERNS, KINDS, KNOWN_PATTERNS, SPACES, cuts, pieces
from archbench.errors import DataError

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def by(*patterns: str) -> pre_tokenizers.PreTokenizer:
    split = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*split, BYTES])


AT_KINDS = {
    "gpt-2": GPT2,
    **{f"gpt-4 {number}": by(pattern) for number, pattern in enumerate(sorted(KNOWN_PATTERNS))},
    "default": by(*DEFAULT_GGUF_PATTERNS),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), GPT2]),
    "punctuation": pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), GPT2]),
    "removed": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(text_cuts.gpt4_pattern(r"\p{N}")), behavior="removed", invert=True), BYTES]
    ),
}
AT_SPACES = {
    "words": pre_tokenizers.Whitespace(),
    "spaces": pre_tokenizers.WhitespaceSplit(),
    "bert": pre_tokenizers.BertPreTokenizer(),
}
NORMALIZERS = {
    "none": None,
    "bert": normalizers.BertNormalizer(lowercase=True),
    "nfc": normalizers.NFC(),
    "nfkd": normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]),
    "nfkc": normalizers.NFKC(),
}
ALPHABET = [
    *" \n\r\t'slxSLRE.,_-0129(\0\x1c\x85",
    *"\u00a0\u3000\u200b\u0301\u0345éßñİıſK²½٣Ⅷ漢かﾞー。，！“”🙂🇨\u200d\ufeff\ufc5e\u0958\u1e9b\u0149ﬁ",
    *("'s", "'ll", "'RE", "\r\n", "  ", "   \n", "12345", "abc", "<|a b|>"),
]


def tokenizer(pre_tokenizer: Any, normalizer: Any = None) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    return made


def words(made: tokenizers.Tokenizer, text: str) -> list[str]:
    """What is merged, each by itself: the same words have the same tokens."""
    normalized = text if made.normalizer is None else made.normalizer.normalize_str(text)
    return [word for word, _ in made.pre_tokenizer.pre_tokenize_str(normalized)]


def everywhere(made: tokenizers.Tokenizer, text: str) -> list[str]:
    """The text, cut wherever it may be."""
    at = cuts(json.loads(made.to_str()))
    assert at is not None
    places = [0, *(found.start() for found in at.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(places) if start < end]


ALL = [(name, "none") for name in (*AT_KINDS, *AT_SPACES)] + [
    (name, change) for name in ("gpt-2", "gpt-4 1", "gpt-4 4", *AT_SPACES) for change in NORMALIZERS if change != "none"
]


@pytest.mark.parametrize(("name", "change"), ALL)
def test_pieces_have_the_words_of_the_whole(name: str, change: str) -> None:
    made, draw = tokenizer({**AT_KINDS, **AT_SPACES}[name], NORMALIZERS[change]), random.Random(f"{name} {change}")
    n_pieces = 0
    for _ in range(20):
        text = "".join(draw.choices(ALPHABET, k=500))
        parts = everywhere(made, text)
        n_pieces += len(parts)
        assert [word for part in parts for word in words(made, part)] == words(made, text), parts
    assert n_pieces > 20 * 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"), [("gpt-2", "none"), ("gpt-4 1", "none"), ("default", "none"), ("bert", "bert")]
)
def test_pieces_have_the_words_of_the_whole_at_every_character_of_unicode(name: str, change: str) -> None:
    made = tokenizer({**AT_KINDS, **AT_SPACES}[name], NORMALIZERS[change])
    draw = random.Random(0)
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(characters), 4096):
        some = characters[start : start + 4096]
        text = "".join(f"{one}{draw.choice(ALPHABET)}{draw.choice(some)}{draw.choice(ALPHABET)}" for one in some)
        parts = everywhere(made, text)
        assert [word for part in parts for word in words(made, part)] == words(made, text)


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer"),
    [
        (None, None),
        (BYTES, None),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.Sequence([GPT2, pre_tokenizers.Split(" ", "isolated")]), None),
        (pre_tokenizers.Metaspace(), None),
        (pre_tokenizers.Punctuation(behavior="merged_with_previous"), None),
        (by(r"\w+ \w+"), None),
        (GPT2, normalizers.Strip()),
        (GPT2, normalizers.Prepend("x")),
        (GPT2, normalizers.Replace(" ", "")),
    ],
)
def test_what_may_join_the_sides_of_a_cut_is_not_cut(pre_tokenizer: Any, normalizer: Any) -> None:
    made = tokenizers.Tokenizer(models.BPE())
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    assert cuts(json.loads(made.to_str())) is None


@pytest.mark.parametrize(
    ("token", "found"),
    [
        ({"content": "whole"}, True),
        ({"content": "two words"}, False),
        ({"content": "a1"}, False),
        ({"content": "x", "rstrip": True}, False),
        ({"content": "x", "single_word": True}, False),
        ({"content": "two words", "special": True}, True),
    ],
)
def test_added_tokens_that_a_cut_could_break_forbid_it(token: dict[str, Any], found: bool) -> None:
    definition = json.loads(tokenizer(GPT2).to_str())
    flags = {"special": False, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    definition["added_tokens"] = [{"id": 0, **flags, **token}]
    assert (cuts(definition) is not None) == found


@pytest.mark.parametrize("at", [KINDS, SPACES])
def test_blocks_may_end_anywhere(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_cuts, "PIECE", 10)
    draw = random.Random(0)
    text = "".join(draw.choices(ALPHABET, k=5000))
    ends = sorted(draw.sample(range(len(text)), 400))
    blocks = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    parts = list(pieces(blocks, at, culprit="it"))
    assert "".join(parts) == text
    assert parts == list(pieces([text], at, culprit="it")), "nor do pieces depend on the blocks"
    assert max(map(len, parts)) < 400


def test_a_text_without_a_place_to_cut_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_cuts, "MOST_UNCUT", 5000)
    endless: Callable[[], Any] = lambda: iter(lambda: "-" * 1000, None)  # noqa: E731
    for at in (KINDS, None):
        with pytest.raises(DataError, match=r"5,000 characters"):
            list(pieces(endless(), at, culprit="tokenizer 'x'"))
