"""What the checks look at: an architecture at one configuration, its models, and tokens to read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from archbench.config import DTypeName, ModelConfig, TrainingConfig
from archbench.data.batches import Batch
from archbench.plugin.architecture import Architecture
from archbench.training.state import TrainState

NOISE = 0.02
"""Standard deviation of what :meth:`Subject.model` adds to every parameter."""

TOLERANCE = 1e-4
"""Of the logits' standard deviation, where two ways to the same logits are compared: products of other shapes are
summed in another order, about 1e-6 of it in float32, and more through many layers."""


class Subject:
    """One architecture at one configuration, on one device.

    Attributes:
        architecture: the plugin.
        config: of the models it is asked to build.
        device: where they are.
    """

    def __init__(
        self, architecture: Architecture, config: ModelConfig, device: torch.device | str = "cpu", *, seed: int = 0
    ) -> None:
        self.architecture = architecture
        self.config = config
        self.device = torch.device(device)
        self.seed = seed

    @property
    def V(self) -> int:  # noqa: N802  a dimension letter
        return self.config.vocab_size

    @property
    def T(self) -> int:  # noqa: N802
        """The context: the most positions that the model reads at once."""
        return self.config.context_length

    def build(self, seed: int | None = None) -> nn.Module:
        """A model as a run builds it: at its own initial weights, which ``seed`` decides, in training mode."""
        torch.manual_seed(self.seed if seed is None else seed)
        return self.architecture.build(self.config).to(self.device)

    def model(self, seed: int | None = None) -> nn.Module:
        """A model in evaluation mode, every parameter moved off its initial value.

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

    def batch(self, B: int, T: int, seed: int = 0) -> Batch:
        """Random tokens and their successors, (B, T) each."""
        tokens = self.tokens(B, T + 1, seed)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def state(self, model: nn.Module, *, learning_rate: float = 1e-3, dtype: DTypeName = "float32") -> TrainState:
        """A training state around ``model``: AdamW without decay or clipping; ``dtype`` is autocast's."""
        values: dict[str, Any] = {"weight_decay": 0.0, "grad_clip": None, "schedule": "constant"}
        recipe = TrainingConfig(steps=1, batch_size=1, learning_rate=learning_rate, **values)
        return TrainState.create(model, recipe, device=self.device, dtype=dtype)
