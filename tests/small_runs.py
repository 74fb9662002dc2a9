"""Runs of a second or two that test files share: their options, the text they read, and what is read off their rows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from archbench import read_results
from archbench.config import RunConfig
from archbench.data.byte_tokenizer import ByteTokenizer
from archbench.data.corpora import load_corpus
from archbench.measure.machine import versions
from archbench.runs.folder import RunFolder

SMALL = [
    "--profile", "smoke", "--corpus", "small.txt", "--steps", "6", "--batch-size", "4", "--set", "n_layer=1",
    "--set", "context_length=32", "--config", "training.validate_every=3", "--config", "training.checkpoint_every=2",
    "--threads", "1", "--quiet",
]  # fmt: skip
UNCHECKED = [*SMALL, "--unchecked"]
"""For tests that do not care about the conformance checks: tests/test_run_gate.py does."""


def losses(frame: pd.DataFrame) -> list[float]:
    """Of the training steps, in order."""
    rows = frame[(frame.phase == "train") & (frame.metric == "loss")]
    return rows.sort_values("repeat").value.to_list()


def losses_by_run(folder: Path) -> dict[object, list[float]]:
    """Architecture and seed -> losses, of the runs in a folder, which have all finished."""
    rows = read_results(folder)
    assert set(rows.status) == {"ok"}
    return {key: losses(own) for key, own in rows.groupby(["architecture", "seed"])}


def value(frame: pd.DataFrame, phase: str, metric: str) -> float:
    """Of the one row of that metric."""
    rows = frame[(frame.phase == phase) & (frame.metric == metric)]
    assert len(rows) == 1, f"{phase}/{metric}: {len(rows)} rows"
    return float(rows.value.iloc[0])


def with_small_corpus(folder: Path) -> Path:
    """The folder, with some 20 kB of real text in it: scoring the whole embedded split would be most of the time."""
    document = load_corpus("shakespeare").splits["validation"][0]
    (folder / "small.txt").write_text(document.text[:20_000])
    return folder


def begun(out: Path, run_id: str, config: RunConfig) -> RunFolder:
    """The folder of a run that has begun and measured nothing."""
    facts = {
        "plugin_package": "archbench",
        "plugin_version": "sha256:0",
        "corpus": "shakespeare",
        "tokenizer": "byte",
        "lossless": True,
        "wrappers": [],
        "versions": versions(),
    }
    folder = RunFolder(out / run_id, config, {"context_length": 8, "vocab_size": 257}, facts)
    folder.create(ByteTokenizer().save)
    return folder
