"""llama.cpp itself, in the package xllamacpp: the ids of its tokenizer, and its logits.

``pip install --no-deps xllamacpp`` brings it compiled, for Linux and macOS.
"""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


class LlamaCpp:
    """A model that llama.cpp's server has loaded, in this process."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def ids(self, text: str) -> list[int]:
        """Of a text in which no special token is looked for."""
        content = {"content": text, "add_special": False, "parse_special": False}
        data = json.dumps(content).encode()
        request = urllib.request.Request(f"{self._server.listening_address}/tokenize", data)
        with urllib.request.urlopen(request) as answer:
            found: list[int] = json.load(answer)["tokens"]
        return found

    def log_probabilities(self, ids: Sequence[int], vocab_size: int) -> Tensor:
        """Of each next token (T, V), float32, after each of ``ids`` (T,); one position at a time, as it decodes."""
        found = torch.full((len(ids), vocab_size), math.nan)
        # Of half a character it tells no probabilities, so a whole one is drawn: that changes none that are told.
        drawn = [[self.ids("a")[0], 1000.0]]
        for end in range(1, len(ids) + 1):
            asked = {"prompt": list(ids[:end]), "n_predict": 1, "n_probs": vocab_size, "logit_bias": drawn}
            answer = self._server.handle_completions(asked)
            for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
                found[end - 1, one["id"]] = one["logprob"]
        return found


@contextmanager
def llama_cpp(path: Path, context: int) -> Iterator[LlamaCpp]:
    """The model of a GGUF file, computed as exactly as llama.cpp can: its cache in float32."""
    x = pytest.importorskip("xllamacpp", reason="no llama.cpp (pip install --no-deps xllamacpp)")
    asked = x.CommonParams()
    asked.model.path, asked.n_ctx, asked.port, asked.ui, asked.warmup, asked.verbosity = str(path), context, 0, 0, 0, 1
    asked.cache_type_k = asked.cache_type_v = x.ggml_type.GGML_TYPE_F32
    asked.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    server = x.Server(asked)
    try:
        yield LlamaCpp(server)
    finally:
        del server
