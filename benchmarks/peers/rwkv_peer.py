"""The package rwkv (pip install rwkv): BlinkDL's own inference code of RWKV-7, one sequence at a time."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peers.contender import Cell, Contender, UnavailableError


class RWKV(Contender):
    def __init__(self, cell: Cell) -> None:
        if cell.job == "train":
            raise UnavailableError("the package rwkv trains nothing")
        if cell.batch > 1:
            raise UnavailableError("the package rwkv reads one sequence at a time")
        super().__init__(cell, nn.Module())
        os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}  # read when it is imported
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            from rwkv.model import RWKV_x070

            torch.save({name: tensor.clone() for name, tensor in cell.published_weights.items()}, f"{folder}/m.pth")
            self.published: Any = RWKV_x070(f"{folder}/m", f"cpu {'bf16' if cell.dtype == 'bfloat16' else 'fp32'}")

    def decode(self, prompt: Tensor, new_tokens: int) -> Iterator[Tensor]:
        tokens, state = prompt[0].tolist(), None
        for _ in range(new_tokens):
            with torch.inference_mode():
                logits, state = self.published.forward(tokens, state)
                token = logits.argmax(-1, keepdim=True)
                tokens = token.tolist()
            yield token
