"""Token ids to read in a check: at random, and such as a run reads, for a model that looks at what its tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from archbench.data.byte_tokenizer import ByteTokenizer
from archbench.data.corpora import load_corpus
from archbench.data.dataset import Dataset

MOST = 1 << 16
"""Tokens of the text that are kept, from its beginning."""

KINDS = ("text", "random tokens", "a text of short documents", "a repeated phrase", "text", "one token repeated")
"""What the rows of :meth:`Text.rows` are, over and over."""


@dataclass(frozen=True)
class Text:
    """What a model is to read in its run.

    Attributes:
        tokens: ids (N,) int64, N at least 1.
        separator: the id between documents; None if there is none.
    """

    tokens: Tensor
    separator: int | None = None

    @classmethod
    def of(cls, data: Dataset) -> Text:
        """The beginning of a run's training text, or of the scored text where nothing is trained."""
        parts = [data.train] if len(data.train) > 1 else [document.tokens for document in data.validation]
        head = np.concatenate([part[:MOST] for part in parts])[:MOST].astype(np.int64)
        return cls(torch.from_numpy(head), data.tokenizer.separator)

    def rows(self, B: int, T: int, V: int, seed: int) -> Tensor:
        """(B, T) int64, each row of one of :data:`KINDS`; ids past the vocabulary V begin again at 0."""
        generator = torch.Generator().manual_seed(seed)

        def draw(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=generator)

        def piece(length: int) -> Tensor:
            start = int(draw(0, max(1, len(self.tokens) - length), 1))
            return self.tokens[start : start + length].repeat(-(-length // len(self.tokens)))[:length]

        rows = []
        for kind in kinds(B):
            if kind == "random tokens":
                row = draw(0, V, T)
            elif kind == "a repeated phrase":
                phrase = piece(int(draw(2, 12, 1)))
                row = phrase.repeat(-(-T // len(phrase)))[:T]
            elif kind == "one token repeated":
                row = piece(1).expand(T)
            else:
                row = piece(T).clone()
                if kind != "text" and self.separator is not None:
                    row[draw(0, T, 1 + T // 16)] = self.separator
            rows.append(row)
        return torch.stack(rows) % V


def kinds(B: int) -> Sequence[str]:
    """What each of the B rows of :meth:`Text.rows` is."""
    return [KINDS[row % len(KINDS)] for row in range(B)]


@cache
def shipped() -> Text:
    """A text for a model that has none: a play, as bytes."""
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(load_corpus("shakespeare").splits["validation"][0].text[:MOST])
    return Text(torch.from_numpy(ids), tokenizer.separator)
