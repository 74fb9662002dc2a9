"""A cell of the comparison, and one that takes part: archbench itself, or a published implementation's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import archbench
from archbench.config import TrainingConfig
from archbench.data.batches import Batch
from archbench.inference.decoding_kind import decoding
from archbench.training.optimizers import decay_groups
from archbench.training.state import TrainState

RATE = 1e-4
RECIPE = TrainingConfig(steps=1, batch_size=1, learning_rate=RATE)
"""AdamW, betas 0.9 and 0.95, decay 0.1 of matrices, gradients clipped at norm 1: what all train with."""

GREEDY = archbench.Sampling(greedy=True)


class UnavailableError(Exception):
    """This peer takes no part in this cell. The message is the reason."""


@dataclass(frozen=True)
class Cell:
    """What is timed: a training step on B × T tokens, or decoding after B × P; the model has the preset's sizes."""

    architecture: str
    size: str
    job: Literal["train", "prefill", "decode"]
    batch: int
    length: int
    """T of a training step, P of the others."""
    dtype: str = "float32"
    dropout: float = 0.0
    new_tokens: int = 32
    compile: bool = False

    @property
    def positions(self) -> int:
        return self.length + (self.new_tokens if self.job == "decode" else 1 if self.job == "prefill" else 0)

    @cached_property
    def tokens(self) -> Tensor:
        """(B, T + 1) of a training step, whose targets are the inputs one later; (B, P) of the others."""
        generator = torch.Generator().manual_seed(1)
        length = self.length + (self.job == "train")
        return torch.randint(self.config.vocab_size, (self.batch, length), generator=generator)

    @cached_property
    def plugin(self) -> archbench.Architecture:
        return archbench.load(self.architecture)

    @cached_property
    def config(self) -> Any:
        fields = {"context_length": self.positions}
        given = self.plugin.config(self.size)
        rates = [name for name in type(given).model_fields if name.endswith("_dropout")]
        return self.plugin.config(self.size, **fields, **dict.fromkeys(rates, self.dropout))

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Our model's: initial ones, all moved a little, since some architectures begin with zeros."""
        torch.manual_seed(0)
        model = self.plugin.build(self.config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        return model.state_dict()

    @property
    def published_weights(self) -> dict[str, Tensor]:
        """The same by their published names."""
        return self.plugin.export_weights(self.weights, self.config)

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class Contender:
    """A published model. What a user would write around it is here: the loss, the training step, the greedy loop.

    Attributes:
        model: tokens (B, T) int64 -> logits (B, T, V).
        why_not: why it is another model than ours, or has other weights; "" if it must compute the same.
        cached: whether decoding reads each token once; otherwise few are decoded, since each reads all before it.
        decoded_by: how archbench took its steps: ``replayed``, or ``eager`` and why; None of others.
    """

    why_not = ""
    cached = True
    decoded_by: str | None = None

    def __init__(self, cell: Cell, model: nn.Module) -> None:
        self.cell = cell
        self.model = model

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, (), of tokens (B, T); in autocast."""
        return F.cross_entropy(self.model(inputs).flatten(0, 1).float(), targets.flatten())

    def trainer(self) -> Callable[[Tensor], Tensor]:
        """A step on tokens (B, T + 1): one optimizer update; returns its loss, ()."""
        parameters = list(self.model.train().parameters())
        optimizer = torch.optim.AdamW(
            decay_groups(parameters, RECIPE.weight_decay), lr=RATE, betas=RECIPE.betas, eps=RECIPE.eps, fused=True
        )
        loss_of = torch.compile(self.loss) if self.cell.compile else self.loss
        half = self.cell.dtype != "float32"

        def step(tokens: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=self.cell.torch_dtype, enabled=half):
                loss = loss_of(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, RECIPE.grad_clip)
            optimizer.step()
            return loss.detach()

        return step

    def decoder(self) -> Callable[[Tensor, int], Iterator[Tensor]]:
        """Greedy decoding: a prompt (B, P) and a number of tokens -> tokens (B,), one after the other."""
        self.model.eval().to(self.cell.torch_dtype)
        return self.decode

    def decode(self, prompt: Tensor, new_tokens: int) -> Iterator[Tensor]:
        """Without a cache, which is all that a model offers that has none."""
        tokens = prompt
        for _ in range(new_tokens):
            with torch.inference_mode():
                token = self.last_logits(tokens).argmax(-1)
                tokens = torch.cat([tokens, token[:, None]], dim=1)
            yield token

    def last_logits(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens)[:, -1]
        return logits


class Ours(Contender):
    """archbench: the plugin's own ``train_step`` and ``generate``, as ``archbench run`` calls them."""

    def __init__(self, cell: Cell) -> None:
        model = cell.plugin.build(cell.config)
        model.load_state_dict(cell.weights)
        super().__init__(cell, model)

    def trainer(self) -> Callable[[Tensor], Tensor]:
        cell = self.cell
        state = TrainState.create(self.model.train(), RECIPE, dtype=cell.dtype, compile=cell.compile)  # type: ignore[arg-type]

        def step(tokens: Tensor) -> Tensor:
            return cell.plugin.train_step(state, Batch(tokens[:, :-1], tokens[:, 1:]))

        return step

    def decode(self, prompt: Tensor, new_tokens: int) -> Iterator[Tensor]:
        """From replays where the model allows it; what ran is kept."""
        if self.cell.job == "prefill":
            yield from self.cell.plugin.generate(self.model, prompt, new_tokens, GREEDY)
            return
        with decoding("graph") as ran:
            yield from self.cell.plugin.generate(self.model, prompt, new_tokens, GREEDY)
        self.decoded_by = "replayed" if not ran.reasons else f"eager: {'; '.join(sorted(ran.reasons))}"
