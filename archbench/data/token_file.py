"""The tokens of a corpus in the cache: one array, the training stream followed by the validation documents."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from archbench.data.byte_tokenizer import Tokenizer
from archbench.data.cache import content_key, write_atomically
from archbench.data.documents import Corpus, Document, text_blocks
from archbench.data.local_text import stamp_of
from archbench.data.spelling import Spelling
from archbench.data.token_stream import TokenArray
from archbench.errors import DataError, StorageError
from archbench.files.loader import open_regular, read_json, read_model
from archbench.files.seal import sealed

_log = logging.getLogger(__name__)

_FORMAT = "2"
"""Part of every cache key: increased if the layout on disk changes."""

ALWAYS_VERIFIED = 256 << 20
"""Bytes of a token file whose checksum each process verifies, which takes a fraction of a second. A larger one is
verified when it has changed in any way that the file system tells, and once a day."""
_DAY = 86_400

LARGE = 1 << 30
"""Bytes of text from which on the room on the disk is checked before the text is encoded."""


@dataclass(frozen=True)
class Record:
    """What the array holds: the first ``train_tokens`` are the stream, each of ``ends`` is a validation document's."""

    train_tokens: int
    ends: list[int]
    lossless: bool
    tokens_sha256: str


class TokenFile:
    """A ``.npy`` file named by the hash of corpus and tokenizer, and its record beside it.

    Args:
        cache: the cache folder.
    """

    def __init__(self, cache: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
        self._corpus, self._tokenizer = corpus, tokenizer
        key = content_key("tokens", _FORMAT, corpus.sha256, tokenizer.fingerprint)
        self.path = cache / "tokens" / f"{key}.npy"

    def read(self) -> tuple[TokenArray, Record] | None:
        """Memory-mapped tokens and their record; None if they are missing or damaged."""
        record_path = self.path.with_suffix(".json")
        # The record is written last: if it is missing, another process is writing or was interrupted.
        if not (record_path.exists() and self.path.exists()):
            return None
        try:
            record = read_model(Record, record_path, error=DataError, next_step="It is made again", sealing="required")
            self._verify(record.tokens_sha256)
            tokens: TokenArray = np.load(self.path, mmap_mode="r")
            ends = [0, record.train_tokens, *record.ends]
            if len(record.ends) != len(self._corpus.splits["validation"]) or ends != sorted(ends):
                raise ValueError("the record is of another corpus")
            if tokens.dtype != self._dtype or tokens.shape != (ends[-1],):
                raise ValueError("the record is of another array")
        except (DataError, OSError, ValueError) as error:
            _log.warning("cached tokens %s are damaged (%s) and are encoded again", self.path, error)
            return None
        return tokens, record

    def write(self, announce: Callable[[Sequence[str]], object] = lambda pieces: None) -> None:
        """Encode the corpus, block by block.

        Args:
            announce: called with the pieces of text before each batch of them is encoded.

        Raises:
            DataError: the text cannot be encoded, or has changed since the corpus was loaded.
            StorageError: the cache folder cannot be written, or has no room.
        """
        self._check_room(announce)
        encoding = _Encoding(self._tokenizer, self._dtype, announce)
        train_tokens, ends = 0, list[int]()

        def write(file: IO[bytes]) -> None:
            nonlocal train_tokens
            _write_header(file, self._dtype, 0)
            for document in self._corpus.splits["train"]:
                file.write(np.array([self._tokenizer.separator], dtype=self._dtype).data)
                train_tokens += 1 + encoding.write(document, file)
            end = train_tokens
            for document in self._corpus.splits["validation"]:
                end += encoding.write(document, file)
                ends.append(end)
            file.seek(0)
            _write_header(file, self._dtype, end)
            if self._tokenizer.lossless and not encoding.lossless:
                cause = "it should keep every byte, but its tokens do not spell this corpus"
                raise DataError(f"tokenizer {self._tokenizer.name!r}", cause, "Report this: it is a fault in archbench")

        write_atomically(self.path, write)
        record = Record(train_tokens, ends, encoding.lossless, _sha256(self.path))
        self._keep_verified(record.tokens_sha256)
        content = sealed(asdict(record), indent=None).encode()
        write_atomically(self.path.with_suffix(".json"), lambda file: file.write(content))

    def _check_room(self, announce: Callable[[Sequence[str]], object]) -> None:
        """Before the hours that a large text takes: say how much its tokens need, and refuse if there is less.

        Raises:
            StorageError: as :meth:`write`.
        """
        n_bytes = self._corpus.n_bytes("train") + self._corpus.n_bytes("validation")
        if n_bytes < LARGE:
            return
        sample = next(self._tokenizer.batches(text_blocks(self._corpus.splits["train"][0])))
        announce(sample)
        share = len(self._tokenizer.encode_batch(sample)) / sum(len(piece.encode()) for piece in sample)
        needed = int(n_bytes * share * self._dtype.itemsize)
        folder = next(parent for parent in self.path.parents if parent.exists())
        free = shutil.disk_usage(folder).free
        said = f"the tokens of {self._corpus.name!r} need about {needed / 2**30:.2f} GiB"
        if free < needed:
            cause = f"{said}, and {free / 2**30:.2f} GiB are free there"
            step = "Free space there, or set ARCHBENCH_CACHE to a folder on a larger disk"
            raise StorageError(f"cache folder {str(self.path.parent)!r}", cause, step)
        _log.warning("%s in %s", said, self.path.parent)

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self._tokenizer.vocab_size <= 1 << 16 else np.uint32)

    def _verify(self, sha256: str) -> None:
        """Raise ValueError if the checksum is wrong; one that was right a moment ago, of a large file, is believed."""
        facts = self.path.stat()
        if facts.st_size > ALWAYS_VERIFIED:
            with suppress(DataError, OSError):
                age = time.time() - self._verified.stat().st_mtime
                known = read_json(self._verified, limit=1 << 12, error=DataError, next_step="")
                if 0 <= age < _DAY and known == [*stamp_of(facts), sha256]:
                    return
        if _sha256(self.path) != sha256:
            raise ValueError("wrong checksum")
        self._keep_verified(sha256)

    def _keep_verified(self, sha256: str) -> None:
        """Note that a large file has this checksum, as it was read a moment ago."""
        facts = self.path.stat()
        if facts.st_size > ALWAYS_VERIFIED:
            content = json.dumps([*stamp_of(facts), sha256]).encode()
            write_atomically(self._verified, lambda file: file.write(content))

    @property
    def _verified(self) -> Path:
        return self.path.with_suffix(".verified")


class _Encoding:
    """Documents to tokens in a file; ``lossless`` says whether those of each have spelled its bytes."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any], announce: Callable[[Sequence[str]], object]) -> None:
        self._tokenizer, self._dtype, self._announce = tokenizer, dtype, announce
        table = tokenizer.token_bytes()
        self._spelling = None if table is None else Spelling(table)
        self.lossless = table is not None

    def write(self, document: Document, file: IO[bytes]) -> int:
        """Append the document's tokens; returns their number."""
        written = 0
        for pieces in self._tokenizer.batches(text_blocks(document)):
            self._announce(pieces)
            ids = self._tokenizer.encode_batch(pieces)
            if self.lossless and self._spelling is not None:
                self.lossless = self._spelling(ids) == "".join(pieces).encode()
            file.write(ids.astype(self._dtype).data)
            written += len(ids)
        return written


def _write_header(file: IO[bytes], dtype: np.dtype[Any], n_tokens: int) -> None:
    """The header that ``np.save`` writes; it has the same length for any number of tokens."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n_tokens,)}
    np.lib.format.write_array_header_1_0(file, header)


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
