"""nanoGPT's model.py, of a checkout: GPT-2 as it is trained there, with its own loss. It decodes without a cache."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from peers.contender import Cell, Contender, UnavailableError

MODEL: Path | None = None
"""The file; ``--nanogpt`` sets it."""


class NanoGPT(Contender):
    cached = False

    def __init__(self, cell: Cell) -> None:
        self.why_not = (
            "GPT-2 norms before each sublayer, not after it"
            if cell.architecture == "gpt1"
            else "GELU by erf, ours as published by tanh"
        )
        nanogpt, c = _module(MODEL), cell.config
        if c.d_ff != 4 * c.d_model:
            raise UnavailableError("its feed-forward layer is always four times as wide as the model")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
            config = nanogpt.GPTConfig(
                block_size=c.context_length, vocab_size=c.vocab_size, n_layer=c.n_layer, n_head=c.n_head,
                n_embd=c.d_model, dropout=cell.dropout, bias=True,
            )  # fmt: skip
            model = nanogpt.GPT(config)
        super().__init__(cell, model)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.model(inputs, targets.contiguous())[1]
        return loss

    def last_logits(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens)[0][:, -1]
        return logits


@cache
def _module(path: Path | None) -> Any:
    if path is None:
        raise UnavailableError("no checkout was given: --nanogpt PATH, of its model.py")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UnavailableError(f"{path} is no Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
