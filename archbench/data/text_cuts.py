"""Where a text may be cut so that the tokens of the pieces are those of the whole, and the pieces.

A tokenizer first cuts a text into words, and merges only within them. A cut between two characters changes nothing if

- no word can hold both, whatever stands around them: then a word ends there anyway, and the next one begins there;
- whether and how a word ends there does not depend on what follows.

GPT-2's pattern (Radford et al. 2019) and those of GPT-4's family have no alternative in which a letter is followed by
anything but letters, or a number by anything but numbers, and they look ahead only from white space. So a text may be
cut after a letter or number, before a character that is another kind of these or neither (:data:`KINDS`). Cutting at
digits or punctuation first changes nothing of that. Pre-tokenizers that cut at white space allow a cut before white
space only (:data:`SPACES`), and so do normalisers: the ones below never join or drop what stands on both sides of it.

The characters are ASCII, or of kinds that no version of Unicode has changed: the library's tables may be newer than
Python's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from archbench.errors import DataError

BATCH = 1 << 20
"""Characters that are encoded at once: the library needs about 50 times that in memory."""
PIECE = 1 << 16
"""Least characters of a piece, if the text goes on: the pieces of a batch are encoded on all cores."""
MOST_UNCUT = 1 << 23
"""Most characters of a text, or a part of one, that cannot be cut: its tokens need up to a gigabyte of memory."""

KINDS = re.compile(
    r"(?<=[^\W_])(?=[\x00-/:-@\[-`{-\x7f\u3000-\u3002\uff01\uff0c\uff1a\uff1b\uff1f])"
    r"|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])"
)
SPACES = re.compile(r"(?<=[A-Za-z0-9])(?=[ \t\n\r])")

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


CONTRACTIONS = ("'(?i:[sdmt]|re|ve|ll)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
"""Two ways in which GPT-4's family writes the same pattern."""


def gpt4_pattern(numbers: str, contractions: str = CONTRACTIONS[0]) -> str:
    """The pattern of GPT-4's family (LLaMA 3, Qwen 2), which differ in how they cut numbers."""
    rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return rf"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}|{rest}"


_GPT4 = (gpt4_pattern(numbers, contractions) for numbers in (r"\p{N}", r"\p{N}{1,3}") for contractions in CONTRACTIONS)
KNOWN_PATTERNS = frozenset({GPT2_PATTERN, *_GPT4})
DEFAULT_GGUF_PATTERNS = (r"[\p{P}$+<=>^~|]+", GPT2_PATTERN, r"\p{N}+", r"[0-9]{3}")
"""llama.cpp's ``default``: each cuts what the one before has left."""

_HARMLESS_PATTERNS = frozenset(DEFAULT_GGUF_PATTERNS) - KNOWN_PATTERNS
"""They cut further, and no match holds a letter and something else, or a number and something else."""
_LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}
_AT_SPACES = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}


def cuts(definition: dict[str, Any]) -> re.Pattern[str] | None:
    """Where texts may be cut for the tokenizer of a ``tokenizer.json``; None if no place is known to be safe."""
    pre_tokenizers = list(steps(definition["pre_tokenizer"], "pretokenizers"))
    kinds = {_kind(step, last=step is pre_tokenizers[-1]) for step in pre_tokenizers}
    normalizers = {step["type"] for step in steps(definition["normalizer"], "normalizers")}
    if "unsafe" in kinds or not normalizers <= _LOCAL_NORMALIZERS or not kinds & {"kinds", "spaces"}:
        return None
    found = SPACES if "spaces" in kinds or normalizers else KINDS
    added = [token for token in definition["added_tokens"] if not token["special"]]  # the others are ordinary text
    apart = not any(
        normalizers or token["lstrip"] or token["rstrip"] or token["single_word"] or found.search(token["content"])
        for token in added
    )
    return found if apart else None


def is_linear(definition: dict[str, Any]) -> bool:
    """Whether the work and memory for any text are in proportion to it: no pattern but well-known ones, and so on."""
    model = definition["model"]
    decoders = {step["type"] for step in steps(definition["decoder"], "decoders")}
    return (
        all(
            step["type"] == "ByteLevel" or _kind(step, last=True) != "unsafe"
            for step in steps(definition["pre_tokenizer"], "pretokenizers")
        )
        and {step["type"] for step in steps(definition["normalizer"], "normalizers")} <= _LOCAL_NORMALIZERS
        and decoders <= {"ByteLevel", "WordPiece", "BPEDecoder"}
        and model["type"] in {"BPE", "WordLevel", "WordPiece"}
        and model.get("max_input_chars_per_word", 0) <= 1000
    )


def steps(part: dict[str, Any] | None, several: str) -> Iterator[dict[str, Any]]:
    """The steps of a normaliser, pre-tokenizer or decoder; the key of a sequence of them is ``several``."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for step in part[several]:
            yield from steps(step, several)
    else:
        yield part


def _kind(step: dict[str, Any], *, last: bool) -> str:
    """What a step of pre-tokenizing does: cut at ``kinds`` or ``spaces``, or be ``harmless`` or ``unsafe`` to that."""
    if step["type"] in _AT_SPACES:
        return "spaces"
    if step["type"] == "Digits" or (step["type"] == "Punctuation" and step["behavior"] in {"Isolated", "Removed"}):
        return "harmless"
    # It writes bytes as other characters, to which a later step's pattern would apply.
    if step["type"] == "ByteLevel" and last and not step["add_prefix_space"]:
        return "kinds" if step["use_regex"] else "harmless"
    if step["type"] == "Split" and (step["behavior"], step["invert"]) in {("Isolated", False), ("Removed", True)}:
        pattern = step["pattern"].get("Regex")
        if pattern in KNOWN_PATTERNS:
            return "kinds"
        if pattern in _HARMLESS_PATTERNS and step["behavior"] == "Isolated":
            return "harmless"
    return "unsafe"


def pieces(blocks: Iterable[str], at: re.Pattern[str] | None, *, culprit: str) -> Iterator[str]:
    """A text, given in blocks that may end anywhere, in pieces cut ``at`` places that change no token.

    Raises:
        DataError: more than :data:`MOST_UNCUT` characters cannot be cut.
    """
    left, searched = "", 0
    for block in blocks:
        left += block
        start = 0
        while at is not None and len(left) - start > PIECE:
            found = at.search(left, max(start + PIECE, searched))
            if found is None:
                searched = len(left)
                break
            yield left[start : found.start()]
            start = found.start()
        left = left[start:]
        searched = max(0, searched - start)
        if len(left) > MOST_UNCUT:
            cause = (
                f"{MOST_UNCUT:,} characters of a text have no place where it may be cut without changing tokens"
                if at is not None
                else f"it takes whole texts, of at most {MOST_UNCUT:,} characters, and one is longer"
            )
            step = "Break its longest lines or split the file into several in a folder, or use --tokenizer byte"
            raise DataError(culprit, cause, step)
    if left:
        yield left


def batches(parts: Iterable[str]) -> Iterator[list[str]]:
    """Pieces in lists of about :data:`BATCH` characters."""
    batch: list[str] = []
    size = 0
    for part in parts:
        if batch and size + len(part) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += len(part)
    if batch:
        yield batch
