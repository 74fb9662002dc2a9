"""What the host asks of a GPU for an update and for a token: launches, copies, bytes and waits; exact.

Counted from the records that torch's profiler has of every call (CUPTI), and over libraries that count calls and
compute nothing (tests/fake_gpu) by these. As :mod:`archbench.regression.benchmark`, this very file runs beside the
archbench of either revision.
"""

from __future__ import annotations

import ctypes
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archbench.config import TrainingConfig
from archbench.data.batches import Batch
from archbench.errors import DeviceError
from archbench.inference.sampling import Sampling
from archbench.measure.clock import clock_for
from archbench.training.loop import train
from archbench.training.state import TrainState

if TYPE_CHECKING:
    from archbench.regression.benchmark import Subject

TOKENS = 4
"""New tokens that are counted."""

WARMUP = 17
"""Updates before those that are counted: they compile, allocate, check the head of the model, and are read."""

UPDATES = 12
"""Updates that are counted: fewer than lie between two readings of losses and times, which wait."""


class UncountedError(Exception):
    """It cannot be counted; the message is a clause that says why."""


@dataclass(frozen=True)
class Requests:
    """What the host asked a GPU for.

    Attributes:
        launches: kernels, products, memsets, copies within the device and graphs that the host started one by one.
        in_graphs: what the graphs among them hold: kernels, products, memsets and copies.
        copies_to_device, bytes_to_device: copies from the host's memory, pinned or not.
        copies_to_host, bytes_to_host: copies to it.
        waits: waits of the host for the GPU: for a stream, an event or all its work.
    """

    launches: float
    in_graphs: float
    copies_to_device: float
    bytes_to_device: float
    copies_to_host: float
    bytes_to_host: float
    waits: float

    def each(self, number: int) -> Requests:
        """Per one of so many."""
        return Requests(*(value / number for value in astuple(self)))


NAMES = tuple(Requests.__dataclass_fields__)


def counts(subject: Subject, device: torch.device) -> tuple[dict[str, float | None], dict[str, str]]:
    """Of an update (``step``), a token, and each by a CUDA graph: metric -> count, and why one is None.

    In bfloat16, as GPUs train and decode; the update in the training loop, so that its batch's way to the GPU counts.

    Raises:
        DeviceError: there is no such GPU.
    """
    if not torch.cuda.is_available():
        raise DeviceError(f"device {device}", "torch finds no GPU to count on", "Use --device cpu")
    costs: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    work: Mapping[str, Callable[[Subject, torch.device], Requests]] = {
        "step": _of_an_update,
        "graph_step": partial(_of_an_update, graph=True),
        "token": _of_a_token,
        "graph_token": _of_a_token_by_graph,
    }
    for name, count in work.items():
        try:
            found: Mapping[str, float | None] = asdict(count(subject, device))
        except UncountedError as error:
            found = dict.fromkeys(NAMES)
            reasons |= {f"gpu_{name}_{what}": str(error) for what in NAMES}
        costs |= {f"gpu_{name}_{what}": value for what, value in found.items()}
    return costs, reasons


class _Batches:
    """Two sequences of random tokens an update, in the host's memory; counts from one drawing to a later one."""

    batch_size = 2

    def __init__(self, subject: Subject, stack: ExitStack) -> None:
        tokens = subject.tokens(self.batch_size, subject.config.context_length + 1)
        self._batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        self._stack = stack
        self.found: list[Requests] = []

    def batch(self, step: int, rows: Any = None) -> Batch:
        if step == WARMUP and not self.found:
            self.found = self._stack.enter_context(counted())
        if step == WARMUP + UPDATES:
            self._stack.close()
        return self._batch


def _of_an_update(subject: Subject, device: torch.device, *, graph: bool = False) -> Requests:
    fields: dict[str, Any] = {"learning_rate": 1e-4, "schedule": "constant", "steps": WARMUP + UPDATES + 1}
    recipe = TrainingConfig(batch_size=_Batches.batch_size, **fields)
    model = subject.build().to(device).train()
    state = TrainState.create(model, recipe, device=device, dtype="bfloat16")
    step = subject.architecture.train_step
    how: dict[str, Any] = {}
    if graph:
        try:
            from archbench.training.captured_update import updates_of
        except ImportError as error:
            raise UncountedError("this revision captures no update") from error
        how = {"updates": updates_of("graph", state, step)}
    with ExitStack() as stack:
        batches = _Batches(subject, stack)
        train(state, batches, recipe, clock=clock_for(device), step=step, **how)
    if graph and (reason := how["updates"].reason) is not None:
        raise UncountedError(reason)
    return batches.found[0].each(UPDATES)


def _of_a_token(subject: Subject, device: torch.device) -> Requests:
    model, prompt = _decoding(subject, device)
    return _tokens(subject, model, prompt)


def _of_a_token_by_graph(subject: Subject, device: torch.device) -> Requests:
    try:
        from archbench.inference.decoding_kind import decoding
    except ImportError as error:
        raise UncountedError("this revision decodes by no graphs") from error
    model, prompt = _decoding(subject, device)
    with decoding("graph") as ran:
        for _ in range(2):  # an earlier decoding captures
            found = _tokens(subject, model, prompt)
    if not ran.kinds:
        raise UncountedError("its generate is not archbench.decode_with_cache")
    if ran.reasons:
        raise UncountedError("; ".join(sorted(ran.reasons)))
    return found


def _decoding(subject: Subject, device: torch.device) -> tuple[nn.Module, Tensor]:
    model = subject.build().to(device, torch.bfloat16).eval()
    return model, subject.tokens(1, max(1, subject.config.context_length // 4)).to(device)


def _tokens(subject: Subject, model: nn.Module, prompt: Tensor) -> Requests:
    """Of a token of the middle: the first ones read the prompt and capture."""
    tokens = iter(subject.architecture.generate(model, prompt, TOKENS + 3, Sampling(greedy=True)))
    for _ in range(3):
        next(tokens)
    with counted() as found:
        for _ in range(TOKENS):
            next(tokens)
    return found[0].each(TOKENS)


@contextmanager
def counted() -> Iterator[list[Requests]]:
    """Count what this context asks for; the list has it when the context has ended.

    Raises:
        UncountedError: the profiler has no records of a GPU.
    """
    found: list[Requests] = []
    library = ctypes.CDLL(None)
    if hasattr(library, "archbench_gpu_requests"):
        values = [(ctypes.c_long * len(NAMES))() for _ in range(2)]
        library.archbench_gpu_requests(values[0])
        yield found
        library.archbench_gpu_requests(values[1])
        found.append(Requests(*(after - before for before, after in zip(*values, strict=True))))
        return
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as recorded:
        with torch.profiler.record_function(MARK):
            yield found
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(file))
        found.append(requests_in(json.loads(file.read_text("utf-8"))["traceEvents"]))


MARK = "archbench counts"
_STARTS = re.compile(r"cu(da)?(Launch(Cooperative)?Kernel|Memset|GraphLaunch)")
_WAITS = re.compile(r"cu(da)?(Stream|Device|Event|Ctx)Synchronize|cudaMemcpy$")


def requests_in(events: Sequence[Mapping[str, Any]]) -> Requests:
    """What the host asked for within the annotation :data:`MARK`, from the events of a trace of torch's profiler.

    Calls of the host have the categories ``cuda_runtime`` and ``cuda_driver``, what they began on the GPU has
    ``kernel``, ``gpu_memset`` and ``gpu_memcpy``, and both share a ``correlation``.

    Raises:
        UncountedError: there are no calls.
    """
    (mark,) = (one for one in events if one.get("cat") == "user_annotation" and one["name"] == MARK)
    calls = [
        one
        for one in events
        if one.get("cat") in ("cuda_runtime", "cuda_driver") and 0 <= one["ts"] - mark["ts"] <= mark["dur"]
    ]
    if not calls:
        raise UncountedError("torch's profiler has no records of this GPU (CUPTI)")

    def correlations(name: re.Pattern[str]) -> set[int]:
        return {one["args"]["correlation"] for one in calls if name.match(one["name"])}

    called = {one["args"]["correlation"] for one in calls}
    graphs = correlations(re.compile("cu(da)?GraphLaunch"))
    done = [
        one
        for one in events
        if one.get("cat") in ("kernel", "gpu_memset", "gpu_memcpy") and one["args"]["correlation"] in called
    ]
    copies = [one for one in done if one["cat"] == "gpu_memcpy" and one["args"]["correlation"] not in graphs]
    to_device, to_host = ([one for one in copies if kind in one["name"]] for kind in ("HtoD", "DtoH"))
    return Requests(
        launches=len(correlations(_STARTS)) + len(copies) - len(to_device) - len(to_host),
        in_graphs=sum(one["args"]["correlation"] in graphs for one in done),
        copies_to_device=len(to_device),
        bytes_to_device=sum(one["args"]["bytes"] for one in to_device),
        copies_to_host=len(to_host),
        bytes_to_host=sum(one["args"]["bytes"] for one in to_host),
        waits=len(correlations(_WAITS)),
    )
