"""The phase decode again, each token a replay: of a captured CUDA graph, or on a CPU of recorded calls."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn

from archbench.inference.decoding_kind import Decodings, decoding
from archbench.kernels import record_attention
from archbench.measure.clock import Clock
from archbench.measure.steady import Samples
from archbench.plugin.architecture import Architecture
from archbench.runs.folder import RunFolder
from archbench.runs.rows import Rows
from archbench.runs.speed import Decoded, decode, timed


def decode_from_replays(
    run: RunFolder, architecture: Architecture, model: nn.Module, eager: Decoded, clock: Clock, rows: Rows
) -> Mapping[tuple[int, int], float]:
    """Time every gap between tokens of the same prompts as ``eager``, whose tokens these are compared with.

    Where a step cannot be captured, values are null and ``graph_captured`` says why.

    Returns:
        (P, B) -> median seconds per token, of the cases that ran from replays.
    """
    medians = {}
    for (P, B), (prompt, expected) in eager.items():
        case = {"batch_size": B, "prompt_length": P}
        with record_attention() as attended, decoding("graph") as ran:
            found, _ = decode(architecture, model, prompt, len(expected), clock)
        reason = why_not(ran)
        rows.add("graph_captured", reason is None, operation=reason, **case)
        if reason is not None:
            for metric in ("graph_seconds_per_token", "graph_tokens_per_second", "graph_equal_tokens"):
                rows.add(metric, None, **case)
            continue
        gaps, samples = _timed_gaps(run, architecture, model, prompt, len(expected), clock)
        attention = "+".join(sorted(attended)) or "none"
        rows.extend("graph_seconds_per_token", gaps, attention=attention, **case)
        rows.add("graph_tokens_per_second", B / median(gaps), attention=attention, **case)
        rows.add("graph_equal_tokens", _equal(found, expected), **case)
        rows.extend("graph_warmup_seconds", samples.warmup_seconds, **case)
        rows.add("graph_stationary", samples.stationary, **case)
        medians[P, B] = median(gaps)
    return medians


def why_not(ran: Decodings) -> str | None:
    """Why tokens were not decoded as asked for, as a clause; None if they were."""
    if not ran.kinds:
        return "its generate is not archbench.decode_with_cache"
    return "; ".join(sorted(ran.reasons)) or None


def _timed_gaps(
    run: RunFolder, architecture: Architecture, model: nn.Module, prompt: Tensor, new_tokens: int, clock: Clock
) -> tuple[list[float], Samples]:
    """Gaps between tokens of the timed repeats, and the repeats."""
    gaps: list[float] = []

    def once() -> None:
        with decoding("graph"):
            _, marks = decode(architecture, model, prompt, new_tokens, clock)
        clock.synchronize()
        gaps.extend(clock.seconds(earlier, later) for earlier, later in pairwise(marks))

    samples = timed(run, once, clock)
    return gaps[-len(samples.seconds) * (new_tokens - 1) :], samples


def _equal(found: list[Tensor], expected: list[Tensor]) -> float:
    """Share of tokens that are the same; after the first that is not, a sequence may differ in all."""
    return float((torch.stack(found) == torch.stack(expected)).double().mean())
