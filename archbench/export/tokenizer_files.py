"""A run's tokenizer as the files that AutoTokenizer of transformers reads: the same ids for any text."""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from archbench.data.byte_tokenizer import Tokenizer
from archbench.data.id_tokenizer import IdTokenizer
from archbench.data.subword import FILE_NAME, SubwordTokenizer, byte_alphabet
from archbench.errors import DataError

_SEPARATORS = ("<|endoftext|>", "<|archbench_separator|>")
"""Names of a separator that the tokenizer's file does not have; the first that spells no token of it."""


def tokenizer_files(tokenizer: Tokenizer, longest: int) -> dict[str, str]:
    """File name -> content.

    Args:
        longest: positions that the model reads.

    Raises:
        DataError: the library gives its separator another id.
    """
    definition, separator = _definition(tokenizer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": separator,
        "eos_token": separator,
        "add_bos_token": False,
        "add_eos_token": False,
        "split_special_tokens": True,  # text that spells the separator is text, as in the run
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
    }
    return {
        FILE_NAME: json.dumps(definition, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2) + "\n",
    }


def _definition(tokenizer: Tokenizer) -> tuple[dict[str, Any], str]:
    """The content of a ``tokenizer.json`` that adds nothing to a text, and the token of the separator in it."""
    if isinstance(tokenizer, IdTokenizer):
        raise DataError(
            f"tokenizer {tokenizer.name!r}", "it counts ids and knows no text", "Train with the tokenizer named"
        )
    content = tokenizer.definition if isinstance(tokenizer, SubwordTokenizer) else _of_bytes()
    definition: dict[str, Any] = {**content, "post_processor": None, "truncation": None, "padding": None}
    ids = tokenizers.Tokenizer.from_str(json.dumps(definition)).get_vocab(with_added_tokens=True)
    separator = next((token for token, number in ids.items() if number == tokenizer.separator), None)
    if separator is None:
        separator = next(name for name in _SEPARATORS if name not in ids)
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added = {"id": tokenizer.separator, "content": separator, **plain, "special": True}
        definition["added_tokens"] = [*definition["added_tokens"], added]
        number = tokenizers.Tokenizer.from_str(json.dumps(definition)).token_to_id(separator)
        if number != tokenizer.separator:
            cause = f"the library gives its separator the id {number}, and the run used {tokenizer.separator}"
            raise DataError(f"tokenizer {tokenizer.name!r}", cause, "Train with a tokenizer whose ids have no gaps")
    return definition, separator


def _of_bytes() -> Any:
    """One token a byte, whose id is the byte, in the alphabet of byte-level BPE."""
    made = tokenizers.Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return json.loads(made.to_str())
