"""The tokenizer of tokens whose text nobody knows: how many ids there are, and which of them separates documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from archbench.data.byte_tokenizer import SAVED_AS
from archbench.data.tokenizer_file import MOST_IDS
from archbench.errors import DataError, UsageError
from archbench.files.seal import sealed
from archbench.files.writing import write_text


class IdTokenizer:
    """``ids:V`` or ``ids:V:SEPARATOR``, where the separator is V - 1 unless it is given.

    Raises:
        UsageError: no numbers, or a separator that is no id.
    """

    lossless = False
    is_linear = True

    def __init__(self, spec: str) -> None:
        _, *numbers = spec.split(":")
        if not (1 <= len(numbers) <= 2 and all(one.isascii() and one.isdigit() and len(one) < 9 for one in numbers)):
            raise UsageError(f"tokenizer {spec!r}", "it says no number of ids", "Write ids:V, for instance ids:50257")
        self.name = self.fingerprint = spec
        self.vocab_size = int(numbers[0])
        self.separator = int(numbers[1]) if len(numbers) == 2 else self.vocab_size - 1
        if not 2 <= self.vocab_size <= MOST_IDS or self.separator >= self.vocab_size:
            cause = f"V is not between 2 and {MOST_IDS:,}, or the separator {self.separator} is not below it"
            raise UsageError(f"tokenizer {spec!r}", cause, "Write ids:V:SEPARATOR, for instance ids:50257:50256")

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        self._refuse()

    def batches(self, blocks: Iterable[str]) -> Iterator[list[str]]:
        self._refuse()

    def encode_batch(self, pieces: Sequence[str]) -> npt.NDArray[np.int64]:
        self._refuse()

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        self._refuse()

    def token_bytes(self) -> None:
        return None

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / SAVED_AS, sealed({"name": self.name}, indent=None))

    def _refuse(self) -> NoReturn:
        step = "Name the tokenizer that the tokens were made with: file:tokenizer.json or hf:NAME"
        raise DataError(f"tokenizer {self.name!r}", "it counts ids and knows no text", step)
