"""The benchmark of one revision: exact costs, and CPU times beside a reference.

Runs in a child process (:mod:`archbench.regression.sides`), which says whose code it has loaded, then answers each
message: "exact", or metric -> number of samples.

Both revisions have to be measured by one benchmark, so this very file runs beside the archbench of either, as do
those that it loads from its folder (:func:`beside`). Hence they import only what archbench has long offered, and
nothing of this package.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archbench
from archbench.config import ModelConfig, TrainingConfig
from archbench.data.batches import Batch
from archbench.errors import ArchbenchError, PhaseError
from archbench.inference.sampling import Sampling
from archbench.kernels.triton_guard import without_triton
from archbench.measure.malloc import tune_malloc
from archbench.training.state import TrainState

if TYPE_CHECKING:
    from archbench.child.entry import Parent
    from archbench.plugin.architecture import Architecture

TIMED = ("train_step", "prefill", "decode")
"""The timed workloads."""

SUITE = "archbench"
"""In place of an architecture: what archbench itself costs (:mod:`archbench.regression.bounded_memory`)."""

WARMUP = 3
TOKENS = 4
"""New tokens in one sample of ``decode``: long against a clock tick, short against a time slice."""


@dataclass(frozen=True)
class Subject:
    """One architecture at one configuration."""

    architecture: Architecture
    config: ModelConfig

    @classmethod
    def load(
        cls, name: str, plugins: Sequence[str] = (), preset: str = "nano", overrides: Mapping[str, str] | None = None
    ) -> Subject:
        architecture = archbench.load(name, plugins=list(plugins))
        return cls(architecture, architecture.config(preset, **dict[str, Any](overrides or {})))

    @property
    def file(self) -> str | None:
        """The file of the plugin's code; None if it is unknown."""
        if self.architecture.files:
            return str(self.architecture.files[0])
        return getattr(sys.modules.get(self.architecture.source.partition(":")[0]), "__file__", None)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self.architecture.build(self.config)

    def tokens(self, B: int, T: int) -> Tensor:
        """Random token ids (B, T) int64."""
        return torch.randint(self.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(1))

    def training(self, B: int, device: torch.device) -> tuple[TrainState, Batch]:
        """The state before a first update in float32, and a batch (B, T) to repeat."""
        tokens = self.tokens(B, self.config.context_length + 1)
        recipe = TrainingConfig(steps=1, batch_size=B, learning_rate=1e-4, schedule="constant")  # type: ignore[call-arg]
        state = TrainState.create(self.build().to(device).train(), recipe, device=device)
        return state, Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()).to(device)


def exact_costs(
    subject: Subject, device: torch.device | str = "cpu", reasons: dict[str, str] | None = None
) -> dict[str, float | None]:
    """What can be counted: metric -> value; None where it does not exist, as the state of a model that has none.

    Args:
        subject: what.
        device: a GPU, to count what it is asked for as well.
        reasons: gets, by metric, why a value is None, where there is more to say than that the model has none.
    """
    costs: dict[str, float | None] = beside("operation_counts").counts(subject)
    if torch.device(device).type == "cuda":
        requests, why = beside("gpu_requests").counts(subject, torch.device(device))
        costs |= requests
        (reasons if reasons is not None else {}).update(why)
    return costs


def beside(name: str) -> Any:
    """The module of the file of that name beside this one: the archbench that is measured has its own, or none."""
    known = f"archbench_benchmark_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]


class Timing:
    """The three workloads of one architecture, each timed right after the reference."""

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self._subject, self._device = subject, device
        self.reference = reference_workload(device)
        made = self._train_step(), self._prefill(), self._decode()
        self.work: dict[str, Callable[[], object]] = dict(zip(TIMED, made, strict=True))
        for _ in range(WARMUP):
            self.reference()
            for metric in TIMED:
                self.prepare(metric)
                self.work[metric]()

    def _train_step(self) -> Callable[[], object]:
        return partial(self._subject.architecture.train_step, *self._subject.training(1, self._device))

    def _prefill(self) -> Callable[[], object]:
        architecture, model = self._subject.architecture, self._subject.build().to(self._device).eval()
        prompt = self._subject.tokens(1, max(1, 3 * self._subject.config.context_length // 4)).to(self._device)
        return lambda: list(architecture.generate(model, prompt, 1, Sampling(greedy=True)))

    def _decode(self) -> Callable[[], object]:
        self._model = self._subject.build().to(self._device).eval()
        T = self._subject.config.context_length
        self._prompt = self._subject.tokens(1, max(1, T // 4)).to(self._device)
        self._room = max(TOKENS, T - self._prompt.shape[1] - 1)
        self._generating: Iterator[Tensor] = iter(())
        self._left = 0

        def decode() -> None:
            for _ in range(TOKENS):
                next(self._generating)
            self._left -= TOKENS

        return decode

    def prepare(self, metric: str) -> None:
        """Prepare a sample, untimed: for ``decode``, read a prompt."""
        if metric == "decode" and self._left < TOKENS:
            generate, sampling = self._subject.architecture.generate, Sampling(greedy=True)
            self._generating = generate(self._model, self._prompt, self._room + 1, sampling)
            next(self._generating)
            self._left = self._room

    def sample(self, metric: str) -> tuple[float, float]:
        """Seconds of the reference, then of the work: CPU time of this process, or time on the GPU."""
        self.prepare(metric)
        return seconds(self.reference, self._device), seconds(self.work[metric], self._device)

    def turn(self, samples: dict[str, int]) -> dict[str, list[tuple[float, float]]]:
        """Some samples of each workload. The first reference is not timed, since another process has used the cache."""
        self.reference()
        gc.collect()
        gc.disable()
        try:
            return {metric: [self.sample(metric) for _ in range(count)] for metric, count in samples.items()}
        finally:
            gc.enable()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """On a CPU this process's CPU time, which other processes hardly affect; on a GPU the time between two events."""
    if device.type == "cpu":
        start = time.process_time_ns()
        work()
        return (time.process_time_ns() - start) * 1e-9
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start_event.record()
    work()
    end_event.record()
    end_event.synchronize()
    return float(start_event.elapsed_time(end_event)) * 1e-3


def reference_workload(device: torch.device) -> Callable[[], object]:
    """A fixed small transformer in plain torch that reads 32 positions, then 2 single ones, like the timed workloads.

    Its weights are as large as a nano model's (4 MB), so that a busy cache slows it as much.
    """
    C, H, V, S = 192, 6, 1024, 64
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).to(device)

    layers = [(draw(3 * C, C), draw(C, C), draw(4 * C, C), draw(C, 4 * C), draw(1, H, S, C // H)) for _ in range(2)]
    head, prompt, token = draw(V, C), draw(1, 32, C), draw(1, 1, C)

    def read(x: Tensor) -> Tensor:
        T = x.shape[1]
        for qkv, out, up, down, past in layers:
            q, k, v = F.linear(x, qkv).view(1, T, 3, H, C // H).permute(2, 0, 3, 1, 4)  # (1, H, T, D)
            if T == 1:
                k, v = torch.cat([past, k], 2), torch.cat([past, v], 2)  # (1, H, S + 1, D)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
            x = F.layer_norm(x + F.linear(y.transpose(1, 2).reshape(1, T, C), out), (C,))
            x = F.layer_norm(x + F.linear(F.gelu(F.linear(x, up)), down), (C,))
        return F.linear(x[:, -1], head)

    def reference() -> None:
        with torch.no_grad():
            read(prompt)
            for _ in range(2):
                read(token)

    return reference


def each(names: Sequence[str], do: Callable[[str], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``do`` for each architecture: results by name, and the errors of those that have none."""
    results: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for name in names:
        try:
            results[name] = do(name)
        except ArchbenchError as error:
            traceback.print_exc()
            errors[name] = error.as_dict()
        except Exception as error:  # noqa: BLE001  a plugin's code: what it raises is reported, and the next one goes on
            traceback.print_exc()
            cause = " ".join(f"it failed with {type(error).__name__}: {error}".split())[:400].rstrip(".")
            errors[name] = PhaseError(f"measuring {name}", cause, "See the traceback above").as_dict()
    return results, errors


def main(parent: Parent, request: dict[str, Any]) -> None:
    """Load what a :class:`archbench.regression.sides.Request` asks for, say so, and answer until nothing is asked."""
    tune_malloc()
    torch.set_num_threads(1)
    device = torch.device(request["device"])
    # Torch's compiler would import Triton, which runs on a CPU do without.
    with without_triton() if device.type == "cpu" else nullcontext():
        names, plugins, preset = request["architectures"], request["plugins"], request["preset"]
        subjects, errors = each(names, lambda name: Subject.load(name, plugins, preset, request["overrides"]))
        files = {name: subject.file for name, subject in subjects.items()}
        parent.send({"archbench": str(Path(archbench.__file__).parent), "files": files, "errors": errors})
        reasons: dict[str, dict[str, str]] = {name: {} for name in subjects}
        timings: dict[str, Timing] = {}
        while (order := parent.receive()) is not None:
            if order == "exact":
                # First, for memory that was freed would be used again, uncounted.
                suite, failed = each([SUITE] if request["suite"] else [], lambda _: beside("bounded_memory").counts())
                costs, errors = each(list(subjects), lambda name: exact_costs(subjects[name], device, reasons[name]))
                for name, (found, why) in suite.items():
                    costs[name], reasons[name] = found, why
                parent.send({"costs": costs, "errors": errors | failed, "reasons": reasons})
            else:
                timings = timings or {name: Timing(subject, device) for name, subject in subjects.items()}
                parent.send({name: timing.turn(order) for name, timing in timings.items()})
