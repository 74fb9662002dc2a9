"""Updates from captured graphs on the device: the losses and weights of eager ones, and how long both take."""

from __future__ import annotations

from statistics import median

import numpy as np
import torch
from torch import Tensor

from archbench.config import TrainingConfig
from archbench.data.batches import BatchSampler
from archbench.measure.clock import clock_for
from archbench.plugin.registry import load
from archbench.proof.statements import Bench, Statements, attempted, judged
from archbench.proof.whole_models import builtin
from archbench.testing.subject import seed_generators
from archbench.training.captured_update import WARM_UPDATES, updates_of
from archbench.training.history import TrainingHistory
from archbench.training.loop import train
from archbench.training.state import TrainState
from archbench.training.updates import Updates

STEPS, T = 16, 128
SPREAD = 4
"""Times the difference of two eager trainings, where kernels add in an order of their own, as in graphs."""


class RoundedRates(Updates):
    """Eager updates with learning rates in float32, as graphs have them."""

    def begin(self, rate: float, *, watched: bool) -> float:
        return super().begin(float(np.float32(rate)), watched=watched)


def updates(bench: Bench) -> Statements:
    """Every built-in's smallest preset, with dropout where it has any, in bfloat16 on GPUs and float32 elsewhere."""
    for name in builtin():
        yield from attempted(name, _updates(name, bench))


def _updates(name: str, bench: Bench) -> Statements:
    kind = "graph" if bench.gpu else "static"
    eager, again, found = (_trained(name, which, bench) for which in ("eager", "eager", kind))
    away, noise = _difference(found, eager), _difference(again, eager)
    taken: Updates = found[2]
    seconds = [1e3 * median(record.seconds for record in run[0].steps[WARM_UPDATES + 1 :]) for run in (eager, found)]
    shown = "all equal" if away == 0 else f"they differ by {away:.1e}, two eager trainings by {noise:.1e}"
    shown += f"; {seconds[0]:.2f} and {seconds[1]:.2f} ms an update"
    if taken.reason is not None:
        shown += f"; {taken.reason}"
    what = f"{name}: losses and weights of {STEPS} updates, {kind} against eager"
    yield judged(what, taken.kind == kind and away <= SPREAD * noise, "equal, bit for bit", shown)


Trained = tuple[TrainingHistory, list[Tensor], Updates]


def _trained(name: str, kind: str, bench: Bench) -> Trained:
    """The history, the weights afterwards, and how the updates were taken."""
    architecture = load(name)
    nano = architecture.config("nano")
    config = nano.override(**{field: 0.1 for field, _ in nano if field.endswith("dropout")})
    steps = np.random.default_rng(7).integers(1, 4, size=20_000)
    text = (np.cumsum(steps) % config.vocab_size).astype(np.uint16)
    B = 8 if bench.gpu else 2
    recipe = TrainingConfig.model_validate({"steps": STEPS, "batch_size": B, "learning_rate": 1e-3})
    seed_generators(0, bench.device)
    model = architecture.build(config).to(bench.device)
    state = TrainState.create(model, recipe, device=bench.device, dtype="bfloat16" if bench.gpu else "float32")
    step = architecture.train_step
    taken = RoundedRates(state, step) if kind == "eager" else updates_of(kind, state, step)
    batches = BatchSampler(text, batch_size=B, context_length=min(T, config.context_length), seed=0)
    history = train(state, batches, recipe, clock=clock_for(bench.device), updates=taken)
    return history, [parameter.detach() for parameter in model.parameters()], taken


def _difference(one: Trained, other: Trained) -> float:
    """The largest relative difference of a loss, or of all weights together."""
    losses = [abs(a.loss - b.loss) / max(abs(b.loss), 1e-30) for a, b in zip(one[0].steps, other[0].steps, strict=True)]
    weights, expected = (torch.cat([weight.flatten() for weight in trained[1]]) for trained in (one, other))
    return max(*losses, float((weights - expected).norm() / expected.norm().clamp_min(1e-30)))
