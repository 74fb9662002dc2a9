"""The kernel benchmark: attention backends and losses compared case by case, alternating A B A B.

A candidate that cannot run in a case, or is wrong there, has no speed: its rows are null, and the reason is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from archbench.config import KernelConfig
from archbench.errors import ArchbenchError, ResourceError, refusal
from archbench.kernels import record_attention
from archbench.measure.clock import Clock, Submission, clock_for, submitted
from archbench.measure.memory import peak_extra_bytes
from archbench.measure.steady import FLAG_LEVEL, WARMUP_LEVEL, WINDOW, count_outliers, has_trend
from archbench.runs.kernel_cases import Candidate, Case, Exact, cases
from archbench.runs.rows import Rows

WRONG = 0.05
"""Error at which a result is wrong and its speed meaningless. Rounding to bfloat16 makes about 0.01; a mask that is off
by one position about 0.5."""

_MOST_WARMUP = 10
"""Warm-up rounds that a trend in the times may add."""


@dataclass(frozen=True)
class LeftOut:
    """A requested measurement that was not possible.

    Attributes:
        case: in words.
        columns: the case's, as in its rows.
        candidate: the backend or loss.
        what: ``forward and backward``, or ``backward``.
        reason: why, in words.
    """

    case: str
    columns: dict[str, Any]
    candidate: str
    what: str
    reason: str


@dataclass(eq=False)
class Trial:
    """One candidate's measurements in one case; seconds are of single calls, in order.

    Attributes:
        candidate: what is measured.
        columns: the candidate's, with the attention backend that ran.
        backward: whether it has a backward pass here.
        first: seconds of the first forward and backward pass, compilation included.
        warmup: seconds of each call before the samples, forward and backward together.
        host_forward_seconds, host_backward_seconds: what the host took to submit the samples' passes.
        waits: samples whose passes may have waited for the host.
        output_error, gradient_error: as :func:`_error` says.
        peak_extra_bytes: of one more call.
    """

    candidate: Candidate
    columns: dict[str, Any] = field(default_factory=dict)
    backward: bool = True
    first: tuple[float, float] = (0.0, 0.0)
    warmup: list[float] = field(default_factory=list)
    forward_seconds: list[float] = field(default_factory=list)
    backward_seconds: list[float] = field(default_factory=list)
    host_forward_seconds: list[float] = field(default_factory=list)
    host_backward_seconds: list[float] = field(default_factory=list)
    waits: int = 0
    output_error: float = 0.0
    gradient_error: float = 0.0
    peak_extra_bytes: int = 0

    @property
    def seconds(self) -> list[float]:
        """Forward and backward of each sample together."""
        return [sum(pair) for pair in zip(self.forward_seconds, self.backward_seconds, strict=True)]

    @property
    def samples(self) -> list[float]:
        """Seconds of whole samples, by which trends and outliers are judged."""
        return self.seconds if self.backward else self.forward_seconds


def run_kernel(
    config: KernelConfig, device: torch.device, rows: Rows, *, progress: Callable[[str], None] = lambda line: None
) -> list[LeftOut]:
    """Measure every case of ``config``; returns what was left out, with the reason.

    Args:
        config: the frozen configuration.
        device: where to measure.
        rows: where the measurements go.
        progress: called with a line as each case begins.
    """
    left_out: list[LeftOut] = []
    clock, every = clock_for(device), list(cases(config))
    for number, case in enumerate(every, start=1):
        progress(f"[{number}/{len(every)}] {case}")
        left_out += measure_case(case, config, device, clock, rows)
    return left_out


def measure_case(case: Case, config: KernelConfig, device: torch.device, clock: Clock, rows: Rows) -> list[LeftOut]:
    """Measure one case: errors first, then speed in alternation, then memory; adds to ``rows``."""
    candidates, exact = case.candidates(config.seed, device, getattr(torch, config.dtype))
    left_out: list[LeftOut] = []

    def leave_out(candidate: Candidate, reason: str, *directions: str) -> None:
        left_out.append(LeftOut(str(case), case.columns, candidate.name, " and ".join(directions), reason))
        for direction in directions:
            rows.add(f"{direction}_seconds", None, **case.columns, **candidate.columns)

    trials = []
    for candidate in candidates:
        trial, reason = _first_call(candidate, exact, clock)
        if trial is None:
            leave_out(candidate, reason, "forward", "backward")
        else:
            trials.append(trial)
            if not trial.backward:
                leave_out(candidate, reason, "backward")
    for trial, reason in _alternate(trials, clock, config):
        leave_out(trial.candidate, reason, "forward", *(["backward"] if trial.backward else []))
    for trial in trials:
        trial.peak_extra_bytes = peak_extra_bytes(partial(_call, trial, clock), device)
        _add(rows, case, trial, clock)
    return left_out


def _first_call(candidate: Candidate, exact: Callable[[], Exact], clock: Clock) -> tuple[Trial | None, str]:
    """Run a candidate once, compilation included, and compare it with the exact result.

    Returns:
        Its trial, and why it has no backward pass if it has none; or None, and why it has no trial.
    """
    trial, reason = Trial(candidate), ""
    with record_attention() as ran:
        try:
            passes, output, gradients = _call(trial, clock)
            trial.first = _seconds(passes, clock)
        except Exception as error:  # noqa: BLE001  (any error is a finding about this backend; the others continue)
            trial.backward, reason = False, _reason(error)
            try:
                passes, output, gradients = _call(trial, clock)
                trial.first = _seconds(passes, clock)
            except Exception:  # noqa: BLE001  (the first reason counts: both passes were requested)
                return None, reason
    trial.columns = {**candidate.columns, **({"attention": "+".join(sorted(ran))} if ran else {})}
    try:
        wanted = exact()
    except Exception as error:
        if not isinstance(refusal(error, "the reference"), ResourceError):
            raise
        return None, "there is not enough memory for the float64 reference"
    trial.output_error = _error(output, wanted.output)
    if trial.backward:
        trial.gradient_error = max(map(_error, gradients, wanted.gradients))
    for what, difference in (("output", trial.output_error), ("gradient", trial.gradient_error)):
        if not difference < WRONG:  # NaN is wrong as well
            return None, f"its {what} is wrong: it differs from float64 by {difference:.2g} of the largest magnitude"
    return trial, reason


def _alternate(trials: list[Trial], clock: Clock, config: KernelConfig) -> list[tuple[Trial, str]]:
    """Warm up until no candidate's times have a trend, then take the samples; each round runs every candidate once.

    Returns:
        The trials that failed after their first call, and why; they are removed from ``trials``.
    """
    failed: list[tuple[Trial, str]] = []

    def one_round(keep: Callable[[Trial, list[Submission], float, float], None]) -> None:
        for trial in list(trials):
            try:
                while True:
                    passes, *_ = _call(trial, clock)
                    if all(one.gapless for one in passes) or not clock.lengthen():
                        break
                keep(trial, passes, *_seconds(passes, clock))
            except Exception as error:  # noqa: BLE001  (as in its first call)
                trials.remove(trial)
                failed.append((trial, _reason(error)))

    def warm(trial: Trial, passes: list[Submission], forward: float, backward: float) -> None:
        trial.warmup.append(forward + backward)

    def sample(trial: Trial, passes: list[Submission], forward: float, backward: float) -> None:
        trial.forward_seconds.append(forward)
        trial.host_forward_seconds.append(passes[0].host_seconds)
        trial.waits += not all(one.gapless for one in passes)
        if trial.backward:
            trial.backward_seconds.append(backward)
            trial.host_backward_seconds.append(passes[1].host_seconds)

    for number in range(config.warmup + _MOST_WARMUP):
        if number >= config.warmup and not any(has_trend(trial.warmup[-WINDOW:], WARMUP_LEVEL) for trial in trials):
            break
        one_round(warm)
    for _ in range(config.repeats):
        one_round(sample)
    return failed


def _call(trial: Trial, clock: Clock) -> tuple[list[Submission], Tensor, tuple[Tensor, ...]]:
    """One forward pass and, if there is one, a backward pass; output, gradients."""
    candidate = trial.candidate
    if not trial.backward:
        with torch.no_grad():
            leaves = [leaf.detach() for leaf in candidate.inputs]
            output, forward = submitted(lambda: candidate.run(*leaves), clock)
            return [forward], output, ()
    output, forward = submitted(lambda: candidate.run(*candidate.inputs), clock)
    gradients, backward = submitted(lambda: torch.autograd.grad(output, candidate.inputs, candidate.upstream), clock)
    return [forward, backward], output.detach(), gradients


def _seconds(passes: list[Submission], clock: Clock) -> tuple[float, float]:
    """Seconds of forward and backward; 0 if there is no backward pass."""
    clock.synchronize()
    forward, *backward = (clock.seconds(one.start, one.end) for one in passes)
    return forward, sum(backward)


def _error(result: Tensor, exact: Tensor) -> float:
    """The largest difference, as a share of the exact result's largest magnitude; infinite if the shapes differ."""
    if result.shape != exact.shape:
        return math.inf
    difference = (result.detach().to(exact.dtype) - exact).abs().max()
    return float(difference / exact.abs().max())


def _add(rows: Rows, case: Case, trial: Trial, clock: Clock) -> None:
    """One candidate's measurements in one case."""
    columns = {**case.columns, **trial.columns}
    forward, backward = case.flops
    rows.extend("forward_seconds", trial.forward_seconds, **columns)
    rows.extend("backward_seconds", trial.backward_seconds, **columns)
    if clock.asynchronous:
        rows.extend("host_forward_seconds", trial.host_forward_seconds, **columns)
        rows.extend("host_backward_seconds", trial.host_backward_seconds, **columns)
        rows.add("waits_for_host", trial.waits, **columns)
    rows.add("first_forward_seconds", trial.first[0], **columns)
    rows.extend("warmup_seconds", trial.warmup, **columns)
    rows.add("forward_flops", forward, **columns)
    if case.speeds_apart:
        rows.add("forward_flops_per_second", forward / median(trial.forward_seconds), **columns)
    rows.add("output_error", trial.output_error, **columns)
    if trial.backward:
        rows.add("first_backward_seconds", trial.first[1], **columns)
        rows.add("backward_flops", backward, **columns)
        if case.speeds_apart:
            rows.add("backward_flops_per_second", backward / median(trial.backward_seconds), **columns)
        rows.add("flops_per_second", (forward + backward) / median(trial.seconds), **columns)
        rows.add("gradient_error", trial.gradient_error, **columns)
    # Too few samples for the test of a trend are joined to the end of the warm-up.
    missing = max(0, WINDOW - len(trial.samples))
    joined = [*(trial.warmup[-missing:] if missing else []), *trial.samples]
    rows.add("stationary", not has_trend(joined, FLAG_LEVEL), **columns)
    rows.add("outliers", count_outliers(trial.samples), **columns)
    rows.add("peak_extra_bytes", trial.peak_extra_bytes, **columns)


def _reason(error: Exception) -> str:
    """Why a backend did not run, in a line."""
    if isinstance(error, ArchbenchError):
        return error.cause
    if isinstance(refusal(error, "the call"), ResourceError):
        return "there is not enough memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
