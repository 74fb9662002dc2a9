"""Runs of other models than the built-in presets: published weights, a plugin file, another attention backend."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from archbench import read_results
from command_line import archbench
from small_runs import value, with_small_corpus

EXAMPLES = Path(__file__).parent / "example_plugins"


def test_published_weights_score_as_transformers_scores_them(tmp_path: Path) -> None:
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    torch.manual_seed(0)
    T, separator = 24, 256
    published = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=300, n_positions=T, n_embd=32, n_layer=2, n_head=2))
    for parameter in published.parameters():  # the default initialisation is too near to uniform to tell a mistake
        torch.nn.init.normal_(parameter, std=0.2)
    published.eval().save_pretrained(with_small_corpus(tmp_path) / "published")
    (tmp_path / "small.txt").write_text((tmp_path / "small.txt").read_text()[:2000])
    done = archbench(
        "run", "gpt1", "--profile", "smoke", "--preset", "paper", "--weights", "published", "--tokenizer", "byte",
        "--corpus", "small.txt",
        "--set", "vocab_size=300", "--set", f"context_length={T}", "--set", "d_model=32", "--set", "n_layer=2",
        "--set", "n_head=2", "--set", "d_ff=128", "--phases", "quality", "--attention", "reference",
        "--threads", "1", "--unchecked", "--quiet",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    frame = read_results(tmp_path / "results")
    assert set(frame[frame.phase == "quality"].attention) == {"reference"}

    text = (tmp_path / "small.txt").read_bytes()
    nats = 0.0
    for start in range(0, len(text), T):  # lm-evaluation-harness's disjoint windows, the last one filled from the left
        scored = min(T, len(text) - start)
        end = start + scored
        tokens = [separator, *text][end - T if start else 0 : end + 1]
        with torch.no_grad():
            logits = published(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)  # (T, V)
        nats -= logits[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])][-scored:].double().sum().item()
    assert value(frame, "quality", "bytes_scored") == len(text)
    assert value(frame, "quality", "bits_per_byte") == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)


def test_a_plugin_file_and_a_wrapper_are_recorded_with_the_run(tmp_path: Path) -> None:
    plugins = [part for name in ("bigram", "stopwatch") for part in ("--plugin", str(EXAMPLES / f"{name}.py"))]
    done = archbench(
        "run", "bigram", *plugins, "--profile", "smoke", "--corpus", "small.txt", "--steps", "3", "--phases", "train",
        "--unchecked", "--quiet", cwd=with_small_corpus(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    frame = read_results(tmp_path / "results")
    assert set(frame.plugin_package) == {str(EXAMPLES / "bigram.py")}
    assert set(frame[frame.phase != "environment"].attention) == {"none"}, "it has no attention, and the rows say so"
    (settings,) = (tmp_path / "results").glob("*.json")
    assert '"wrappers": [\n      "stopwatch"\n    ]' in settings.read_text()


def test_a_plugin_that_stops_early_gets_no_speed(tmp_path: Path) -> None:
    source = (EXAMPLES / "bigram.py").read_text()
    honest = "return decode_without_cache(model, prompt, max_new_tokens, sampling)"
    assert honest in source
    lazy = "return decode_without_cache(model, prompt, max(1, max_new_tokens // 2), sampling)"
    (tmp_path / "lazy.py").write_text(source.replace(honest, lazy))
    done = archbench(
        "run", "bigram", "--plugin", "lazy.py", "--profile", "smoke", "--corpus", "small.txt", "--phases",
        "decode", "--unchecked", "--quiet", cwd=with_small_corpus(tmp_path),
    )  # fmt: skip
    assert done.returncode == 3
    assert "bigram" in done.stderr
    decode = read_results(tmp_path / "results", {"phase": "decode"})
    assert decode.metric.to_list() == ["failed"]
    assert decode.status.str.contains("4 tokens instead of 8").all()


@pytest.mark.slow
def test_a_compiled_bfloat16_run_of_two_seeds(tmp_path: Path) -> None:
    done = archbench(
        "run", "gpt1", "--profile", "smoke", "--corpus", "small.txt", "--steps", "3", "--seed", "1", "--seed", "2",
        "--dtype", "bfloat16", "--attention", "sdpa", "--compile", "--set", "n_layer=1", "--unchecked", "--quiet",
        cwd=with_small_corpus(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    frame = read_results(tmp_path / "results")
    assert set(frame.seed) == {1, 2}
    assert frame.config_hash.nunique() == 1
    assert set(frame[frame.phase == "train"]["compile"]) == {True}
    assert set(frame.dtype) == {"bfloat16"}
