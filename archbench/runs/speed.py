"""Prefill and decode: seconds to the first token and between tokens, with the plugin's own ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archbench.data.dataset import prepare
from archbench.data.token_stream import Tokens
from archbench.errors import HookResultError
from archbench.inference.sampling import Sampling
from archbench.measure.clock import Clock, Mark, clock_for
from archbench.measure.energy import energy_used
from archbench.measure.flops import (
    cache_bytes,
    cache_bytes_per_token,
    measured_cache_bytes,
    measured_cache_bytes_per_token,
    on_meta,
)
from archbench.measure.memory import peak_memory
from archbench.measure.peaks import known_bandwidth, last_level_cache_bytes
from archbench.measure.score_audit import greedy_finding, tolerance
from archbench.measure.sizes import decode_step_bytes
from archbench.measure.steady import Samples, count_outliers, repeat_until_steady
from archbench.plugin.architecture import Architecture
from archbench.runs.audit import Audit
from archbench.runs.folder import RunFolder, open_run
from archbench.runs.models import count_parameters, load_architecture, trained_model
from archbench.runs.rows import Rows

GREEDY = Sampling(greedy=True)

Decoded = dict[tuple[int, int], tuple[Tensor, list[Tensor]]]
"""(P, B) -> the prompt (B, P), and the tokens (B,) of its last timed repeat."""


def run_prefill(run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool) -> None:
    """Time from the call to the first token, per prompt length and batch size."""
    architecture, model = prepared(run, device, rows)
    clock = clock_for(device)
    decoded: Decoded = {}
    with peak_memory(device, clock=clock) as memory, rows.recording_attention():
        for P, B, prompt in _prompts(run, device):

            def first_token(prompt: Tensor = prompt, case: tuple[int, int] = (P, B)) -> None:
                decoded[case] = prompt, decode(architecture, model, prompt, 1, clock)[0]

            with energy_used(device) as energy:
                samples = timed(run, first_token, clock)
            case: dict[str, Any] = {"batch_size": B, "prompt_length": P}
            rows.extend("seconds_to_first_token", samples.seconds, **case)
            rows.add("tokens_per_second", B * P / median(samples.seconds), **case)
            rows.add_energy(energy, samples.calls * B * P, quiet=quiet, **case)
            describe(rows, samples, case)
    rows.add_memory(memory, quiet=quiet)
    audit(run, model, decoded, rows)


def run_decode(run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool) -> None:
    """Time every gap between tokens and measure the cache, per prompt length and batch size."""
    architecture, model = prepared(run, device, rows)
    clock = clock_for(device)
    new_tokens = run.config.speed.new_tokens
    cases: list[tuple[dict[str, Any], float]] = []
    decoded: Decoded = {}
    with peak_memory(device, clock=clock) as memory, rows.recording_attention():
        for P, B, prompt in _prompts(run, device):
            gaps: list[float] = []

            def decode_once(prompt: Tensor = prompt, gaps: list[float] = gaps, case: tuple[int, int] = (P, B)) -> None:
                tokens, marks = decode(architecture, model, prompt, new_tokens, clock)
                decoded[case] = prompt, tokens
                clock.synchronize()
                gaps.extend(clock.seconds(earlier, later) for earlier, later in pairwise(marks))

            with energy_used(device) as energy:
                samples = timed(run, decode_once, clock)
            # The warm-up's gaps come first in the list; rows hold only those of the timed repeats.
            kept = gaps[-len(samples.seconds) * (new_tokens - 1) :]
            cases.append((case := {"batch_size": B, "prompt_length": P}, median(kept)))
            rows.extend("seconds_per_token", kept, **case)
            rows.add("tokens_per_second", B / median(kept), **case)
            rows.add_energy(energy, samples.calls * B * new_tokens, quiet=quiet, **case)
            describe(rows, samples, case, outlying=count_outliers(kept))
    rows.add_memory(memory, quiet=quiet)
    audit(run, model, decoded, rows)
    from archbench.runs.graph_decoding import decode_from_replays

    replayed = decode_from_replays(run, architecture, model, decoded, clock, rows)
    described, T = on_meta(model), run.model["context_length"]
    bandwidth = known_bandwidth(device)
    rows.add("bandwidth_measured", bandwidth)
    for case, seconds in cases:
        B, P = case["batch_size"], case["prompt_length"]
        slides, capacity = P + new_tokens - 1 > T, min(P + new_tokens, T)
        read = None if slides else decode_step_bytes(described, B, P + new_tokens // 2)
        rows.add("step_bytes", read, **case)
        # What the processor's own cache holds is not read from memory again.
        from_memory = read is not None and bandwidth is not None and read > last_level_cache_bytes(device)
        rows.add("mbu", read / seconds / bandwidth if from_memory else None, **case)  # type: ignore[operator]
        if (P, B) in replayed:
            use = read / replayed[P, B] / bandwidth if from_memory else None  # type: ignore[operator]
            rows.add("graph_mbu", use, **case)
        rows.add("cache_bytes", cache_bytes(described, B, capacity), **case)
        rows.add("cache_bytes_measured", measured_cache_bytes(model, B, capacity), **case)
    rows.add("cache_bytes_per_token", cache_bytes_per_token(described, 1, T))
    rows.add("cache_bytes_per_token_measured", measured_cache_bytes_per_token(model, 1, T))


def prepared(run: RunFolder, device: torch.device, rows: Rows) -> tuple[Architecture, nn.Module]:
    """The architecture, and its model as it is served: weights in the run's dtype, not cast at every token."""
    architecture, model_config = load_architecture(run)
    dtype: torch.dtype = getattr(torch, run.config.dtype)
    trained = run.config.speed.trained
    source = run if trained is None else open_run(Path(trained).parent, Path(trained).name)
    model = trained_model(source, architecture, model_config, device).to(dtype)
    rows.common |= {"parameters": count_parameters(model)}
    return architecture, model


def decode(
    architecture: Architecture, model: nn.Module, prompt: Tensor, new_tokens: int, clock: Clock
) -> tuple[list[Tensor], list[Mark]]:
    """Decode greedily; the tokens, (B,) each, and their time marks.

    Raises:
        HookResultError: ``generate`` gave another number of tokens than requested.
    """
    tokens: list[Tensor] = []
    marks: list[Mark] = []
    for token in architecture.generate(model, prompt, new_tokens, GREEDY):
        marks.append(clock.mark())
        tokens.append(token)
    if len(marks) != new_tokens:
        raise HookResultError(
            f"generate of {architecture.name}",
            f"it gave {len(marks)} tokens instead of {new_tokens}",
            "Yield one tensor (B,) a token, and stop early only where sampling.eos is set",
        )
    return tokens, marks


def audit(run: RunFolder, model: nn.Module, decoded: Decoded, rows: Rows) -> None:
    """Hold the tokens that were timed last to a full pass over the same text."""
    report, allowed = Audit(run, rows.phase), tolerance(getattr(torch, run.config.dtype))
    for prompt, tokens in decoded.values():
        report(greedy_finding(model, prompt, tokens, run.model["context_length"], allowed))
    rows.add("audit_tolerance", allowed)
    report.add_to(rows)


def _prompts(run: RunFolder, device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
    """Prompt length P, batch size B and tokens (B, P) of every case."""
    lengths = run.config.speed.prompt_lengths
    assert lengths is not None, "prompt lengths are resolved before the first phase"
    stream = prepare(run.config.data, sha256=run.facts.get("corpus_sha256")).train
    for P, B in product(lengths, run.config.speed.batch_sizes):
        yield P, B, excerpts(stream, P, B, device)


def excerpts(stream: Tokens, P: int, B: int, device: torch.device) -> Tensor:
    """Tokens (B, P) int64 from evenly spread places of the training text.

    Speed does not depend on the text, and only the training split is sure to be longer than a context.
    """
    starts = np.linspace(0, len(stream) - P, B).astype(np.int64)
    prompt = np.stack([stream[start : start + P] for start in starts]).astype(np.int64)  # (B, P)
    return torch.from_numpy(prompt).to(device)


def timed(run: RunFolder, fn: Callable[[], object], clock: Clock) -> Samples:
    speed = run.config.speed
    return repeat_until_steady(fn, clock, warmup=speed.warmup, repeats=speed.repeats, max_warmup=speed.warmup + 10)


def describe(rows: Rows, samples: Samples, case: dict[str, Any], *, outlying: int | None = None) -> None:
    """Warm-up seconds, whether the samples are stationary, and the number of outliers (none is dropped)."""
    rows.extend("warmup_seconds", samples.warmup_seconds, **case)
    rows.add("stationary", samples.stationary, **case)
    rows.add("outliers", samples.outliers if outlying is None else outlying, **case)
