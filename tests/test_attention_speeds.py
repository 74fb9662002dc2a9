"""Which attention was the fastest on a GPU is kept with what it depends on, and is what `auto` then goes by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from archbench.errors import StorageError
from archbench.kernels.attention_rules import MEASURED, PUBLISHED, MeasuredCase, ranking, use_measured
from archbench.measure import attention_speeds
from archbench.measure.attention_speeds import keep_attention_speeds, known_attention_speeds


def row(attention: str, metric: str, value: float | None, T: int = 4096, W: int | None = None) -> dict[str, Any]:
    sizes = {"context_length": T, "window": W, "head_width": 64, "batch_size": 4, "query_heads": 32, "kv_heads": 32}
    return {
        "operation": "causal_attention", "attention": attention, "metric": metric, "value": value, "dtype": "bfloat16",
        **sizes,
    }  # fmt: skip


ROWS = [
    *(row("triton-autotuned", "forward_seconds", value) for value in (3.0, 1.0, 1.0)),  # the median counts
    row("triton-autotuned", "backward_seconds", 9.0),
    row("sdpa-cudnn", "forward_seconds", 2.0),
    row("sdpa-cudnn", "backward_seconds", 3.0),
    row("sdpa-flash", "forward_seconds", 0.5),
    row("sdpa-flash", "forward_seconds", None, T=3000),  # it failed at another length of the octave
    *(row("triton-autotuned", metric, 1.0, T=3000) for metric in ("forward_seconds", "backward_seconds")),
    *(row("sdpa-cudnn", metric, 1.0, T=3000) for metric in ("forward_seconds", "backward_seconds")),
    {"operation": "cross_entropy", "attention": None, "metric": "forward_seconds", "value": 1.0},
]
CASE = MeasuredCase("bfloat16", 64, 12, False, ("triton", "sdpa-cudnn"), ("sdpa-cudnn", "triton"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path))


def test_the_fastest_are_kept_for_this_device_and_these_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_attention_speeds("cpu") == []
    assert keep_attention_speeds("cpu", ROWS) == [CASE]
    keep_attention_speeds("cpu", [row("triton", "forward_seconds", 1.0, T=128, W=16)])
    assert known_attention_speeds("cpu") == [CASE, MeasuredCase("bfloat16", 64, 7, True, ("triton",), ())]
    monkeypatch.setattr(attention_speeds, "_cudnn_version", lambda: 91900)
    assert known_attention_speeds("cpu") == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    keep_attention_speeds("cpu", ROWS)
    (file,) = (tmp_path / "attention").iterdir()
    file.write_text(file.read_text().replace("4096", "1").replace("triton", "tritan"))
    with pytest.raises(StorageError, match="archbench kernels"):
        known_attention_speeds("cpu")


def test_a_measurement_stands_above_what_is_published() -> None:
    def chosen(T: int = 4096, *, training: bool) -> tuple[str, str]:
        found = ranking("sm_90", torch.bfloat16, 64, T.bit_length() - 1, "square", training=training)
        return found.names[0], found.rule

    before = chosen(training=True), chosen(training=False)
    use_measured([CASE])
    try:
        assert chosen(training=True) == ("sdpa-cudnn", MEASURED)
        assert chosen(training=False) == ("triton", MEASURED)
        assert chosen(1024, training=True)[1] == PUBLISHED, "which was not measured"
    finally:
        use_measured([])
    assert (chosen(training=True), chosen(training=False)) == before
