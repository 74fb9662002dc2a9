"""The whole chain (GPT-2, data, batches, optimizer, schedule, scoring) reaches the loss that published code reaches.

The run file says what is known: nanoGPT's configuration for CPUs, run with the published code.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archbench import RunConfig, run
from archbench.cli.run import read_run_file

RUN_FILE = Path(__file__).parents[1] / "results" / "known" / "nanogpt-cpu.toml"

TOLERANCE = 0.02
"""Between seeds: three runs of the published code on one text differ by 0.008."""


def final_loss(tmp_path: Path, corpus: str | None = None) -> float:
    written = read_run_file(str(RUN_FILE))
    if corpus is not None:
        written["data"]["corpus"] = corpus
    frame = run(RunConfig(**written, out=str(tmp_path)), quiet=True)
    assert frame.parameters.max() == 828_672  # nanoGPT's 0.80 M, with 257 bytes for its 65 characters
    rows = frame[(frame.phase == "quality") & (frame.metric == "loss")]
    return float(rows.value.iloc[0])


@pytest.mark.slow
def test_nanogpts_cpu_configuration_on_the_embedded_shakespeare(tmp_path: Path) -> None:
    assert final_loss(tmp_path) == pytest.approx(1.914, abs=TOLERANCE)


@pytest.mark.slow
def test_nanogpts_cpu_configuration_on_tiny_shakespeare(tmp_path: Path) -> None:
    folder = os.environ.get("ARCHBENCH_DATA")
    if folder is None:
        pytest.skip("tiny Shakespeare is not part of the project: ARCHBENCH_DATA names no folder that has it")
    corpus = Path(folder) / "tinyshakespeare" / "input.txt"
    assert final_loss(tmp_path, str(corpus)) == pytest.approx(1.90, abs=TOLERANCE)


def test_the_run_file_is_nanogpts_published_configuration() -> None:
    """The numbers of its README's command line, by its names."""
    config = RunConfig(**read_run_file(str(RUN_FILE)))
    training, model = config.training, config.overrides
    assert (model["n_layer"], model["n_head"], model["d_model"], model["context_length"]) == (4, 4, 128, 64)
    assert (model["bias"], model["resid_dropout"], config.architecture, config.data.tokenizer) == (
        False,
        0,
        "gpt2",
        "byte",
    )
    assert (training.batch_size, training.steps, training.tokens, training.accumulation) == (12, 2000, None, 1)
    assert (training.learning_rate, training.min_lr_ratio, training.schedule) == (1e-3, 0.1, "cosine")
    assert training.warmup_fraction * 2000 == 100
    assert (training.betas, training.weight_decay, training.grad_clip) == ((0.9, 0.99), 0.1, 1.0)
