"""Encoding a text with a tokenizer that might never end at it, in a process with limits of time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.child.process import Child
from archbench.config import DataConfig
from archbench.data.tokenizer_trial import CHARACTERS, SECONDS, answer, limit_memory

if TYPE_CHECKING:
    from archbench.child.entry import Parent


def encode_apart(data: DataConfig, tokenizer: str, cache: Path) -> None:
    """Write the token file of ``data`` into ``cache``, in a child process.

    Raises:
        DataError: the tokenizer fails at the text, or takes too long or too much memory for a part of it.
        StorageError: the cache folder cannot be written.
    """
    request = {"data": data.model_dump(mode="json"), "cache": str(cache)}
    with Child(__name__, request, culprit=f"tokenizer {tokenizer!r}", quiet=True) as child:
        characters = answer(child, tokenizer, None)  # the text is read first, however long it is
        while characters is not None:
            characters = answer(child, tokenizer, SECONDS * -(-characters // CHARACTERS))


def main(parent: Parent, request: dict[str, Any]) -> None:
    """In the child: send the number of characters before they are encoded, and None at the end."""
    from archbench.data.corpora import load_corpus
    from archbench.data.token_file import TokenFile
    from archbench.data.tokenizers import load_tokenizer

    def announce(pieces: Sequence[str]) -> None:
        parent.send(sum(map(len, pieces)))

    data, cache = DataConfig.model_validate(request["data"]), Path(request["cache"])
    corpus = load_corpus(data.corpus, validation_fraction=data.validation_fraction, cache=cache)
    tokenizer = load_tokenizer(data.tokenizer, corpus=corpus, cache=cache)
    limit_memory()
    TokenFile(cache, corpus, tokenizer).write(announce)
    parent.send(None)
