"""Subword tokenizers: from Hugging Face ``tokenizers`` files, and byte-level BPE trained here."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from archbench.data import text_cuts
from archbench.data.byte_tokenizer import SAVED_AS
from archbench.data.cache import alone, cache_folder, content_key, write_atomically
from archbench.data.documents import Corpus, text_blocks, utf8
from archbench.data.splitting import sample
from archbench.data.text_cuts import steps
from archbench.data.tokenizer_file import MOST_BYTES, check_definition, library
from archbench.data.tokenizer_trial import try_out
from archbench.errors import DataError, StorageError, one_line
from archbench.files.loader import read_json, read_text
from archbench.files.seal import sealed
from archbench.files.writing import write_text

_log = logging.getLogger(__name__)

FILE_NAME = "tokenizer.json"
SMALLEST_BPE = 257
MOST_BPE_TEXT = 128 << 20
"""Bytes of training text that BPE is trained on; of more, evenly spread mebibytes. Each distinct word is in memory."""
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]", "<unk>")
"""Names of end-of-text tokens. ``<unk>`` is the last resort for files without one, such as GPT-1's: a new id would
change V, and published weights could not be scored."""


class SubwordTokenizer:
    """A ``tokenizers.Tokenizer`` that adds nothing to a text and recognises no special tokens in it.

    Args:
        definition: the content of a ``tokenizer.json``.
        separator: the separator's id; None for the token that the file puts before a text (if it puts none after it),
            else its end-of-text token, else a new id.

    Attributes:
        begins_texts: whether the file puts that token before a text. Encoding does not; whoever scores a text as the
            model's own tokenizer would, does.

    Raises:
        DataError: not a tokenizer.
    """

    def __init__(self, definition: str, *, name: str, separator: int | None = None) -> None:
        self.name = name
        check_definition(definition, name)
        with library(name, "it is not a Hugging Face tokenizer", "Give a tokenizer.json"):
            self._tokenizer = tokenizers.Tokenizer.from_str(definition)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            ids = self._tokenizer.get_vocab(with_added_tokens=True)
            self._definition: dict[str, Any] = json.loads(self._tokenizer.to_str())
        if not ids:
            raise DataError(f"tokenizer {name!r}", "its vocabulary is empty", "Give a tokenizer.json with a vocabulary")
        before = put_before_texts(self._definition)
        self.begins_texts: bool = before is not None
        if separator is None:
            names = (before, *END_OF_TEXT)
            separator = next((ids[token] for token in names if token in ids), max(ids.values()) + 1)
        if separator > max(ids.values()) + 1:
            cause = f"its separator is {separator}, and its highest id {max(ids.values())}"
            raise DataError(f"tokenizer {name!r}", cause, "Restore the file that names the separator")
        self.separator: int = separator
        self.vocab_size: int = max(*ids.values(), separator) + 1
        self._make_special_tokens_ordinary()
        self._token_bytes = _token_bytes(self._definition, ids, self.separator, self.vocab_size)
        self.lossless: bool = self._token_bytes is not None and _keeps_every_byte(self._definition, ids)
        self.fingerprint = content_key(
            json.dumps(self._definition, sort_keys=True), str(separator), f"tokenizers {tokenizers.__version__}"
        )
        self._cuts = text_cuts.cuts(self._definition)
        self.is_linear = text_cuts.is_linear(self._definition)

    def _make_special_tokens_ordinary(self) -> None:
        # encode_special_tokens covers the added tokens marked special. The separator must be one of them: otherwise
        # text that spells it could end a document.
        for token in self._definition["added_tokens"]:
            if token["id"] == self.separator and not token["special"]:
                token["special"] = True
                self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self._definition))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.post_processor = None  # a template might repeat the text

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        utf8(text, "text")
        ids = [self.encode_batch(batch) for batch in self.batches([text])]
        return np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64)

    def batches(self, blocks: Iterable[str]) -> Iterator[list[str]]:
        return text_cuts.batches(text_cuts.pieces(blocks, self._cuts, culprit=f"tokenizer {self.name!r}"))

    def encode_batch(self, pieces: Sequence[str]) -> npt.NDArray[np.int64]:
        with library(self.name, "it fails at a text", "Use another tokenizer"):
            encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
            ids = np.concatenate([np.array(encoding.ids, dtype=np.int64) for encoding in encodings])
        if len(ids) and ids.max() >= self.vocab_size:
            raise DataError(
                f"tokenizer {self.name!r}", f"it gives the id {ids.max()}, which has no token", "Use another"
            )
        return ids

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        with library(self.name, "it fails at decoding", "Use another tokenizer"):
            return self._tokenizer.decode([int(i) for i in ids if i != self.separator], skip_special_tokens=False)

    def token_bytes(self) -> tuple[bytes, ...] | None:
        return self._token_bytes

    @property
    def definition(self) -> dict[str, Any]:
        """The content of its ``tokenizer.json``."""
        return self._definition

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        definition = json.dumps(self._definition, ensure_ascii=False)
        write_text(folder / FILE_NAME, definition)
        digest = hashlib.sha256(definition.encode()).hexdigest()
        saved = {"name": self.name, "separator": self.separator, "file_sha256": digest}
        write_text(folder / SAVED_AS, sealed(saved, indent=None))


def from_file(
    path: Path, *, name: str, separator: int | None = None, sha256: str | None = None, cache: Path | None = None
) -> SubwordTokenizer:
    """The tokenizer in the ``tokenizer.json`` at ``path``.

    Args:
        sha256: of the file's content when it was written; None if nobody kept it.

    Raises:
        DataError: the file is missing, unreadable, too large, changed, or not a tokenizer that can be used.
    """
    culprit = f"file {str(path)!r}"
    definition = read_text(path, limit=MOST_BYTES, error=DataError, culprit=culprit, next_step="Give a tokenizer.json")
    if sha256 is not None and hashlib.sha256(definition.encode()).hexdigest() != sha256:
        raise DataError(
            culprit, f"it is damaged, or {SAVED_AS} beside it (the checksum there is another)", "Restore them"
        )
    return from_definition(definition, name=name, separator=separator, cache=cache)


def from_definition(definition: str, *, name: str, separator: int | None, cache: Path | None) -> SubwordTokenizer:
    """The tokenizer that anybody may have written: it is tried out in another process if it might never end.

    Raises:
        DataError: it is not a tokenizer, or takes too long, or too much memory, or fails at a text.
    """
    try_out(definition, name, cache or cache_folder())
    return SubwordTokenizer(definition, name=name, separator=separator)


def from_hub(hub_name: str, *, name: str, cache: Path | None = None) -> SubwordTokenizer:
    """The tokenizer of the hub's repository ``hub_name``.

    Raises:
        DataError: there is no network, no such repository, no ``tokenizer.json`` in it, or none that can be used.
    """
    try:
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(hub_name, FILE_NAME))
    except Exception as error:  # the hub's errors have no common base
        cause = f"it cannot be fetched from the Hugging Face hub ({one_line(error)})"
        next_step = "Check the name and the network, or download its tokenizer.json and use file:tokenizer.json"
        raise DataError(f"tokenizer {name!r}", cause, next_step) from error
    return from_file(path, name=name, cache=cache)


def train_bpe(corpus: Corpus, vocab_size: int, *, cache: Path | None) -> SubwordTokenizer:
    """Byte-level BPE (Radford et al. 2019, section 2.2) trained on the training split; the last id is the separator.

    Of a training split above :data:`MOST_BPE_TEXT` bytes, a sample is read. The separator is not in the file, so no
    text can spell it. Cached by the corpus's hash and N, with a seal.

    Raises:
        DataError: the text is too short for that many tokens.
        StorageError: the cache folder cannot be written.
    """
    name = f"bpe:{vocab_size}"
    sampled = [f"of {MOST_BPE_TEXT}"] if corpus.n_bytes("train") > MOST_BPE_TEXT else []
    key = content_key("sealed bpe", corpus.sha256, str(vocab_size), f"tokenizers {tokenizers.__version__}", *sampled)
    path = (cache or cache_folder()) / "tokenizers" / f"{key}.json"
    with alone(path):
        return _cached_bpe(path, corpus, vocab_size, name, cache) or _trained_bpe(path, corpus, vocab_size, name)


def _cached_bpe(path: Path, corpus: Corpus, vocab_size: int, name: str, cache: Path | None) -> SubwordTokenizer | None:
    if path.exists():
        try:
            step = "It is trained again"
            definition = read_json(path, limit=MOST_BYTES, error=DataError, next_step=step, sealing="required")
            return from_definition(json.dumps(definition), name=name, separator=vocab_size - 1, cache=cache)
        except (DataError, StorageError) as error:
            _log.warning("the cached tokenizer %s is damaged and is trained again: %s", path, error)
    return None


def _trained_bpe(path: Path, corpus: Corpus, vocab_size: int, name: str) -> SubwordTokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    culprit = f"tokenizer {name!r}"
    pieces = (
        piece
        for document in sample(corpus.splits["train"], MOST_BPE_TEXT)
        for piece in text_cuts.pieces(text_blocks(document), text_cuts.KINDS, culprit=culprit)
    )
    tokenizer.train_from_iterator(pieces, trainer)
    learnt = tokenizer.get_vocab_size() + 1
    if learnt < vocab_size:
        cause = f"the training text of {corpus.name!r} is too short: it gives {learnt} tokens, not {vocab_size}"
        raise DataError(culprit, cause, f"Ask for bpe:{learnt} or fewer, or give a longer text")
    definition = tokenizer.to_str()
    write_atomically(path, lambda file: file.write(sealed(json.loads(definition), indent=None).encode()))
    return SubwordTokenizer(definition, name=name, separator=vocab_size - 1)


def put_before_texts(definition: dict[str, Any]) -> str | None:
    """The special token of a template like ``<s> $A``, which a model saw at the beginning of every text.

    Templates with a token after the text as well (BERT's) are not for models that predict the next token.
    """
    processor = definition.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        match step.get("single"):
            case [{"SpecialToken": {"id": str(token)}}, {"Sequence": _}]:
                return token
    return None


def _token_bytes(
    definition: dict[str, Any], ids: dict[str, int], separator: int, vocab_size: int
) -> tuple[bytes, ...] | None:
    """The bytes of each id, if the file's alphabet is that of byte-level BPE: one character per byte."""
    if not any(step["type"] == "ByteLevel" for step in steps(definition["pre_tokenizer"], "pretokenizers")):
        return None
    model = definition["model"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    table = [b""] * vocab_size
    alphabet = byte_alphabet()
    added = {token["id"]: token["content"] for token in definition["added_tokens"]}
    for token, i in ids.items():
        if i in added:
            table[i] = added[i].encode()
        elif all(character in alphabet for character in token):
            table[i] = bytes(alphabet[character] for character in token)
        # else no text reaches the entry: prepare() would notice the missing bytes
    table[separator] = b""
    return tuple(table)


def _keeps_every_byte(definition: dict[str, Any], ids: dict[str, int]) -> bool:
    cuts = list(steps(definition["pre_tokenizer"], "pretokenizers"))
    return (
        not definition.get("normalizer")
        and definition["model"]["type"] == "BPE"
        and all(character in ids for character in byte_alphabet())
        and all(step["type"] in {"ByteLevel", "Split", "Digits", "Punctuation"} for step in cuts)
        and not any(step.get("add_prefix_space") or step.get("behavior") == "Removed" for step in cuts)
        and not any(token["lstrip"] or token["rstrip"] for token in definition["added_tokens"] if not token["special"])
    )


def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's character -> byte: printable Latin-1 for itself, the other bytes from U+0100 on.

    GPT-2's table (Radford et al. 2019), as used by the library's pre-tokenizer.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
