"""What training on several devices costs, in updates of their own after the training: their weights are thrown away.

The share of communication is read off a profile: the time in which at least one collective of a rank runs (gloo's work
on CPUs, NCCL's kernels on GPUs), waiting for slower ranks included, over the time of the same updates. It is of a part
that overlaps with computing too. The scaling efficiency compares an update of all ranks with the same update of one
device that does the work of every rank one after the other, in the same micro-batches, while the others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from statistics import median

from torch import Tensor
from torch.autograd.profiler import profile

from archbench.data.batches import Batch
from archbench.measure.clock import Clock
from archbench.training.distribution import Ranks
from archbench.training.state import Sampler, TrainState

PROFILED = 3
"""Updates in the profile, after one before it."""

TURNS = 5
"""Updates of all ranks, each followed by one of a single device, after one turn that is not counted."""

Step = Callable[[TrainState, "Batch"], Tensor]


def communication_share(state: TrainState, step: Step, own: Batch, clock: Clock) -> float:
    """The mean over ranks of the share of an update's time in which a collective runs; all ranks call it.

    Args:
        own: this rank's rows of a batch.
    """
    ranks = state.ranks
    with ranks.training():
        step(state, own)
        ranks.wait()
        clock.synchronize()
        with profile(use_device="cuda" if state.device.type == "cuda" else None) as recorded:
            start = clock.mark()
            for _ in range(PROFILED):
                step(state, own)
            end = clock.mark()
            seconds = clock.seconds(start, end)
    assert recorded.kineto_results is not None
    spans = [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in recorded.kineto_results.events()
        if event.name().startswith("gloo:" if state.device.type == "cpu" else "ncclDevKernel")
    ]
    return float(ranks.gather([1e-9 * covered(spans) / seconds]).mean())


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """The length of the union of intervals."""
    total, until = 0, -(1 << 63)
    for start, end in sorted(spans):
        total += max(0, end - max(start, until))
        until = max(until, end)
    return total


def scaling_seconds(
    state: TrainState, alone: Callable[[], TrainState], step: Step, sampler: Sampler, number: int, clock: Clock
) -> tuple[list[float], list[float]]:
    """Seconds of updates of all ranks (of the slowest), and of one device with the work of all; they alternate.

    Args:
        alone: makes the state of a model that is not shared; called on rank 0 only.
        sampler, number: the batch of all; rank 0 reads the whole of it.

    Returns:
        Both lists are the same on every rank.
    """
    ranks, own = state.ranks, state.next_batch(sampler, number)[0].to(state.device)
    single: TrainState | None = None
    together, by_one = [], []
    if ranks.leads:
        made = alone()
        whole = sampler.batch(number)
        every = [Ranks(rank, ranks.size).rows(sampler.batch_size, made.accumulation) for rank in range(ranks.size)]
        shares = [Batch(whole.inputs[rows], whole.targets[rows]) for rows in every]
        single = _OneByOne(**{one.name: getattr(made, one.name) for one in fields(TrainState)}, shares=shares)
    for _ in range(TURNS + 1):
        ranks.wait()
        with ranks.training():
            together.append(_seconds(lambda: step(state, own), clock))
        ranks.wait()
        by_one.append(_seconds(lambda: step(single, whole), clock) if single is not None else 0.0)
    slowest = ranks.gather([*together, *by_one]).amax(0).tolist()
    return slowest[1 : TURNS + 1], slowest[TURNS + 2 :]


def efficiency(together: list[float], by_one: list[float], size: int) -> float:
    """Tokens per second of all ranks over those of one device times the number of ranks."""
    return median(by_one) / (size * median(together))


@dataclass
class _OneByOne(TrainState):
    """A state of one device, whose micro-batches are those of every rank."""

    shares: list[Batch] = field(default_factory=list)

    def split(self, batch: Batch) -> list[Batch]:
        return [micro for share in self.shares for micro in super(_OneByOne, self).split(share)]


def _seconds(work: Callable[[], object], clock: Clock) -> float:
    clock.synchronize()
    start = clock.mark()
    work()
    return clock.seconds(start, clock.mark())
