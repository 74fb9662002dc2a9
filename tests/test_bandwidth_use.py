"""Memory-bandwidth use of decoding: bytes that a step must read, worked by hand, over what doctor measured, or null."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch

import archbench
from archbench.config import RunConfig
from archbench.errors import StorageError
from archbench.measure.peaks import keep_bandwidth, known_bandwidth
from archbench.measure.sizes import active_parameters, decode_step_bytes
from archbench.runs.preparation import start
from archbench.runs.rows import Rows
from archbench.runs.speed import run_decode
from small_runs import with_small_corpus
from test_sizes import Says, on_meta


@pytest.mark.parametrize(("batch", "reached"), [(1, 2), (3, 6), (4, 8), (5, 8)])
def test_a_step_of_mixtral_reads_at_most_two_experts_a_sequence_and_no_expert_twice(batch: int, reached: int) -> None:
    model = on_meta(
        "mixtral", vocab_size=100, context_length=32, n_layer=3, n_head=2, n_kv_head=1, d_model=8, d_head=4, d_ff=16,
        n_expert=8, n_active=2,
    )  # fmt: skip
    attention = 2 * 8 * 8 + 2 * 8 * 4  # query and output (H D = C); keys and values (G D = 4)
    experts = reached * 3 * 8 * 16  # gate, up, down
    layer = 2 * 8 + attention + 8 * 8 + experts  # two norms, router
    weights = batch * 8 + 3 * layer + 8 + 100 * 8  # rows of the embedding, layers, last norm, head
    state = 2 * 3 * batch * 4 * 20  # keys and values of 20 positions
    assert decode_step_bytes(model, batch, 20) == 4 * (weights + state)


def test_a_tied_embedding_is_read_once_as_the_head_and_positions_are_gathered() -> None:
    model = on_meta("gpt1", vocab_size=50, context_length=32, n_layer=1, n_head=2, d_model=8, d_ff=32)
    block = 4 * (8 * 8 + 8) + 2 * 8 * 32 + 32 + 8 + 2 * 2 * 8  # attention, feed-forward, their biases, two norms
    assert decode_step_bytes(model, 2, 10) == 4 * (50 * 8 + 2 * 8 + block + 2 * 2 * 8 * 10)


def test_half_precision_halves_it_and_a_window_bounds_the_state() -> None:
    config = {"vocab_size": 50, "context_length": 64, "window": 16}
    model = on_meta("mistral", **config)
    assert decode_step_bytes(model, 1, 40) == decode_step_bytes(model, 1, 16)
    full = decode_step_bytes(model, 1, 40)
    assert full is not None
    assert decode_step_bytes(model.to(torch.bfloat16), 1, 40) == full // 2


def test_a_module_that_answers_for_one_token_alone_is_taken_to_share_nothing() -> None:
    from archbench.measure.sizes import _inactive

    assert active_parameters(Says(80)) == 20
    assert [_inactive(Says(80), set(), tokens) for tokens in (1, 2, 5, 9)] == [80, 60, 0, 0]


def test_decoding_without_a_cache_has_no_such_number() -> None:
    architecture = archbench.load("bigram", plugins=[str(Path(__file__).parent / "example_plugins" / "bigram.py")])
    with torch.device("meta"):
        model = architecture.build(architecture.config("nano"))
    assert decode_step_bytes(model, 1, 8) is None


@pytest.mark.parametrize(("kept", "cached"), [(None, False), (2e9, False), (2e9, True)])
def test_each_case_of_decoding_has_its_share_of_the_bandwidth_that_was_measured_or_null(
    kept: float | None, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cached:  # any processor's cache holds a model of this size
        monkeypatch.setattr("archbench.runs.speed.last_level_cache_bytes", lambda device: 0)
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path / "cache"))
    if kept is not None:
        keep_bandwidth("cpu", 1e9)
        keep_bandwidth("cpu", kept)  # the last measurement counts
    settings = {
        "data": {"corpus": str(with_small_corpus(tmp_path) / "small.txt"), "tokenizer": "byte"},
        "speed": {"prompt_lengths": [4, 12], "batch_sizes": [2], "new_tokens": 6, "repeats": 2, "warmup": 0},
        "overrides": {"context_length": 16, "n_layer": 1}, "phases": ("decode",), "out": str(tmp_path / "results"),
    }  # fmt: skip
    run = start(RunConfig(architecture="gpt1", profile="smoke", **settings))  # type: ignore[arg-type]
    rows = Rows("decode")
    run_decode(run, torch.device("cpu"), rows, quiet=True)

    def values(metric: str, P: int | None = None) -> list[float]:
        return [row["value"] for row in rows.finished() if (row["metric"], row.get("prompt_length")) == (metric, P)]

    model = on_meta("gpt1", **{**run.model, "vocab_size": 257})
    assert values("bandwidth_measured") == [kept]
    assert values("step_bytes", 4) == [decode_step_bytes(model, 2, 4 + 3)]
    assert values("step_bytes", 12) == values("mbu", 12) == [None], "12 + 6 tokens slide past the context of 16"
    read, seconds = values("step_bytes", 4)[0], median(values("seconds_per_token", 4))
    assert values("mbu", 4) == ([None] if kept is None or cached else [pytest.approx(read / seconds / kept)])


def test_another_number_of_threads_or_a_damaged_file_gives_no_bandwidth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path))
    keep_bandwidth("cpu", 3e9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    assert known_bandwidth("cpu") is None
    keep_bandwidth("cpu", 4e9)
    assert known_bandwidth("cpu") == 4e9
    for file in (tmp_path / "bandwidth").iterdir():
        file.write_text(file.read_text().replace("4000000000.0", "9000000000.0"))
    with pytest.raises(StorageError, match="bandwidth"):
        known_bandwidth("cpu")
