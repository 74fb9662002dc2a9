"""A tokenizer as the byte-level BPE of a GGUF file, if llama.cpp gives the same ids with it.

Reference: llama.cpp's src/llama-vocab.cpp, ``llm_tokenizer_bpe``; :mod:`archbench.data.gguf_tokenizer` reads it back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any, NamedTuple

from archbench.data.byte_tokenizer import ByteTokenizer, Tokenizer
from archbench.errors import DataError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""llama.cpp's types of tokens. A text is searched for user-defined ones alone."""


class Vocabulary(NamedTuple):
    """The keys ``tokenizer.ggml.*``.

    Attributes:
        pre: llama.cpp's name for the way that text is cut into words.
        tokens: V texts; bytes as the characters of byte-level BPE.
        token_type: V of llama.cpp's types.
        merges: pairs, by rank; none for bytes.
        separator: id between documents, ``bos`` and ``eos`` of the file.
        begins_texts: whether the model saw the separator before each text.
        absent: bytes without a token. Both libraries leave them out of a text's ids, but only one merges what stood
            beside them.
    """

    pre: str
    tokens: list[str]
    token_type: list[int]
    merges: list[str]
    separator: int
    begins_texts: bool
    absent: list[int]


def gguf_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """The tokenizer for a model of ``vocab_size`` ids; ids without a token become unused ones.

    Raises:
        DataError: llama.cpp has no such tokenizer, or would give other ids.
    """
    from archbench.data.subword import END_OF_TEXT, SubwordTokenizer, byte_alphabet, put_before_texts

    before = None
    if isinstance(tokenizer, ByteTokenizer):
        ids, added, merges, pre = byte_alphabet(), [], [], "gpt-2"
    elif isinstance(tokenizer, SubwordTokenizer):
        definition = tokenizer.definition
        before = put_before_texts(definition)
        pre = _pre_tokenizer(tokenizer.name, definition)
        ids, added = definition["model"]["vocab"], definition["added_tokens"]
        merges = [" ".join(pair) for pair in definition["model"]["merges"]]
        if any(merge.count(" ") != 1 for merge in merges):
            raise _other_ids(tokenizer.name, "a token that it merges has a space")
    else:
        raise _other_ids(tokenizer.name, f"it is a {type(tokenizer).__name__}")
    if vocab_size < tokenizer.vocab_size:
        cause = f"its {tokenizer.vocab_size:,} ids are more than the model's {vocab_size:,}"
        raise DataError(f"tokenizer {tokenizer.name!r}", cause, "Export with the tokenizer that the run was made with")
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [_UNUSED] * vocab_size
    for token, i in ids.items():
        tokens[i], types[i] = token, _NORMAL
    for one in added:
        tokens[one["id"]], types[one["id"]] = one["content"], _CONTROL if one["special"] else _USER_DEFINED
    searched = [token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    separator, named = tokenizer.separator, [token for token in END_OF_TEXT[:-1] if token in tokens]
    if types[separator] == _UNUSED:
        tokens[separator] = END_OF_TEXT[0]
    types[separator] = _CONTROL
    _refuse_ambiguous(tokenizer.name, tokens, searched, added)
    begins = tokens[separator] == before or (bool(named) and tokens[separator] != named[0])
    absent = sorted(byte for character, byte in byte_alphabet().items() if character not in ids)
    return Vocabulary(pre, tokens, types, merges, separator, begins, absent)


def _pre_tokenizer(name: str, definition: dict[str, Any]) -> str:
    """llama.cpp's name for how the tokenizer cuts texts.

    Raises:
        DataError: it does something before or while merging that llama.cpp does not.
    """
    from tokenizers import pre_tokenizers

    from archbench.data.gguf_tokenizer import PRE_TOKENIZERS, WHOLE_WORDS

    model = definition["model"]
    if model["type"] != "BPE":
        raise _other_ids(name, f"its kind is {model['type']}, not byte-level BPE")
    if definition["normalizer"] is not None:
        raise _other_ids(name, f"it normalises texts ({definition['normalizer']['type']}), and llama.cpp does not")
    for field in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise _other_ids(name, f"its {field} is {model[field]!r}")
    cuts = list(_cuts(definition["pre_tokenizer"]))
    for pre, known in PRE_TOKENIZERS.items():
        if cuts == list(_cuts(json.loads(pre_tokenizers.Sequence(known).__getstate__()))):
            if model.get("ignore_merges", False) != (pre in WHOLE_WORDS):
                raise _other_ids(name, f"its ignore_merges is {model.get('ignore_merges')}, unlike {pre}'s")
            return pre
    raise _other_ids(name, f"it cuts texts in another way than {', '.join(PRE_TOKENIZERS)}")


def _cuts(pre_tokenizer: dict[str, Any] | None) -> Iterator[tuple[Any, ...]]:
    """What each step does, without what does not change an id: two ways to write a pattern, offsets."""
    from archbench.data.text_cuts import CONTRACTIONS, GPT2_PATTERN, steps

    for step in steps(pre_tokenizer, "pretokenizers"):
        match step:
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
                yield from [("Split", GPT2_PATTERN)] if regex else []
                yield ("ByteLevel",)
            case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": str(pattern)}}:
                yield "Split", pattern.replace(CONTRACTIONS[1], CONTRACTIONS[0])
            case _:
                yield (json.dumps(step, sort_keys=True),)


def _refuse_ambiguous(name: str, tokens: Sequence[str], searched: list[str], added: list[dict[str, Any]]) -> None:
    """Refuse what one of the two libraries reads in another way.

    Raises:
        DataError: two ids have one text; an added token depends on what stands beside it; or two added tokens may
            overlap in a text: the library takes the first, llama.cpp the longer.
    """
    token, count = Counter(tokens).most_common(1)[0]
    if count > 1:
        raise _other_ids(name, f"its token {token!r} has {count} ids")
    for one in added:
        if not one["special"] and (one["lstrip"] or one["rstrip"] or one["single_word"]):
            raise _other_ids(name, f"its token {one['content']!r} depends on what stands beside it")
    for before, after in permutations(searched, 2):
        if any(before.endswith(after[:n]) for n in range(1, min(len(before), len(after)))):
            raise _other_ids(name, f"its added tokens {before!r} and {after!r} may overlap in a text")


def _other_ids(name: str, cause: str) -> DataError:
    step = "Leave out --to gguf, for a folder that transformers reads with this tokenizer"
    return DataError(f"tokenizer {name!r}", f"llama.cpp could not give its ids: {cause}", step)
