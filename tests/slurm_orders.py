"""What jobs do in the tests of the SLURM launcher; they import it by PYTHONPATH."""

from __future__ import annotations

import os
import time
from pathlib import Path

from archbench.interruption import interruptible, underway


def double(number: int) -> int:
    return 2 * number


def visible_gpus(_: None) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def refused(text: str) -> None:
    raise ValueError(text)


def resumed(folder: Path) -> list[str]:
    """Wait for an interruption, write a checkpoint and end; from a checkpoint: return the pids of all starts."""
    starts, checkpoint = folder / "starts", folder / "checkpoint"
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if checkpoint.exists():
        return starts.read_text().split()
    with interruptible(), underway():
        try:
            time.sleep(600)
        except KeyboardInterrupt as interruption:
            checkpoint.write_text(str(interruption))
            raise
    raise AssertionError("nobody has interrupted it")


def hungry(megabytes: int) -> int:
    """Hold so much memory."""
    held = [bytearray(b"1") * (1 << 20) for _ in range(megabytes)]
    return len(held)
