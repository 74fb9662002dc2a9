"""Jobs of archbench whose memory is bounded: ``archbench regress`` fails where a change makes it grow with the job."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch.nn.functional as F

import archbench
from archbench.regression import bounded_memory
from archbench.regression.verdict_table import TOLERANCES, UNITS, exact_rows

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
BOUNDED = {
    "loss_bytes": 40e6, "loss_growth": 77.0, "text_growth": 0.1, "subword_growth": 3.0, "results_growth": 600.0
}  # fmt: skip


def failing(head: dict[str, float]) -> set[str]:
    return {row.metric for row in exact_rows("archbench", BOUNDED, {**BOUNDED, **head}) if row.verdict == "FAIL"}


def test_resident_memory_has_a_tolerance_and_tensors_have_none() -> None:
    assert not failing({"text_growth": 0.55, "subword_growth": 12.0, "results_growth": 150_000.0})
    grown = {"text_growth": 1.1, "subword_growth": 53.0, "results_growth": 1e6, "loss_growth": 78.0, "loss_bytes": 5e7}
    for metric, value in grown.items():
        assert failing({metric: value}) == {metric}
    assert TOLERANCES.keys() < set(UNITS)


def test_a_loss_that_holds_all_logits_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_memory, "POSITIONS", (4_096, 8_192))
    base = {"loss_bytes": float(bounded_memory._of_a_loss(8_192))}
    monkeypatch.setattr(archbench, "linear_cross_entropy", lambda x, weight, y: F.cross_entropy(x @ weight.T, y))
    small, large = (bounded_memory._of_a_loss(N) for N in bounded_memory.POSITIONS)
    assert (large - small) / 4_096 >= 4 * 2_048, "a row of logits, and more"
    (row,) = exact_rows("archbench", base, {"loss_bytes": float(large)})
    assert row.verdict == "FAIL"


UNCHANGED = ""
WHOLE_TEXT = """
import numpy as np
from archbench.data import dataset
kept, prepare = [], dataset.prepare
def whole(data, **given):
    found = prepare(data, **given)
    kept.append(np.array(found.train))
    return found
dataset.prepare = whole
"""
ALL_PIECES = """
from archbench.data.subword import SubwordTokenizer
kept, encode = [], SubwordTokenizer.encode_batch
def keeping(self, pieces):
    kept.append(self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False))
    return encode(self, pieces)
SubwordTokenizer.encode_batch = keeping
"""
ALL_RUNS = """
from archbench.results.newest import NewestRuns
NewestRuns.count = lambda self: len(list(self))
kept, iterate = [], NewestRuns.__iter__
def keeping(self):
    for frame in iterate(self):
        kept.append(frame)
        yield frame
NewestRuns.__iter__ = keeping
"""
MEASURE = """
import json
import archbench.regression.bounded_memory as jobs
from archbench.measure.malloc import tune_malloc
tune_malloc()
costs, reasons = jobs.counts()
assert not reasons, reasons
print(json.dumps(costs))
"""


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "grown"),
    [
        (UNCHANGED, set()),
        (WHOLE_TEXT, {"text_growth"}),
        (ALL_PIECES, {"subword_growth"}),
        (ALL_RUNS, {"results_growth"}),
    ],
)
def test_what_keeps_all_of_a_text_or_of_the_runs_fails(change: str, grown: set[str]) -> None:
    done = subprocess.run([sys.executable, "-c", change + MEASURE], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == list(BOUNDED)
    assert failing({metric: found[metric] for metric in TOLERANCES}) == grown, found
