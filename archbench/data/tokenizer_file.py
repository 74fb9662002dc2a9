"""What a ``tokenizer.json`` must be like to be used at all: of bounded size, with ids that can be rows of a table.

It is checked before the library reads it, which believes ids of four billion, and which a file of some megabytes can
make take gigabytes. Patterns and tables that may still take for ever or end in a panic are tried out in another process
(:mod:`archbench.data.tokenizer_trial`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BaseModel, Field

from archbench.errors import ArchbenchError, DataError, one_line
from archbench.files.loader import validated

MOST_BYTES = 64 << 20
"""Of a file; the largest published ones have half of that."""
MOST_IDS = 1 << 21
"""Ids are below it; the largest published vocabularies have a million."""
MOST_ADDED = 1 << 16
"""Added tokens; each costs a search through the text."""
LONGEST_ADDED = 1 << 12
"""Characters of an added token, or of a pattern, replacement or the like."""
MOST_UNIGRAM = 8 << 20
"""Characters of all tokens of a Unigram model, which is kept as a tree with about 100 bytes for each."""

_Id = Annotated[int, Field(ge=0, lt=MOST_IDS)]


class _AddedToken(BaseModel):
    id: _Id
    content: Annotated[str, Field(max_length=LONGEST_ADDED)]


class _Model(BaseModel):
    vocab: dict[str, _Id] | list[tuple[str, float]]
    dropout: float | None = None


class _File(BaseModel):
    model: _Model
    added_tokens: Annotated[list[_AddedToken], Field(max_length=MOST_ADDED)] = []
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None
    decoder: Any = None


def check_definition(definition: str, name: str) -> Any:
    """The parsed ``tokenizer.json``, unless it is none, or would take too much memory.

    Raises:
        DataError: says which part is wrong.
    """
    culprit, step = f"tokenizer {name!r}", "Give a tokenizer.json as the model's authors publish it"
    if len(definition) > MOST_BYTES:
        raise DataError(culprit, f"it is larger than {MOST_BYTES >> 20} MiB", step)
    # Each part of JSON takes up to a hundred bytes in Python, however few it has in the file.
    for mark, most in (("{", MOST_IDS // 2), ("[", 2 * MOST_IDS), (":", 5 * MOST_IDS // 4), (",", 4 * MOST_IDS)):
        if definition.count(mark) > most:
            raise DataError(culprit, f"it has more than {most:,} {mark!r}, as no vocabulary of {MOST_IDS:,} has", step)
    try:
        content = json.loads(definition)
    except (ValueError, RecursionError) as error:
        raise DataError(culprit, f"it is not a Hugging Face tokenizer ({one_line(error)})", step) from None
    file = validated(_File, content, error=DataError, culprit=culprit, next_step=step)
    vocab = file.model.vocab
    if isinstance(vocab, dict):
        if len(set(vocab.values())) < len(vocab):
            token, number = _repeated(vocab)
            raise DataError(culprit, f"its token {token!r} has the id {number}, which another token has too", step)
    elif len(vocab) > MOST_IDS or sum(len(token) for token, _ in vocab) > MOST_UNIGRAM:
        cause = f"its vocabulary has more than {MOST_IDS:,} tokens or {MOST_UNIGRAM:,} characters"
        raise DataError(culprit, cause, step)
    if file.model.dropout:
        cause = f"it drops merges at random (dropout {file.model.dropout:g}), so a text has no certain tokens"
        raise DataError(culprit, cause, "Set model.dropout to null in a copy of the file")
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for key, text in _texts(getattr(file, part)):
            if key != "precompiled_charsmap" and len(text) > LONGEST_ADDED:
                cause = f"a text in its {part} has {len(text):,} characters, more than {LONGEST_ADDED:,}"
                raise DataError(culprit, cause, step)
    return content


@contextmanager
def library(name: str, what: str, next_step: str) -> Iterator[None]:
    """Within this context an error of the library, or a panic in it, becomes a DataError.

    Args:
        what: what is wrong then, in words.
    """
    try:
        yield
    except (ArchbenchError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library raises bare Exception, and pyo3's PanicException is none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"tokenizer {name!r}", f"{what} ({one_line(error)})", next_step) from None


def _repeated(vocab: dict[str, int]) -> tuple[str, int]:
    seen = set()
    for token, number in vocab.items():
        if number in seen:
            return token, number
        seen.add(number)
    raise AssertionError("an id is repeated")


def _texts(part: Any) -> Iterator[tuple[str, str]]:
    """Every text within parsed JSON, with the key that it stands under."""
    waiting = [("", part)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            waiting += ((str(name), inner) for name, inner in value.items())
        elif isinstance(value, list):
            waiting += ((key, inner) for inner in value)
