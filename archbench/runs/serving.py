"""Serve requests in static batches by the plugin's own ``generate``: latencies, gaps and throughput.

The definitions are those of vLLM's ``vllm bench serve``, formerly ``benchmark_serving.py`` (Kwon et al. 2023,
arXiv:2309.06180); ``docs/reference/metrics.md`` has them. Batches are those of request-level scheduling (Yu et al.
2022, Orca, section 3): none is joined or left before its longest answer ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise, product, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archbench.config import RunConfig
from archbench.data.dataset import prepare
from archbench.data.request_trace import Request, read_trace, trace_key
from archbench.errors import DataError
from archbench.inference.captured_step import KEPT
from archbench.inference.decoding_kind import decoding
from archbench.measure.clock import clock_for, seconds_of
from archbench.measure.memory import peak_memory
from archbench.nn.cache import bucket
from archbench.plugin.registry import code_of
from archbench.plugin.trust import require
from archbench.runs.folder import CONFIG, RunFolder, open_run
from archbench.runs.graph_decoding import why_not
from archbench.runs.models import require_weights
from archbench.runs.rows import Rows
from archbench.runs.speed import Decoded, audit, decode, describe, excerpts, prepared, timed

AUDITED = 8
"""Most shapes of a batch whose tokens are audited."""


@dataclass(frozen=True)
class Answer:
    """One request, answered.

    Attributes:
        request: which.
        queue_seconds: from its arrival to the beginning of its batch.
        batch_requests: requests in its batch, itself included.
        token_seconds: from its arrival to each of its tokens.
    """

    request: Request
    queue_seconds: float
    batch_requests: int
    token_seconds: tuple[float, ...]

    @property
    def to_first_token(self) -> float:
        """TTFT, seconds."""
        return self.token_seconds[0]

    @property
    def latency(self) -> float:
        """End-to-end latency, seconds."""
        return self.token_seconds[-1]

    @property
    def per_output_token(self) -> float | None:
        """TPOT, seconds: the mean gap after the first token; None for an answer of one token, which has none."""
        gaps = len(self.token_seconds) - 1
        return (self.latency - self.to_first_token) / gaps if gaps else None

    @property
    def gaps(self) -> list[float]:
        """ITL, seconds: from each token to the next."""
        return [later - earlier for earlier, later in pairwise(self.token_seconds)]


Respond = Callable[[Sequence[Request]], Sequence[float]]
"""Answers a batch of requests of one prompt length; seconds from its beginning to each token of the longest answer."""


def serve(requests: Sequence[Request], most: int, respond: Respond) -> list[Answer]:
    """Answer requests one batch after another, first come first served.

    The oldest waiting request begins a batch; those of the same prompt length that have arrived join it, up to ``most``
    in all, so that nothing is padded. Time is virtual: while nothing waits, it jumps to the next arrival.

    Args:
        requests: in order of arrival.
        most: requests in a batch.
        respond: does the work, and says how long it took.

    Returns:
        The answers, in the order in which their batches began.
    """
    waiting, now, answers = [*requests], 0.0, []
    while waiting:
        now = max(now, waiting[0].arrival_seconds)
        chosen = _first_batch(waiting, now, most)
        batch = [waiting[place] for place in chosen]
        seconds = respond(batch)
        for one in batch:
            queued = now - one.arrival_seconds
            own = tuple(queued + second for second in seconds[: one.output_tokens])
            answers.append(Answer(one, queued, len(batch), own))
        now += seconds[-1]
        for place in reversed(chosen):
            del waiting[place]
    return answers


def _first_batch(waiting: Sequence[Request], now: float, most: int) -> list[int]:
    """Places of the oldest request and of those that have arrived with as long a prompt."""
    length = waiting[0].prompt_tokens
    arrived = enumerate(takewhile(lambda one: one.arrival_seconds <= now, waiting))
    return [*islice((place for place, one in arrived if one.prompt_tokens == length), most)]


def run_serve(run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool) -> None:
    """Serve the trace, or batches that arrive at once for each prompt length and batch size, until times are steady.

    A trace is warmed up with its first request alone; then it is served ``repeats`` times. Where steps have static
    shapes, each that is needed is decoded once before.
    """
    architecture, model = prepared(run, device, rows)
    clock, speed = clock_for(device), run.config.speed
    asked = speed.decoding or ("graph" if device.type == "cuda" else "eager")
    stream = prepare(run.config.data, sha256=run.facts.get("corpus_sha256")).train
    prompts: dict[tuple[int, int], Tensor] = {}
    decoded: Decoded = {}

    def prompt_of(shape: tuple[int, int]) -> Tensor:
        if shape not in prompts:
            prompts[shape] = excerpts(stream, *shape, device)
        return prompts[shape]

    def respond(batch: Sequence[Request], size: Callable[[int], int]) -> list[float]:
        shape = batch[0].prompt_tokens, size(len(batch))
        prompt, new_tokens = prompt_of(shape), max(one.output_tokens for one in batch)
        clock.synchronize()
        begin = clock.mark()
        tokens, marks = decode(architecture, model, prompt, new_tokens, clock)
        clock.synchronize()
        if shape in decoded or len(decoded) < AUDITED:
            decoded[shape] = prompt, tokens
        return [clock.seconds(begin, mark) for mark in marks]

    with peak_memory(device, clock=clock) as memory, rows.recording_attention():
        for case, most, requests in _cases(run):
            served: list[list[Answer]] = []
            sizes = {static_size(size, most) for size in range(1, most + 1)} if speed.trace else {most}
            shapes = [] if asked == "eager" else static_shapes(requests, sizes, run.model["context_length"])
            reason = None if len(shapes) <= KEPT else f"the {len(shapes)} shapes of its batches are more than {KEPT}"
            with decoding("eager" if reason else asked) as ran:
                for P, B, new_tokens in shapes if reason is None else ():
                    decode(architecture, model, prompt_of((P, B)), new_tokens, clock)
                reason = reason or (why_not(ran) if shapes else None)
                size = partial(static_size, most=most) if shapes and reason is None else int
                answer = partial(respond, size=size)
                once = partial(_serve_into, served, requests, most, answer)
                if speed.trace is None:
                    samples = timed(run, once, clock)
                else:
                    samples = timed(run, partial(serve, requests[:1], most, answer), clock)
                    for _ in range(speed.repeats):
                        seconds_of(once, clock)
            if asked == "graph":
                rows.add("graph_captured", reason is None, operation=reason, **case)
            _add(rows, served[-speed.repeats :], case)
            describe(rows, samples, case)
    rows.add_memory(memory, quiet=quiet)
    audit(run, model, decoded, rows)
    rows.add("trained", bool(speed.trained or run.config.weights or "train" in run.config.phases))


def _serve_into(served: list[list[Answer]], requests: Sequence[Request], most: int, respond: Respond) -> None:
    served.append(serve(requests, most, respond))


def static_size(requests: int, most: int) -> int:
    """Sequences of a batch of static shapes: the next power of two, at most ``most``; the rows added are decoded too.

    So there are few shapes, each captured before it is needed. vLLM's server pads batches to the sizes that it has
    captured as well (``cudagraph_capture_sizes``).
    """
    return min(most, 1 << (requests - 1).bit_length())


def static_shapes(requests: Sequence[Request], sizes: Iterable[int], context: int) -> list[tuple[int, int, int]]:
    """P, B and new tokens of decodings that take each static step that any batch of these requests may need.

    Args:
        requests: the trace's.
        sizes: B, of batches.
        context: the model's.
    """
    spans: dict[int, tuple[int, int]] = {}  # the cache's capacity -> fewest positions of a prompt, most of an answer
    for one in requests:
        last = one.prompt_tokens + one.output_tokens - 1
        first, longest = spans.get(capacity := min(bucket(last), context), (one.prompt_tokens, last))
        spans[capacity] = min(first, one.prompt_tokens), max(longest, last)
    return [(first, B, last - first + 1) for first, last in spans.values() for B in sorted(sizes)]


def _cases(run: RunFolder) -> Iterator[tuple[dict[str, Any], int, tuple[Request, ...]]]:
    """Columns of a case's rows, most requests in a batch, and its requests."""
    speed = run.config.speed
    if speed.trace is not None:
        requests = read_trace(speed.trace, run.model["context_length"])
        if trace_key(requests) != run.facts["trace"]:
            raise DataError(f"trace {speed.trace}", "it has changed since the run began", "Start a new run")
        yield from (({"batch_size": B}, B, requests) for B in speed.batch_sizes)
        return
    assert speed.prompt_lengths is not None, "prompt lengths are resolved before the first phase"
    for P, B in product(speed.prompt_lengths, speed.batch_sizes):
        one = Request(arrival_seconds=0.0, prompt_tokens=P, output_tokens=speed.new_tokens)
        yield {"batch_size": B, "prompt_length": P}, B, (one,) * B


def _add(rows: Rows, served: Sequence[Sequence[Answer]], case: dict[str, Any]) -> None:
    """A row for each request, gap and repeat; of a request, ``prompt_length`` is its own."""
    numbers: dict[str, int] = {}

    def add(metric: str, value: float, P: int) -> None:
        number = numbers[metric] = numbers.get(metric, -1) + 1
        rows.add(metric, value, repeat=number, **{**case, "prompt_length": P})

    for answers in served:
        for one in answers:
            P = one.request.prompt_tokens
            add("seconds_to_first_token", one.to_first_token, P)
            if one.per_output_token is not None:
                add("seconds_per_output_token", one.per_output_token, P)
            for gap in one.gaps:
                add("seconds_between_tokens", gap, P)
            add("latency_seconds", one.latency, P)
            add("queue_seconds", one.queue_seconds, P)
            add("batch_requests", one.batch_requests, P)
    for repeat, answers in enumerate(served):
        duration = max(one.request.arrival_seconds + one.latency for one in answers)
        new, read = (sum(getattr(one.request, name) for one in answers) for name in ("output_tokens", "prompt_tokens"))
        rows.add("requests_per_second", len(answers) / duration, repeat=repeat, **case)
        rows.add("output_tokens_per_second", new / duration, repeat=repeat, **case)
        rows.add("tokens_per_second", (new + read) / duration, repeat=repeat, **case)


def served_config(out: str | Path, run_id: str, fields: Mapping[str, Any]) -> tuple[RunConfig, RunFolder]:
    """The configuration that serves a finished run's trained weights, and that run.

    Args:
        out: folder of the results.
        run_id: the run's, or ``last``.
        fields: that replace the run's own, and those of its section ``speed``.

    Raises:
        UnknownNameError: there is no such run.
        UsageError: it has no trained weights.
        CheckpointError: it trained, and its checkpoints are gone.
        UntrustedCodeError: its folder names plugin files that the user of this machine has not named.
    """
    source = open_run(out, run_id)
    if source.config.speed.trained is not None:
        place = Path(source.config.speed.trained)
        source = open_run(place.parent, place.name)
    config = source.config
    require([*config.plugins, *code_of(config.architecture)], source.path / CONFIG)
    require_weights(source, f"Train it again, or serve random weights: archbench serve-bench {config.architecture}")
    speed = {**dict(config.speed), "trained": str(source.path.resolve()) if "train" in config.phases else None}
    speed |= {"trace": None, "prompt_lengths": None, **fields.get("speed", {})}
    return config.override(**{"out": str(out), **fields, "phases": ("serve",), "trackers": (), "speed": speed}), source
