"""Tokenizers by name: ``byte``, ``bpe:N``, ``file:tokenizer.json``, ``gguf:FILE``, ``hf:NAME``, ``saved:FOLDER``.

No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from archbench.data.documents import utf8
from archbench.errors import DataError, UnknownNameError, UsageError, did_you_mean

if TYPE_CHECKING:
    from archbench.data.documents import Corpus

KINDS = ("byte", "bpe:N", "file:tokenizer.json", "gguf:FILE", "hf:NAME", "saved:FOLDER")
SAVED_AS = "archbench_tokenizer.json"


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        name: what it was asked for by, as in ``bpe:1024``.
        vocab_size: V; every id is below it, the separator's included.
        lossless: whether the tokens of *any* text spell its bytes. Where it is False they may still do so for a
            given text: :func:`archbench.data.dataset.prepare` looks.
        separator: id of the token between documents, from which a document's first token is predicted. No text
            encodes to it, unless it is a file's ``<unk>`` for want of an end-of-text token.
        fingerprint: changes when the ids of some text may; names cached tokens.
    """

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def lossless(self) -> bool: ...
    @property
    def separator(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Token ids, shape (N,); nothing is added, and the names of special tokens are ordinary text.

        Raises:
            DataError: the text holds a lone surrogate.
        """
        ...

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """Text of the ids, without separators; bytes that are not UTF-8 become U+FFFD."""
        ...

    def token_bytes(self) -> tuple[bytes, ...] | None:
        """What each of the V ids spells (the separator: nothing), or None where tokens have no fixed bytes."""
        ...

    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """Bytes each id spells, shape (V,), or None where tokens have no fixed bytes."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything needed to load it again by ``saved:FOLDER``."""
        ...


class ByteTokenizer:
    """One token a byte: V = 257, ids 0 to 255 are the bytes, 256 is the separator."""

    name = "byte"
    vocab_size = 257
    lossless = True
    separator = 256
    fingerprint = "byte"

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        return np.frombuffer(utf8(text, "text"), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        return bytes(int(i) for i in ids if i != self.separator).decode("utf-8", errors="replace")

    def token_bytes(self) -> tuple[bytes, ...]:
        return (*(bytes([i]) for i in range(256)), b"")

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        return np.array([1] * 256 + [0], dtype=np.int64)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SAVED_AS).write_text(json.dumps({"name": self.name}), encoding="utf-8")


def load_tokenizer(spec: str, *, corpus: Corpus | None = None, cache: Path | None = None) -> Tokenizer:
    """The tokenizer that ``spec`` names.

    Args:
        spec: ``byte``; ``bpe:N``, byte-level BPE of N ids, the separator included, trained on ``corpus``'s training
            split; ``file:PATH``, a ``tokenizer.json`` of Hugging Face tokenizers; ``hf:NAME``, the same from the
            hub; ``gguf:FILE``, the one in a GGUF file; ``saved:FOLDER``, what :meth:`Tokenizer.save` wrote.
        corpus: needed by ``bpe:N`` alone.
        cache: folder of trained tokenizers; None for :func:`archbench.data.cache.cache_folder`.

    Raises:
        UsageError: no such kind of tokenizer, or an N that cannot be.
        DataError: a tokenizer that cannot be read, fetched or trained.
        CheckpointError: a GGUF file that cannot be read.
    """
    kind, _, argument = spec.partition(":")
    if spec == "byte":
        return ByteTokenizer()
    if kind == "saved":
        return _load_saved(Path(argument))
    if kind not in {"bpe", "file", "gguf", "hf"} or not argument:
        raise UnknownNameError(f"tokenizer {spec!r}", "there is no such tokenizer", did_you_mean(spec, KINDS))
    # Only here: the library takes a while to import, and a run on bytes does without it.
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
        raise UsageError(f"tokenizer {spec!r}", "it is trained, and there is no corpus here", "Give the corpus as well")
    return subword.train_bpe(corpus, int(argument), cache=cache)


def _load_saved(folder: Path) -> Tokenizer:
    path = folder / SAVED_AS
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        name, separator = saved["name"], saved.get("separator")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        cause = f"it holds no saved tokenizer ({type(error).__name__}: {error})"
        raise DataError(f"folder {str(folder)!r}", cause, "Give a folder that a run saved its tokenizer to") from None
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    from archbench.data import subword

    return subword.from_file(folder / subword.FILE_NAME, name=name, separator=separator)
