"""Autotuning keeps its choices: a second process launches the same configuration without timing anything."""

from __future__ import annotations

import logging
import os
import tempfile

import torch

from archbench.kernels import causal_attention
from archbench.kernels.attention_backends import AUTOTUNE_VARIABLE
from archbench.proof.statements import Bench, Statements, judged

SHAPE = (4, 12, 512, 64)


def autotuned(bench: Bench) -> Statements:
    """Tune one shape twice, the second time with the process's own memory of it emptied."""
    from archbench.kernels.fused import tuning

    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("archbench")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {AUTOTUNE_VARIABLE: "1", "TRITON_CACHE_DIR": folder}
        q = torch.randn(SHAPE, device=bench.device, dtype=torch.bfloat16)
        timed = []
        for _ in range(2):
            tuning._choices.clear()
            heard.clear()
            causal_attention(q, q, q, backend="triton")
            timed.append(sum(line.startswith("autotuning") for line in heard))
    logger.removeHandler(handler)
    shown = f"{timed[0]} choices timed, then {timed[1]}"
    yield judged("a tuned shape is not timed again", timed[0] > 0 and timed[1] == 0, "some, then none", shown)
