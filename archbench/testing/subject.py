"""What the checks examine: an architecture at one configuration, with its models, tokens and logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archbench.config import DTypeName, ModelConfig, TrainingConfig
from archbench.data.batches import Batch
from archbench.plugin.architecture import Architecture
from archbench.testing.global_state import Change
from archbench.testing.probes import Text, shipped
from archbench.training.state import TrainState

NOISE = 0.02
"""Standard deviation of the noise that :meth:`Subject.model` adds to every parameter."""

TOLERANCE = 1e-4
"""Of the logits' standard deviation, where two ways to the same logits are compared: products of other shapes are
summed in another order, which costs about 1e-6 of it in float32, and more through many layers."""

MOST_FLOPS, MOST_POSITIONS, MOST_LOGITS = 1 << 37, 4096, 1 << 26
"""Of one pass of several sequences: a second or two of two cores, and 256 MiB in float32."""


class Subject:
    """One architecture at one configuration, on one device.

    Attributes:
        architecture: the plugin.
        config: of the models it is asked to build.
        device: where they are.
        seed: of weights and tokens.
        import_changes: what importing the plugin changed of the process, where that was watched.
        notes: what the running check noted (:meth:`note`).
        text: what the model is to read; None for a play, as bytes.
        batch_sizes: sequences that are scored, and decoded, at a time.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: ModelConfig,
        device: torch.device | str = "cpu",
        *,
        seed: int = 0,
        import_changes: Sequence[Change] = (),
        text: Text | None = None,
        batch_sizes: Sequence[int] = (16, 8),
    ) -> None:
        self.architecture = architecture
        self.config = config
        self.device = torch.device(device)
        self.seed = seed
        self.import_changes = import_changes
        self.notes: list[str] = []
        self.text = text
        self.batch_sizes = tuple(batch_sizes)

    def note(self, text: str) -> None:
        """Say what a reader of the check should know, though it is no fault: the check then is ``noted``."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def V(self) -> int:  # noqa: N802  a dimension letter
        return self.config.vocab_size

    @property
    def T(self) -> int:  # noqa: N802
        """The context: the most positions that the model reads at once."""
        return self.config.context_length

    @property
    def separator(self) -> int | None:
        """The id between documents, if there is one."""
        return (self.text or shipped()).separator

    def rows(self, model: nn.Module, most: int, T: int) -> int:
        """Sequences of T tokens to read at once: ``most``, or as many as are affordable, but 2 at least."""
        affordable = int(MOST_FLOPS // max(forward_flops(model, T), 1))
        return max(2, min(most, MOST_POSITIONS // T, MOST_LOGITS // (T * self.V), affordable))

    def build(self, seed: int | None = None) -> nn.Module:
        """A model as a run builds it: in training mode, at the initial weights of ``seed``."""
        seed_generators(self.seed if seed is None else seed, self.device)
        return self.architecture.build(self.config).to(self.device)

    def model(self, seed: int | None = None) -> nn.Module:
        """A model in evaluation mode with noise on every parameter.

        Gains of one, biases and whole branches that begin at zero would hide what they do.
        """
        model = self.build(seed)
        generator = torch.Generator().manual_seed(1 + (self.seed if seed is None else seed))
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator) * NOISE
                parameter.add_(noise.to(parameter.device, parameter.dtype))
        return model.eval()

    def tokens(self, B: int, T: int, seed: int = 0) -> Tensor:
        """Random token ids (B, T) int64."""
        generator = torch.Generator().manual_seed(1000 + self.seed + seed)
        return torch.randint(self.V, (B, T), generator=generator).to(self.device)

    def probes(self, B: int, T: int, seed: int = 0) -> Tensor:
        """Token ids (B, T) int64 as a run reads them, and others: see :data:`archbench.testing.probes.KINDS`."""
        return (self.text or shipped()).rows(B, T, self.V, 2000 + self.seed + seed).to(self.device)

    def batch(self, B: int, T: int, seed: int = 0) -> Batch:
        """Random tokens and their successors, (B, T) each."""
        tokens = self.tokens(B, T + 1, seed)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def state(self, model: nn.Module, *, learning_rate: float = 1e-3, dtype: DTypeName = "float32") -> TrainState:
        """A training state around ``model``: AdamW without decay or clipping; ``dtype`` is autocast's."""
        values: dict[str, Any] = {"weight_decay": 0.0, "grad_clip": None, "schedule": "constant"}
        recipe = TrainingConfig(steps=1, batch_size=1, learning_rate=learning_rate, **values)
        return TrainState.create(model, recipe, device=self.device, dtype=dtype)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's global generators, from which a model on ``device`` draws.

    On a CPU only its own: ``torch.manual_seed`` writes down the whole stack for each kind of accelerator without one.
    """
    (torch.default_generator if device.type == "cpu" else torch).manual_seed(seed)


def forward_flops(model: nn.Module, positions: int) -> float:
    """About what a forward pass costs."""
    return 2.0 * positions * sum(parameter.numel() for parameter in model.parameters())


def logits_of(model: nn.Module, tokens: Tensor, seed: int | None = None, *, record: bool = False) -> Tensor:
    """Logits (B, T, V) in float32, detached; torch's generator is seeded first if ``seed`` is given.

    Args:
        record: whether operations are recorded for gradients, as in training: a model can tell.
    """
    if seed is not None:
        seed_generators(seed, tokens.device)
    with torch.set_grad_enabled(record):
        logits: Tensor = model(tokens)
    return logits.detach().float()


def deviation(logits: Tensor) -> float:
    """The logits' standard deviation, the unit in which they are compared; at least 1e-30."""
    spread = float(logits.float().std())
    return spread if spread > 1e-30 else 1e-30


@dataclass(frozen=True)
class Difference:
    """Where two tensors of logits (..., V) differ most.

    Attributes:
        largest: absolute difference; infinite where one of them is NaN.
        at: the indices of that place, without V's.
        spread: the standard deviation of the expected logits.
    """

    largest: float
    at: tuple[int, ...]
    spread: float

    @classmethod
    def between(cls, found: Tensor, expected: Tensor, spread: float | None = None) -> Difference:
        """Compare two tensors of one shape; ``spread`` is that of ``expected`` by default."""
        moved = (found.float() - expected.float()).abs().amax(-1).nan_to_num(nan=torch.inf, posinf=torch.inf)
        place = int(moved.argmax())
        at = tuple(int(index) for index in torch.unravel_index(torch.tensor(place), moved.shape))
        return cls(float(moved.flatten()[place]), at, deviation(expected) if spread is None else spread)

    @property
    def share(self) -> float:
        """:attr:`largest` as a share of :attr:`spread`."""
        return self.largest / self.spread

    @property
    def negligible(self) -> bool:
        """Whether it is no more than :data:`TOLERANCE` of the standard deviation, as summing in another order is."""
        return self.largest <= TOLERANCE * self.spread

    def __str__(self) -> str:
        return f"by up to {self.largest:.2g} (their standard deviation is {self.spread:.2g})"
