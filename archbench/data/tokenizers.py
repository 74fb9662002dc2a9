"""Tokenizers by name: ``byte``, ``bpe:N``, ``file:tokenizer.json``, ``gguf:FILE``, ``hf:NAME``, ``saved:FOLDER``.

No torch here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from archbench.data.byte_tokenizer import SAVED_AS, ByteTokenizer, Tokenizer
from archbench.errors import DataError, UnknownNameError, UsageError, did_you_mean, one_line

if TYPE_CHECKING:
    from archbench.data.documents import Corpus

KINDS = ("byte", "bpe:N", "file:tokenizer.json", "gguf:FILE", "hf:NAME", "saved:FOLDER")


def load_tokenizer(spec: str, *, corpus: Corpus | None = None, cache: Path | None = None) -> Tokenizer:
    """The tokenizer that ``spec`` names.

    Args:
        spec: ``byte``; ``bpe:N``, byte-level BPE of N ids, the separator included, trained on ``corpus``'s training
            split; ``file:PATH``, a ``tokenizer.json`` of Hugging Face tokenizers; ``hf:NAME``, the same from the
            hub; ``gguf:FILE``, the one in a GGUF file; ``saved:FOLDER``, written by :meth:`Tokenizer.save`.
        corpus: needed by ``bpe:N`` only.
        cache: folder of trained tokenizers; None for :func:`archbench.data.cache.cache_folder`.

    Raises:
        UsageError: there is no such kind of tokenizer, or N is too small.
        DataError: the tokenizer cannot be read, fetched or trained.
        CheckpointError: the GGUF file cannot be read.
    """
    kind, _, argument = spec.partition(":")
    if spec == "byte":
        return ByteTokenizer()
    if kind == "saved":
        return _load_saved(Path(argument))
    if kind not in {"bpe", "file", "gguf", "hf"} or not argument:
        raise UnknownNameError(f"tokenizer {spec!r}", "there is no such tokenizer", did_you_mean(spec, KINDS))
    # Imported late: the library is slow to import, and a run on bytes does not need it.
    from archbench.data import subword

    if kind == "file":
        return subword.from_file(Path(argument).expanduser(), name=spec)
    if kind == "gguf":
        from archbench.data.gguf_tokenizer import from_gguf

        return from_gguf(Path(argument).expanduser(), name=spec)
    if kind == "hf":
        return subword.from_hub(argument, name=spec)
    if not argument.isascii() or not argument.isdigit() or int(argument) < subword.SMALLEST_BPE:
        raise UsageError(
            f"tokenizer {spec!r}",
            f"N must be a number of at least {subword.SMALLEST_BPE} (256 bytes and the separator)",
            "Write for instance bpe:1024",
        )
    if corpus is None:
        raise UsageError(f"tokenizer {spec!r}", "it is trained, and no corpus is given", "Give the corpus as well")
    return subword.train_bpe(corpus, int(argument), cache=cache)


def _load_saved(folder: Path) -> Tokenizer:
    path = folder / SAVED_AS
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        name, separator = saved["name"], saved.get("separator")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        cause = f"it holds no saved tokenizer ({one_line(error)})"
        raise DataError(f"folder {str(folder)!r}", cause, "Give a folder that a run saved its tokenizer to") from None
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    from archbench.data import subword

    return subword.from_file(folder / subword.FILE_NAME, name=name, separator=separator)
