"""Autotuning keeps its choices: a second process launches the same configuration without timing anything."""

from __future__ import annotations

import logging
import tempfile
from typing import TYPE_CHECKING

import torch

from archbench.child.process import Child
from archbench.kernels import causal_attention
from archbench.kernels.attention_backends import AUTOTUNE_VARIABLE
from archbench.proof.statements import Bench, Statements, judged

if TYPE_CHECKING:
    from archbench.child.entry import Parent

SHAPE = (4, 12, 512, 64)


def autotuned(bench: Bench) -> Statements:
    """Tune one shape in one process, and launch it in another."""
    with tempfile.TemporaryDirectory() as folder:
        variables = {AUTOTUNE_VARIABLE: "1", "TRITON_CACHE_DIR": folder}
        timed = []
        for _ in range(2):
            with Child(__name__, str(bench.device), culprit="autotuning", variables=variables) as child:
                timed.append(child.receive())
    shown = f"{timed[0]} choices timed, then {timed[1]}"
    yield judged("a tuned shape is not timed again", timed[0] > 0 and timed[1] == 0, "some, then none", shown)


def main(parent: Parent, device: str) -> None:
    """In the child: send how many choices this process timed for one forward pass."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("archbench")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    q = torch.randn(SHAPE, device=device, dtype=torch.bfloat16)
    causal_attention(q, q, q, backend="triton")
    parent.send(sum(line.startswith("autotuning") for line in heard))
