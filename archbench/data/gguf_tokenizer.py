"""The byte-level BPE tokenizer inside a GGUF file.

Reference: llama.cpp's src/llama-vocab.cpp, ``llm_tokenizer_bpe``, which gives the same token ids. transformers builds
such tokenizers too, but 5.24 has no pattern for ``default`` and ``smollm``, and silently uses another one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from archbench.data.gguf import GGUF, read_gguf
from archbench.data.subword import END_OF_TEXT, SubwordTokenizer, from_definition
from archbench.data.text_cuts import DEFAULT_GGUF_PATTERNS, gpt4_pattern
from archbench.data.tokenizer_file import MOST_IDS, library
from archbench.errors import DataError

PreTokenizer = pre_tokenizers.PreTokenizer

_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _cut(*patterns: str) -> list[PreTokenizer]:
    """Cut by one pattern after the other; the text between matches is a piece too."""
    return [*(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns), _BYTES]


PRE_TOKENIZERS: dict[str, list[PreTokenizer]] = {
    "default": _cut(*DEFAULT_GGUF_PATTERNS),
    "gpt-2": [_GPT2],
    "llama-bpe": _cut(gpt4_pattern(r"\p{N}{1,3}")),
    "qwen2": _cut(gpt4_pattern(r"\p{N}")),
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _GPT2],
}
"""How text is cut before merging, by ``tokenizer.ggml.pre``; their token ids are verified against llama.cpp."""
WHOLE_WORDS = {"llama-bpe"}
"""Pre-tokenizers with words in the vocabulary that no sequence of merges reaches; each is a token nevertheless."""
_BEGINS_TEXTS = {"llama-bpe"}
"""Pre-tokenizers whose models see ``bos`` before a text, unless the file says otherwise."""

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

NEXT_STEP = "Name the model's own with --tokenizer file:tokenizer.json, or hf:NAME"


def from_gguf(path: Path, *, name: str, cache: Path | None = None) -> SubwordTokenizer:
    """The tokenizer in the GGUF file at ``path``.

    Its separator is the token before each text in the model's training (``bos``, if ``add_bos_token`` says so), or
    else its end-of-text token.

    Raises:
        CheckpointError: the file is damaged, or the package gguf is not installed.
        DataError: the file has no tokenizer, or one of a kind that archbench does not read.
    """
    file = read_gguf(path)
    model, pre = (file.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2":
        kind = "SentencePiece (llama)" if model == "llama" else repr(model)
        raise _unusable(name, f"its kind is {kind}, but archbench reads byte-level BPE (gpt2) from GGUF files")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise _unusable(name, f"its pre-tokenizer is {pre!r}, but archbench knows {known}")
    with library(name, "its tokens and merges do not form a tokenizer", NEXT_STEP):
        tokenizer, separator = _built(file, str(pre))
        definition = tokenizer.to_str()
    return from_definition(definition, name=name, separator=separator, cache=cache)


def _built(file: GGUF, pre: str) -> tuple[tokenizers.Tokenizer, int | None]:
    def key(name: str, default: Any = None) -> Any:
        return file.metadata.get(f"tokenizer.ggml.{name}", default)

    tokens: list[str] = key("tokens")
    if len(tokens) > MOST_IDS:
        raise ValueError(f"{len(tokens):,} tokens are more than {MOST_IDS:,}")
    ids = {token: i for i, token in enumerate(tokens)}
    # A merge is two tokens separated by a space, and the first may begin with a space.
    merges = [(merge[:cut], merge[cut + 1 :]) for merge in key("merges") for cut in [merge.index(" ", 1)]]
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=pre in WHOLE_WORDS))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    types = list(zip(tokens, key("token_type", []), strict=False))
    tokenizer.add_special_tokens([_added(token) for token, kind in types if kind in (_UNKNOWN, _CONTROL)])
    tokenizer.add_tokens([_added(token) for token, kind in types if kind == _USER_DEFINED])
    by_name = (ids[token] for token in END_OF_TEXT if token in ids and token != "<unk>")
    bos = key("bos_token_id") if key("add_bos_token", pre in _BEGINS_TEXTS) else None
    separator = next(by_name, key("eos_token_id")) if bos is None else bos
    if separator is not None and int(separator) not in range(len(tokens)):
        raise ValueError(f"{separator} is given as the id of its first or last token, but is none of a token")
    if bos is not None:
        first = tokens[int(bos)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first, "$A"], special_tokens=[(first, int(bos))]
        )
    return tokenizer, separator if separator is None else int(separator)


def _added(token: str) -> AddedToken:
    return AddedToken(token, normalized=False, special=False)


def _unusable(name: str, cause: str) -> DataError:
    return DataError(f"tokenizer {name!r}", cause, NEXT_STEP)
