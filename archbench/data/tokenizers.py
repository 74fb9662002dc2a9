"""Tokenizers by name: ``byte``, ``bpe:N``, ``file:tokenizer.json``, ``gguf:FILE``, ``hf:NAME``, ``ids:V``,
``saved:FOLDER``.

No torch here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from archbench.data.byte_tokenizer import SAVED_AS, ByteTokenizer, Tokenizer
from archbench.data.id_tokenizer import IdTokenizer
from archbench.data.tokenizer_file import MOST_IDS
from archbench.errors import DataError, UnknownNameError, UsageError, did_you_mean
from archbench.files.loader import read_model

if TYPE_CHECKING:
    from archbench.data.documents import Corpus

KINDS = ("byte", "bpe:N", "file:tokenizer.json", "gguf:FILE", "hf:NAME", "ids:V", "saved:FOLDER")


def load_tokenizer(spec: str, *, corpus: Corpus | None = None, cache: Path | None = None) -> Tokenizer:
    """The tokenizer that ``spec`` names.

    Args:
        spec: ``byte``; ``bpe:N``, byte-level BPE of N ids, the separator included, trained on ``corpus``'s training
            split; ``file:PATH``, a ``tokenizer.json`` of Hugging Face tokenizers; ``hf:NAME``, the same from the
            hub; ``gguf:FILE``, the one in a GGUF file; ``ids:V``, for shards of a text that nobody knows;
            ``saved:FOLDER``, written by :meth:`Tokenizer.save`.
        corpus: needed by ``bpe:N`` only.
        cache: folder of trained and tried tokenizers; None for :func:`archbench.data.cache.cache_folder`.

    Raises:
        UsageError: there is no such kind of tokenizer, or N is too small.
        DataError: the tokenizer cannot be read, fetched, trained or used.
        CheckpointError: the GGUF file cannot be read.
    """
    kind, _, argument = spec.partition(":")
    if spec == "byte":
        return ByteTokenizer()
    if kind == "ids":
        return IdTokenizer(spec)
    if kind == "saved":
        return _load_saved(Path(argument), cache)
    if kind not in {"bpe", "file", "gguf", "hf"} or not argument:
        raise UnknownNameError(f"tokenizer {spec!r}", "there is no such tokenizer", did_you_mean(spec, KINDS))
    # Imported late: the library is slow to import, and a run on bytes does not need it.
    from archbench.data import subword

    if kind == "file":
        return subword.from_file(Path(os.path.expanduser(argument)), name=spec, cache=cache)
    if kind == "gguf":
        from archbench.data.gguf_tokenizer import from_gguf

        return from_gguf(Path(os.path.expanduser(argument)), name=spec, cache=cache)
    if kind == "hf":
        return subword.from_hub(argument, name=spec, cache=cache)
    if not argument.isascii() or not argument.isdigit() or int(argument) < subword.SMALLEST_BPE:
        raise UsageError(
            f"tokenizer {spec!r}",
            f"N must be a number of at least {subword.SMALLEST_BPE} (256 bytes and the separator)",
            "Write for instance bpe:1024",
        )
    if corpus is None:
        raise UsageError(f"tokenizer {spec!r}", "it is trained, and no corpus is given", "Give the corpus as well")
    return subword.train_bpe(corpus, int(argument), cache=cache)


@dataclass(frozen=True)
class _Saved:
    """What stands in :data:`SAVED_AS`; earlier archbenches wrote no digest of the file beside it."""

    name: str
    separator: Annotated[int, Field(ge=0, lt=MOST_IDS)] | None = None
    file_sha256: str | None = None


def _load_saved(folder: Path, cache: Path | None) -> Tokenizer:
    next_step = "Give a folder that a run saved its tokenizer to"
    saved = read_model(_Saved, folder / SAVED_AS, error=DataError, next_step=next_step, sealing="optional")
    if saved.name == ByteTokenizer.name:
        return ByteTokenizer()
    if saved.name.startswith("ids:"):
        return IdTokenizer(saved.name)
    from archbench.data import subword

    file = folder / subword.FILE_NAME
    return subword.from_file(file, name=saved.name, separator=saved.separator, sha256=saved.file_sha256, cache=cache)
