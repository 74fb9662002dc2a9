"""The published GPT-1 on the device: its speeds beside published ones, and transformers' in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from archbench.config import Float8Name, RunConfig, TrainingConfig
from archbench.data.batches import Batch
from archbench.plugin.registry import load
from archbench.presentation.quantities import quantity
from archbench.profiles import filled
from archbench.proof.statements import Bench, Statements, judged, not_run, noted
from archbench.runs.run import run
from archbench.training.state import TrainState
from archbench.training.steps import next_token_step

LLM_C, MODDED = 463_000, 600_000
"""Tokens/s that llm.c and, about, modded-nanogpt are said to reach with GPT-2 small on one H100; goals, since we have
seen no measurement of them."""

TOKEN = 0.4e-3
"""Seconds a token, batch 1: a goal, five times what reading the weights takes (estimated)."""

K = TypeVar("K", bound=str)
ROUNDS = 12


def speeds(bench: Bench) -> Statements:
    """Run the phases train, prefill and decode of the preset ``paper`` in bfloat16; rows go to the folder."""
    fields: dict[str, Any] = {
        "architecture": "gpt1", "profile": "standard", "preset": "paper", "device": str(bench.device),
        "phases": ("train", "prefill", "decode"), "dtype": "bfloat16", "checked": False, "out": str(bench.out),
        "training": {"steps": 120, "batch_size": 32},
    }  # fmt: skip
    rows = run(RunConfig(**filled({}, fields, ("steps", "tokens", "flops", "seconds"))), quiet=True)
    values = rows[rows.value.notna()]

    def of(phase: str, metric: str) -> float | None:
        found = values[(values.phase == phase) & (values.metric == metric)].value
        return float(found.median()) if len(found) else None

    rate = of("train", "tokens_per_second")
    shown = "not measured" if rate is None else f"{rate:,.0f}"
    expected = f"≥ {LLM_C:,}, said of llm.c; of modded-nanogpt about {MODDED:,}"
    yield judged("GPT-1 paper, training, bfloat16, 32 × 512: tokens/s", (rate or 0) >= LLM_C, expected, shown)
    yield from _from_a_graph(fields)
    mfu, memory = of("train", "mfu"), of("train", "peak_memory_bytes")
    yield noted(
        "GPT-1 paper, training: share of the data sheet's FLOP/s (MFU)", "null" if mfu is None else f"{mfu:.1%}"
    )
    yield noted("GPT-1 paper, training: peak memory", "null" if memory is None else quantity(memory, "B"))
    singles = values[(values.phase == "decode") & (values.batch_size == 1)]
    singles = singles[singles.metric.str.endswith("seconds_per_token")]
    for _, some in singles.groupby(["metric", "prompt_length"]):
        metric, P = some.iloc[0].metric, some.iloc[0].prompt_length
        found = float(some.value.median())
        what, shown = f"GPT-1 paper, decoding after {P}, batch 1: {metric}", f"{found * 1e3:.3g} ms"
        if metric.startswith("graph_"):
            yield judged(what, found <= TOKEN, f"≤ {TOKEN * 1e3:g} ms", shown)
        else:
            yield noted(what, shown)
    mbu = of("decode", "mbu")
    yield noted("GPT-1 paper, decoding: share of the memory bandwidth (MBU)", "null" if mbu is None else f"{mbu:.0%}")


def _from_a_graph(fields: dict[str, Any]) -> Statements:
    """The same training, each update of it a graph."""
    fields = {**fields, "phases": ("train",), "updates": "graph"}
    rows = run(RunConfig(**filled({}, fields, ("steps", "tokens", "flops", "seconds"))), quiet=True)
    found = {metric: rows[rows.metric == metric] for metric in ("tokens_per_second", "graph_captured")}
    rates, captured = (own.value.dropna() for own in found.values())
    what = "GPT-1 paper, training from a graph: tokens/s"
    if not len(captured) or not captured.iloc[0]:
        reasons = found["graph_captured"].operation.dropna()
        yield judged(what, False, "it is captured", "; ".join(reasons) or "no row")
    else:
        yield noted(what, f"{float(rates.median()):,.0f}" if len(rates) else "not measured")


def peers(bench: Bench) -> Statements:
    """A training step of the same sizes by transformers' OpenAIGPT, in turns with ours."""
    if find_spec("transformers") is None:
        yield not_run("transformers' GPT-1", "transformers is not installed")
        return
    models = _models(bench)
    steps = {name: _step(model, bench) for name, model in models.items()}
    seconds = seconds_in_turns(steps, bench)
    ratios = [theirs / ours for ours, theirs in zip(seconds["archbench"], seconds["transformers"], strict=True)]
    low, middle, high = sorted(ratios)[1], median(ratios), sorted(ratios)[-2]
    shown = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    yield judged("a training step: transformers' seconds over ours", middle >= 1, "≥ 1", shown)


def seconds_in_turns(works: Mapping[K, Callable[[], object]], bench: Bench) -> dict[K, list[float]]:
    """Of each, after three rounds that warm up; the host's submission included."""
    seconds: dict[K, list[float]] = {name: [] for name in works}
    for number in range(ROUNDS + 3):
        for name, work in works.items():
            torch.cuda.synchronize(bench.device)
            start = time.perf_counter()
            work()
            torch.cuda.synchronize(bench.device)
            if number >= 3:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _models(bench: Bench) -> dict[str, nn.Module]:
    """Ours and theirs, with the same weights."""
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    architecture = load("gpt1")
    config = architecture.config("paper")
    names = {
        "vocab_size": "vocab_size", "n_positions": "context_length", "n_embd": "d_model", "n_layer": "n_layer",
        "n_head": "n_head", "embd_pdrop": "embd_dropout", "resid_pdrop": "resid_dropout", "attn_pdrop": "attn_dropout",
    }  # fmt: skip
    theirs = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**{name: getattr(config, ours) for name, ours in names.items()}))
    ours = architecture.build(config)
    ours.load_state_dict(architecture.import_weights(theirs.state_dict(), config))

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = theirs

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.model(tokens).logits
            return logits

    return {"archbench": ours.to(bench.device), "transformers": Logits().to(bench.device)}


def training_step(bench: Bench, float8: Float8Name) -> Callable[[], object]:
    """An update of the preset ``paper``, 32 × 512, in bfloat16 and products in float8."""
    architecture = load("gpt1")
    return _step(architecture.build(architecture.config("paper")).to(bench.device), bench, float8)


def _step(model: nn.Module, bench: Bench, float8: Float8Name = "none") -> Callable[[], object]:
    recipe = TrainingConfig.model_validate({"steps": 1, "batch_size": 32, "learning_rate": 1e-4})
    state = TrainState.create(model.train(), recipe, device=bench.device, dtype="bfloat16", float8=float8)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1000, (32, 513), generator=generator)
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    return lambda: next_token_step(state, batch)
