"""Decoding from captured graphs: one launch a token and nothing else, and what cannot be captured says so."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from counts import Counts, counts, reset

import archbench
from archbench import Sampling, decode_with_cache
from archbench.inference.decoding_kind import decoding

NAMES = ["gpt1", "gpt2", "llama", "mistral", "gemma", "mixtral", "mamba2", "gated_deltanet", "rwkv7", "hybrid"]
GREEDY = Sampling(greedy=True)


def _model(name: str, dtype: torch.dtype = torch.bfloat16, preset: str = "nano", **overrides: Any) -> Any:
    plugin = importlib.import_module(f"archbench_plugins.{name}")
    return plugin.build(plugin.PRESETS[preset].model_copy(update=overrides)).to("cuda", dtype)


def _prompt(P: int = 20) -> torch.Tensor:
    return torch.zeros(3, P, dtype=torch.int64).cuda()


def _steady(model: Any, sampling: Sampling = GREEDY, new_tokens: int = 40, kind: str = "graph") -> Counts:
    """Counts of all tokens after the third, where an earlier decoding has captured what they need."""
    with decoding(kind) as ran:
        list(decode_with_cache(model, _prompt(), new_tokens, sampling))
        tokens = decode_with_cache(model, _prompt(), new_tokens, sampling)
        for _ in range(3):
            next(tokens)
        reset()
        assert len(list(tokens)) == new_tokens - 3
    assert (ran.kinds, ran.reasons) == ({kind}, set())
    return counts()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_a_token_is_one_graph_launch_and_no_wait(name: str, dtype: torch.dtype) -> None:
    seen = _steady(_model(name, dtype))
    assert (seen.graph_launches, seen.kernels, seen.copies, seen.syncs, seen.refused) == (37, 0, 0, 0, 0)
    assert seen.graph_nodes > 37 * 20


@pytest.mark.parametrize("rule", [{}, {"top_k": 5}, {"top_p": 0.8}])
def test_sampling_is_in_the_graph(rule: dict[str, Any]) -> None:
    """Torch writes the generator's seed and offset to the GPU before each replay: two more kernels, and no wait."""
    model = _model("gpt1")
    for generator in (None, torch.Generator("cuda")):
        seen = _steady(model, Sampling(generator=generator, **rule))
        assert (seen.graph_launches, seen.kernels, seen.copies, seen.syncs) == (37, 2 * 37, 0, 0)


def test_graphs_are_captured_once_for_each_batch_size_and_reach_and_again_where_weights_move() -> None:
    model = _model("gpt1", context_length=512)

    def replayed(new_tokens: int) -> int:
        reset()
        with decoding("graph"):
            list(decode_with_cache(model, _prompt(), new_tokens, GREEDY))
        return counts().graph_launches

    assert replayed(300) == 299 - 3, "a step in each of 128, 256 and 512 warms up for its capture"
    assert replayed(300) == 299
    model.position_embedding.weight.data = model.position_embedding.weight.data.clone()
    assert replayed(300) == 299 - 3
    assert replayed(300) == 299


def test_attention_of_replayed_steps_is_recorded() -> None:
    from archbench.kernels import record_attention

    model = _model("gpt1")
    _steady(model)
    with record_attention() as ran:
        seen = _steady(model)
    assert seen.graph_launches
    assert "sdpa-efficient" in ran


def test_a_step_that_waits_for_the_gpu_is_not_captured_and_says_why() -> None:
    model = _model("gpt1")
    extend = model.extend

    def waiting(tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        logits: torch.Tensor = extend(tokens, cache)
        float(logits.sum())
        return logits

    model.extend = waiting
    sampled = Sampling()
    with decoding("graph") as ran:
        assert len(list(decode_with_cache(model, _prompt(), 10, sampled))) == 10
    assert any("cannot be captured" in reason and "capturing" in reason for reason in ran.reasons), ran.reasons
    with decoding("graph") as ran:
        assert len(list(decode_with_cache(model, _prompt(), 10, sampled))) == 10
    assert ran.kinds == {"eager"}
    assert _steady(_model("gpt1"), sampled).graph_launches == 37, "and disturbs no other capture"


@pytest.mark.slow
def test_counts_of_a_token_are_the_committed_ones() -> None:
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    committed = json.loads((benchmarks / "gpu_counts.json").read_text())["decoding"]
    found = runpy.run_path(str(benchmarks / "gpu_counts.py"))["decoding"]()
    for kinds in (*committed.values(), *found.values()):
        for kind in kinds.values():
            del kind["host_microseconds"]
    assert found == committed, "if it is meant: DIR/run python benchmarks/gpu_counts.py decoding"


@pytest.mark.slow
def test_the_phase_decode_has_rows_of_both_kinds(tmp_path: Path) -> None:
    options = "--preset nano --device cuda --dtype bfloat16 --profile smoke --phases decode --corpus shakespeare"
    options += " --tokenizer bpe:1024 --unchecked --quiet --out"
    command = ["-m", "archbench", "run", "gpt1", *options.split(), str(tmp_path)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    rows = archbench.read_results(tmp_path)
    decode = rows[rows.phase == "decode"].groupby("metric").value
    assert decode.count()["graph_seconds_per_token"] == decode.count()["seconds_per_token"] > 0
    assert decode.min()["graph_captured"] == 1


@pytest.mark.slow
def test_serving_and_generating_decode_from_graphs_and_say_so(tmp_path: Path) -> None:
    def archbench_says(*arguments: str) -> tuple[str, str]:
        command = [sys.executable, "-m", "archbench", *arguments]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout, done.stderr

    trace = [(0, 4, 6), (0, 4, 2), (0, 4, 1), (9, 8, 3)]
    lines = [{"arrival_seconds": at, "prompt_tokens": P, "output_tokens": new} for at, P, new in trace]
    (tmp_path / "trace.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    few = ("--preset", "nano", "--corpus", "shakespeare", "--tokenizer", "bpe:1024", "--device", "cuda", "--unchecked")
    timed = ("--repeats", "2", "--warmup", "0", "--quiet", "--profile", "smoke", "--dtype", "bfloat16")
    for name, options in (("trace", ("--trace", "trace.jsonl", "--batch", "3")), ("cases", ("--batch", "1,2"))):
        out, _ = archbench_says("serve-bench", "gpt1", *few, *timed, *options, "--out", name)
        assert "one replay of a captured step" in out
        rows = archbench.read_results(tmp_path / name, {"metric": "graph_captured"})
        assert set(rows.value) == {1}
    out, _ = archbench_says("serve-bench", "gpt1", *few, *timed, "--decoding", "eager", "--out", "eager")
    assert "CUDA graph" not in out
    trained = ("--profile", "smoke", "--steps", "2", "--phases", "train", "--quiet", "--out", "trained")
    archbench_says("run", "gpt1", *few, *trained)
    for device, said in (("cuda", "Decoding: graph"), ("cpu", "")):
        _, error = archbench_says("generate", "gpt1", "--out", "trained", "--device", device, "--max-new-tokens", "9")
        assert said in error
