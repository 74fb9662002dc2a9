"""The seed decides everything: the same seed repeats a run bit for bit, another one gives other weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archbench.inference.sampling import Sampling
from archbench.testing.evaluation import Fault, check
from archbench.testing.subject import Subject, seed_generators

POSITIONS, STEPS, NEW_TOKENS = 128, 3, 8
"""Most positions read, training steps, and tokens sampled."""


@dataclass
class _Run:
    """What a model is at first, learns and samples under one seed."""

    initial: dict[str, Tensor]
    losses: list[float]
    trained: dict[str, Tensor]
    samples: list[list[int]]


@check(needs=("logits", "side_effects"))
def check_seed(subject: Subject) -> str:
    """A run that cannot be repeated cannot be checked, and repeats over seeds are to show the role of chance."""
    first, second = _run(subject), _run(subject)
    if name := _first_difference(first.initial, second.initial):
        raise Fault(
            f"built twice under seed {subject.seed}, the initial values of {name} differ. Draw them from torch's "
            "global generator: those of numpy and random are not seeded"
        )
    if subject.device.type == "cpu":  # on a GPU, sums by atomic additions differ from run to run
        for step, (loss, again) in enumerate(zip(first.losses, second.losses, strict=True)):
            if loss != again:
                raise Fault(
                    f"trained twice from the same weights on the same batches, the loss of step {step} is {loss!r} and "
                    f"then {again!r}. Look for randomness that is not torch's own, or state kept outside the model"
                )
        if name := _first_difference(first.trained, second.trained):
            raise Fault(f"trained twice with the same losses for {STEPS} steps, the values of {name} differ")
        if first.samples != second.samples:
            place = next(i for i in range(NEW_TOKENS) if first.samples[i : i + 1] != second.samples[i : i + 1])
            raise Fault(
                f"generate, called twice with the same seeds, samples other tokens from new token {place} on. Draw "
                "from sampling.generator, or from torch's own generator where that is None"
            )
    if not _first_difference(first.initial, subject.build(subject.seed + 1).state_dict()):
        if all(bool((tensor == tensor.flatten()[:1]).all()) for tensor in first.initial.values()):
            return "every initial value is a constant, so that all seeds begin alike"
        raise Fault(
            f"seeds {subject.seed} and {subject.seed + 1} give the same initial weights, so that repeats over seeds "
            "say nothing about chance. Draw from torch's global generator, and set no seed"
        )
    if subject.device.type != "cpu":
        return "initial weights are the same bit for bit; training was not compared, since a GPU's sums differ"
    return f"initial weights, {STEPS} training steps and sampled tokens are the same bit for bit"


def _run(subject: Subject) -> _Run:
    model = subject.build()
    initial = _copied(model)
    T = min(subject.T, POSITIONS)
    state = subject.state(model.train())
    seed_generators(subject.seed, subject.device)
    losses = [float(subject.architecture.train_step(state, subject.batch(2, T, seed=step))) for step in range(STEPS)]
    trained = _copied(model)
    # Seed both generators, whichever it draws from: another check tests that it uses the one it was given.
    seed_generators(subject.seed, subject.device)
    sampling = Sampling(generator=torch.Generator(subject.device).manual_seed(subject.seed))
    prompt = subject.tokens(2, max(1, T // 2))
    tokens = subject.architecture.generate(model, prompt, NEW_TOKENS, sampling)
    return _Run(initial, losses, trained, [token.tolist() for token in tokens])


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _first_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> str:
    """The name of the first tensor that is not the same bit for bit; "" for none."""
    return next((name for name, tensor in first.items() if not torch.equal(tensor, second[name])), "")
