"""A made-up comparison on disk, as ``archbench compare`` leaves one: rows by archbench's own writer, invented numbers.

gpt1 is the baseline; llama is better; rwkv7 is equivalent; one seed of mamba2 diverged; hybrid's best learning rate
lay at an edge; mixtral could not be matched.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from archbench.results.reading import read_results
from archbench.results.schema import arrow_schema
from archbench.results.store import write_run

T = 128
SEEDS = 5
STEPS = 240
TOKENS_A_STEP = 1024
COMMON: dict[str, Any] = {
    "plugin_package": "archbench",
    "plugin_version": "0.1.0",
    "preset": "nano",
    "config_hash": "0123456789ab",
    "device": "cpu",
    "device_name": "Some CPU, 2 cores",
    "dtype": "float32",
    "compile": False,
    "threads": 2,
    "world_size": 1,
    "context_length": T,
    "corpus": "shakespeare",
    "tokenizer": "bpe:1024",
    "lossless": True,
    "archbench_version": "0.1.0",
    "torch_version": "2.13.0+cpu",
    "python_version": "3.11.7",
    "git_revision": "416a7ed4854b32c754e1a2ad0f5dc8b58d5d8705",
}


@dataclass(frozen=True)
class Made:
    """One invented architecture: how good, fast and large it is, and what became of it."""

    name: str
    bits_per_byte: float
    verdict: str
    step_seconds: float
    token_seconds: float
    growth: float
    state_bytes_per_token: float
    fixed_state: int
    reads: int = 4
    diverged: int = 0
    flagged: bool = False
    reason: str | None = None
    probes: Mapping[str, float] = field(default_factory=dict)


ARCHITECTURES = (
    Made("gpt1", 2.512, "baseline", 0.060, 4.1e-4, 0.9e-6, 3072, 0, reads=1,
         probes={"induction": 0.71, "copy": 0.93, "recall": 0.64, "parity": 0.52}),
    Made("llama", 2.431, "better", 0.066, 4.6e-4, 0.8e-6, 1536, 0,
         probes={"induction": 0.84, "copy": 0.97, "recall": 0.78, "parity": 0.51}),
    Made("rwkv7", 2.513, "equivalent", 0.098, 3.3e-4, 0.0, 0, 131072,
         probes={"induction": 0.66, "copy": 0.81, "recall": 0.49, "parity": 0.88}),
    Made("mamba2", 2.471, "no verdict", 0.088, 2.9e-4, 0.0, 0, 98304, diverged=1,
         reason="1 of 5 seeds diverged; the mean of the others would flatter it.",
         probes={"induction": 0.62, "copy": 0.74, "recall": 0.41, "parity": 0.55}),
    Made("hybrid", 2.448, "inconclusive", 0.081, 3.7e-4, 0.25e-6, 512, 65536, flagged=True,
         reason="its best learning rate lay at the edge of the search, so that its best is not known.",
         probes={"induction": 0.80, "copy": 0.95, "recall": 0.72, "parity": 0.77}),
)  # fmt: skip
UNMATCHED = "mixtral"


def write_comparison(
    folder: Path, made: Sequence[Made] = ARCHITECTURES, *, probes: bool = True, kernels: bool = True
) -> Path:
    """Write ``folder`` with comparison.json, runs/ and runs.parquet; the folder."""
    runs = folder / "runs"
    random = np.random.default_rng(0)
    cells: list[dict[str, Any]] = []
    for number, one in enumerate(made):
        for seed in range(SEEDS):
            run_id = f"20261124T{10 + number:02d}{seed:02d}00-00{number:02d}{seed:02d}"
            diverges = seed >= SEEDS - one.diverged
            rows = _seed_rows(one, seed, random, diverges, probes)
            write_run(runs / f"{number}{seed}", run_id, rows, {}, _common(one, seed))
            cells.append(_cell(one, "seed", seed, run_id, "diverged" if diverges else "ok"))
        cells.append(_cell(one, "tune", 0, None, "ok"))
    cells.append(_cell(made[-1], "cost", 0, None, "failed", "out of memory: 8192 positions did not fit"))
    if kernels:
        text = ("corpus", "tokenizer", "lossless")
        nothing = {name: value for name, value in COMMON.items() if name not in text}
        nothing |= {"architecture": "none", "preset": "none", "seed": 0}
        write_run(runs / "kernels", "20261124T090000-00ffff", _kernel_rows(), {}, nothing)
    frame = read_results(runs / "*" / "*.parquet")
    pq.write_table(pa.Table.from_pandas(frame, schema=arrow_schema(), preserve_index=False), folder / "runs.parquet")
    outcome = _outcome(made, cells)
    (folder / "plan.json").write_text(json.dumps(outcome["plan"]))
    (folder / "comparison.json").write_text(json.dumps(outcome, indent=1))
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Replace top-level fields of comparison.json; a field set to ``...`` is left out."""
    file = folder / "comparison.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def _common(one: Made, seed: int) -> dict[str, Any]:
    return {**COMMON, "architecture": one.name, "seed": seed, "parameters": 1_110_912, "batch_size": 8}


def _cell(
    one: Made, stage: str, seed: int, run_id: str | None, outcome: str, cause: str | None = None
) -> dict[str, Any]:
    if outcome == "diverged":
        cause = "the loss stopped being finite at step 80"
    return {
        "key": re.sub("[^a-z0-9-]", "_", f"{stage}-{one.name}-{seed}"), "stage": stage,
        "architecture": one.name, "seed": seed,
        "learning_rate": 0.002, "factor": 1.0, "block": None, "context_length": T, "run_id": run_id,
        "outcome": outcome, "cause": cause, "seconds": 15.0,
    }  # fmt: skip


def _seed_rows(one: Made, seed: int, random: np.random.Generator, diverges: bool, probes: bool) -> list[dict[str, Any]]:
    final = one.bits_per_byte * (1 + 0.002 * random.standard_normal())
    steps = 80 if diverges else STEPS
    noise = 0.06 * random.standard_normal(steps)
    rows: list[dict[str, Any]] = []
    for step in range(steps):
        at = {"phase": "train", "repeat": step, "tokens_seen": TOKENS_A_STEP * (step + 1)}
        loss = _bits(one, final, step) * math.log(2) * 2.33 + noise[step]
        rows.append({**at, "metric": "loss", "value": None if diverges and step == steps - 1 else loss})
        seconds = one.step_seconds * (1 + 0.02 * random.standard_normal())
        rows.append({**at, "metric": "step_seconds" if step else "first_step_seconds", "value": seconds})
        if step % 40 == 39:
            rows.append({**at, "metric": "validation_bits_per_byte", "value": _bits(one, final, step)})
    rows.append({"phase": "train", "metric": "flops_per_token", "value": 7.08e6 * (1 + 0.01 * (one.growth > 0))})
    rows.append({"phase": "train", "metric": "training_seconds", "value": steps * one.step_seconds})
    if diverges:
        return [*rows, {"phase": "train", "metric": "diverged", "value": float(steps - 1)}]
    rows.append({"phase": "quality", "metric": "bits_per_byte", "value": final})
    if probes:
        for task, value in one.probes.items():
            place = {"phase": "probe", "corpus": task, "operation": "held out"}
            score = min(1.0, value + 0.01 * random.standard_normal())
            rows += [{**place, "metric": "accuracy", "value": score}, {**place, "metric": "chance", "value": 0.1}]
    return rows


def _bits(one: Made, final: float, step: int) -> float:
    return final + (3.9 - final) * math.exp(-step / (34 if one.growth else 40)) * (1 - 0.2 * step / STEPS)


def _kernel_rows() -> list[dict[str, Any]]:
    rows = []
    for width in (64, 128):
        for backend, peak in (("sdpa", 9.2e10), ("triton", 1.3e11), ("reference", 2.1e10)):
            for length in (256, 512, 1024, 2048):
                case = {
                    "phase": "kernel", "operation": "causal_attention", "query_heads": 8, "kv_heads": 8,
                    "head_width": width, "attention": backend, "context_length": length, "batch_size": 1,
                }  # fmt: skip
                speed = peak * (1 - 0.5 * math.exp(-length / 600))
                rows.append({**case, "metric": "forward_flops_per_second", "value": speed})
                rows.append({**case, "metric": "backward_flops_per_second", "value": 0.8 * speed})
    return rows


def _outcome(made: Sequence[Made], cells: list[dict[str, Any]]) -> dict[str, Any]:
    names = [one.name for one in made]
    base = made[0]
    seeds = {one.name: SEEDS - one.diverged for one in made}
    return {
        "format": 1, "archbench_version": "0.1.0", "git_revision": COMMON["git_revision"],
        "command": f"archbench compare {' '.join(names)} {UNMATCHED} --profile quick",
        "finished": "2026-11-24T15:04:05+00:00",
        "machine": {"device": "cpu", "device_name": "Some CPU, 2 cores", "threads": 2, "torch_version": "2.13.0+cpu"},
        "plan": {
            "architectures": [*names, UNMATCHED], "baseline": base.name, "match": "flops",
            "matched_on": "equal non-embedding active parameters (within 2 %) and equal training FLOPs",
            "factors": [0.25, 0.5, 1.0, 2.0, 4.0], "profile": "quick",
            "preset": "nano", "seeds": SEEDS, "tuning_seeds": 2, "tuning_share": 0.25, "margin": 0.0025,
            "confidence": 0.95, "corpus": "shakespeare", "tokenizer": "bpe:1024", "context_length": T,
            "budget": {"unit": "flops", "amount": 1.74e12},
        },
        "seconds": {"predicted": 1900.0, "measured": 2143.0},
        "models": [*[_model(one, number) for number, one in enumerate(made)], _unmatched()],
        "cells": cells,
        "tuning": [_tuning(one, number) for number, one in enumerate(made)],
        "quality": [_quality(one, base, seeds[one.name], len(made)) for one in made],
        "units": {"kind": "blocks", "count": 64, "empty": 2},
        "spent": [
            {"architecture": one.name, "training_tokens": 245760.0, "training_flops": 1.74e12,
             "training_seconds": STEPS * one.step_seconds} for one in made
        ],
        "costs": [row for one in made for row in _costs(one, base)],
        "curves": [_curve(one, length) for one in made for length in (128, 256, 512, 1024, 2048, 4096)],
        "positions": [row for one in made for multiple in (1, 2, 4) for row in _positions(one, multiple)],
    }  # fmt: skip


def _model(one: Made, number: int) -> dict[str, Any]:
    return {
        "architecture": one.name, "matched": True, "reason": None, "overrides": {"d_ff": 512 + 8 * number},
        "parameters": 1_110_912 - 2600 * number, "active_parameters": 1_110_912 - 2600 * number,
        "non_embedding_active_parameters": 786_432 + 1900 * number, "training_flops_per_token": 7.08e6,
        "state_bytes": int(one.fixed_state + one.state_bytes_per_token * T), "deviation": 0.0024 * number,
    }  # fmt: skip


def _unmatched() -> dict[str, Any]:
    return {
        "architecture": UNMATCHED, "matched": False,
        "reason": "the nearest size has 3.8 % more non-embedding active parameters (d_ff = 64)", "overrides": {},
        "parameters": 2_200_000, "active_parameters": 1_300_000, "non_embedding_active_parameters": 816_000,
        "training_flops_per_token": 7.4e6, "state_bytes": 196608, "deviation": 0.038,
    }  # fmt: skip


def _tuning(one: Made, number: int) -> dict[str, Any]:
    factors = [0.25, 0.5, 1.0, 2.0, 4.0] + ([8.0, 16.0] if one.flagged else [])
    best = 16.0 if one.flagged else 1.3 + 0.15 * number
    points = []
    for factor in factors:
        mean = one.bits_per_byte + 0.35 + 0.03 * math.log2(factor / best) ** 2
        values: list[float | None] = [mean - 0.006, mean + 0.006]
        if one.diverged and factor == 4.0:
            points.append({"learning_rate": 0.008, "factor": 4.0, "bits_per_byte": [mean, None], "mean": None})
            continue
        points.append({"learning_rate": 0.002 * factor, "factor": factor, "bits_per_byte": values, "mean": mean})
    note = "still falling after two more points" if one.flagged else None
    chosen = 0.032 if one.flagged else 0.002 * best
    return {"architecture": one.name, "learning_rate": chosen, "flagged": one.flagged, "note": note, "points": points}


def _quality(one: Made, base: Made, seeds: int, count: int) -> dict[str, Any]:
    sd = 0.006
    row: dict[str, Any] = {
        "architecture": one.name, "seeds": seeds, "diverged": one.diverged, "lost": 0,
        "bits_per_byte": one.bits_per_byte, "sd": sd, "low": one.bits_per_byte - 0.0075,
        "high": one.bits_per_byte + 0.0075, "verdict": one.verdict, "reason": one.reason,
    }  # fmt: skip
    names = ("difference", "seed_low", "seed_high", "document_low", "document_high", "combined_low", "combined_high")
    row |= dict.fromkeys((*names, "p", "p_holm", "seeds_needed"))
    if one is base or one.verdict == "no verdict":
        return row
    difference = one.bits_per_byte / base.bits_per_byte - 1
    spreads = (0.0, 0.0011, 0.0011, 0.0009, 0.0009, 0.0014, 0.0014)
    row |= {
        name: difference + (-1 if name.endswith("low") else 1) * spread if spread else difference
        for name, spread in zip(names, spreads, strict=True)
    }
    p = 3.1e-5 if abs(difference) > 0.01 else 0.41
    row |= {"p": p, "p_holm": min(1.0, p * (count - 1))}
    if one.verdict == "inconclusive":
        row["seeds_needed"] = 9
    return row


def _costs(one: Made, base: Made) -> list[dict[str, Any]]:
    def row(metric: str, label: str, unit: str, value: float, reference: float, spread: float | None) -> dict[str, Any]:
        ratio = value / reference
        verdict = (
            "exact" if spread is None else "less" if ratio < 0.97 else "more" if ratio > 1.03 else "below noise floor"
        )
        made = {
            "metric": metric, "label": label, "unit": unit, "architecture": one.name, "value": value, "ratio": ratio,
            "low": None if spread is None else ratio * (1 - spread),
            "high": None if spread is None else ratio * (1 + spread),
            "floor_low": None if spread is None else 0.975, "floor_high": None if spread is None else 1.026,
            "verdict": verdict,
        }  # fmt: skip
        if one is base:
            made |= dict.fromkeys(("ratio", "low", "high", "floor_low", "floor_high")) | {"verdict": "baseline"}
        return made

    def state(which: Made) -> float:
        return which.fixed_state + which.state_bytes_per_token * T

    return [
        row("train", "training step", "s", one.step_seconds, base.step_seconds, 0.012),
        row("prefill", "prefill, 96 tokens", "s", 22 * one.token_seconds / 9, 22 * base.token_seconds / 9, 0.02),
        row("decode", "decoding, a token after 96", "s", one.token_seconds, base.token_seconds, 0.015),
        row("training_memory", "peak memory in training", "B", 4.7e8 + 1e9 * one.step_seconds, 5.3e8, 0.004),
        row("state", f"decoding state at {T} positions", "B", state(one), state(base), None),
    ]


def _curve(one: Made, length: int) -> dict[str, Any]:
    row: dict[str, Any] = {"architecture": one.name, "context_length": length, "cause": None}
    if one.reads == 1 and length > T * 16:
        cause = "out of memory: 4096 positions did not fit"
        return (
            row
            | dict.fromkeys(("prefill_seconds", "seconds_per_token", "state_bytes", "peak_memory_bytes"))
            | {"cause": cause}
        )
    return row | {
        "prefill_seconds": length * 1.1e-5 * (1 + length * one.growth * 2e2) + 1e-3,
        "seconds_per_token": one.token_seconds + length * one.growth,
        "state_bytes": one.fixed_state + length * one.state_bytes_per_token,
        "peak_memory_bytes": 3.0e8 + one.fixed_state + length * (one.state_bytes_per_token + 4000),
    }


def _positions(one: Made, multiple: int) -> list[dict[str, Any]]:
    at = {"architecture": one.name, "context_length": T * multiple, "multiple": multiple}
    if multiple > one.reads:
        cause = f"it cannot read {T * multiple} positions: its learned positions end at {T}"
        return [{**at, "position": 0, "loss": None, "cause": cause}]
    starts = range(0, T * multiple, T // 8)
    far = 0.25 if one.growth and one.name == "llama" else 0.0
    level = one.bits_per_byte * 1.6
    return [
        {**at, "position": start, "cause": None,
         "loss": level + 1.1 / (1 + start / 6) + far * max(0.0, (start - T) / T)}
        for start in starts
    ]  # fmt: skip


def frame_of(folder: Path) -> pd.DataFrame:
    """The rows of the comparison in ``folder``."""
    return read_results(folder / "runs.parquet")
