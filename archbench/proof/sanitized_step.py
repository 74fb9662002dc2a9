"""compute-sanitizer's memcheck over a training step and a few decoded tokens."""

from __future__ import annotations

import shutil
import subprocess
import sys

from archbench.proof.statements import Bench, Statements, judged, not_run

PROGRAM = """
import torch, archbench
from archbench.config import TrainingConfig
from archbench.data.batches import Batch
from archbench.training.state import TrainState
architecture = archbench.load("gpt1")
config = architecture.config("nano")
model = architecture.build(config).to("{device}")
state = TrainState.create(model, TrainingConfig(steps=1, batch_size=2),
    device=torch.device("{device}"), dtype="bfloat16")
tokens = torch.randint(config.vocab_size, (2, 129))
archbench.next_token_step(state, Batch(tokens[:, :-1], tokens[:, 1:]))
prompt = tokens[:1, :8].to("{device}")
print([int(t) for t in architecture.generate(model.eval(), prompt, 4, archbench.Sampling(greedy=True))])
"""


def sanitized(bench: Bench) -> Statements:
    """No invalid access, in a process of its own."""
    what = "a training step and four tokens of gpt1, under memcheck"
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        yield not_run(what, "compute-sanitizer is not on PATH: it comes with the CUDA toolkit")
        return
    command = [tool, "--tool", "memcheck", "--error-exitcode", "99", sys.executable, "-c"]
    ended = subprocess.run([*command, PROGRAM.format(device=bench.device)], capture_output=True, text=True, check=False)
    last = (ended.stdout + ended.stderr).strip().splitlines()[-1:]
    yield judged(what, ended.returncode == 0, "exit code 0", f"exit code {ended.returncode}: {' '.join(last)}")
