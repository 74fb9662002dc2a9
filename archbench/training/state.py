"""The state of one optimizer update: the model, its optimizer, the precision, clipping and accumulation.

A plugin's ``train_step`` gets a :class:`TrainState` and uses four of its methods::

    for micro in state.split(batch):        # the micro-batches of this update, on the model's device
        with state.autocast(): ...          # forward in the run's dtype
        state.backward(loss, weight)        # adds weight * gradient
    state.update()                          # clip, step, clear
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from archbench.errors import DeviceError, HookResultError
from archbench.kernels.float8_linear import Float8Products
from archbench.kernels.working_weights import WorkingWeights
from archbench.training.compilation import compile_model
from archbench.training.distribution import ALONE, Ranks
from archbench.training.optimizers import build_optimizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from archbench.config import DTypeName, Float8Name, TrainingConfig
    from archbench.data.batches import Batch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Sampler(Protocol):
    """Batches by number, as from ``archbench.data.batches.BatchSampler``."""

    batch_size: int
    """Sequences of one update, of all ranks and micro-batches."""

    def batch(self, step: int, rows: npt.NDArray[np.int64] | None = None) -> Batch:
        """The batch of that update, which depends only on its number: resuming needs no state.

        Args:
            rows: of the batch, those that this rank trains on; None for all.
        """
        ...


@dataclass
class TrainState:
    """A model in training.

    Attributes:
        model: tokens (B, T) int64 -> logits (B, T, V); possibly a wrapper that compiles it or averages its gradients.
        optimizer: the training loop sets its learning rate before every update.
        device: of the model and of micro-batches.
        dtype: autocast dtype; parameters and their gradients stay float32.
        float8: the products that are in float8 instead.
        accumulation: micro-batches per update.
        grad_clip: largest global gradient norm; None for none.
        scaler: loss scaling, for float16 on CUDA.
        ranks: the processes that train together; each gets its share of every batch.
        weight: this rank's tokens over the mean rank's, by which its losses are multiplied; of the last batch.
        step: updates done.
        tokens: training tokens seen, counted by the training loop.
        grad_norm: global L2 norm of the last update's gradients before clipping, shape ().
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    float8: Float8Name = "none"
    accumulation: int = 1
    grad_clip: float | None = None
    scaler: torch.amp.GradScaler | None = None
    ranks: Ranks = ALONE
    weight: float = 1.0
    step: int = 0
    tokens: int = 0
    grad_norm: Tensor | None = None

    def __post_init__(self) -> None:
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # Not on CPUs, where a gradient is best cast while it is in the cache, nor if the model is compiled, since the
        # compiler fuses casts, nor of several ranks, which exchange each gradient as soon as it is there.
        together = self.device.type == "cuda" and self.dtype != torch.float32
        alone = self.ranks.size == 1 and not self.compiled
        self._working = WorkingWeights(self.dtype) if together and alone else None
        on = self.float8 != "none"
        self._float8 = Float8Products(self.float8, self.module, self.device, self.dtype) if on else None

    @classmethod
    def create(
        cls,
        model: nn.Module,
        config: TrainingConfig,
        *,
        device: torch.device | None = None,
        dtype: DTypeName = "float32",
        float8: Float8Name = "none",
        compile: bool = False,
        ranks: Ranks | None = None,
    ) -> TrainState:
        """The initial state of a recipe: optimizer, clipping and precision for ``model``, which is on ``device``.

        Of several ranks that share the model, its parameters are distributed before (:meth:`Ranks.shard_model`).

        Raises:
            DeviceError: float16 on a CPU, no float8 there or under that dtype, or no compiler for ``compile``.
            ConfigError: the optimizer has nothing to train.
        """
        device = device or torch.device("cpu")
        if dtype == "float16" and device.type == "cpu":
            raise DeviceError(
                "dtype float16",
                "gradients underflow without loss scaling, which CPUs lack",
                "Use bfloat16 or float32",
            )
        ranks = ranks or ALONE
        return cls(
            model=ranks.replicate(compile_model(model, device) if compile else model, device),
            optimizer=build_optimizer(model, config, device),
            device=device,
            dtype=_DTYPES[dtype],
            float8=float8,
            accumulation=config.accumulation,
            grad_clip=config.grad_clip,
            scaler=torch.amp.GradScaler(device.type) if dtype == "float16" else None,
            ranks=ranks,
        )

    @property
    def module(self) -> nn.Module:
        """The plugin's own module: :attr:`model` without wrappers."""
        original = getattr(self._replica, "_orig_mod", self._replica)
        assert isinstance(original, nn.Module)
        return original

    @property
    def compiled(self) -> bool:
        return self.module is not self._replica

    @property
    def _replica(self) -> nn.Module:
        """:attr:`model` without the wrapper that averages gradients."""
        replicated = self.ranks.size > 1 and not self.ranks.sharded
        return self.model.get_submodule("module") if replicated else self.model

    def split(self, batch: Batch) -> list[Batch]:
        """The batch's micro-batches, on the model's device. Ranks exchange gradients in the last one's iteration."""
        self._outdate()
        batch = batch.to(self.device)
        micro_batches = [batch] if self.accumulation == 1 else batch.split(self.accumulation)
        return micro_batches if self.ranks.size == 1 else _Synchronised(micro_batches, self)

    def next_batch(self, sampler: Sampler, number: int) -> tuple[Batch, int]:
        """This rank's rows of the batch of update ``number``, as the sampler gives them, and the tokens of all ranks'.

        Other rows are not read. The losses of this batch have the :attr:`weight` that is set here.
        """
        if self.ranks.size == 1:
            batch = sampler.batch(number)
            return batch, batch.targets.numel()
        batch = sampler.batch(number, self.ranks.rows(sampler.batch_size, self.accumulation))
        tokens = sampler.batch_size * batch.targets.shape[1]
        self.weight = self.ranks.size * batch.targets.numel() / tokens
        return batch, tokens

    def autocast(self) -> AbstractContextManager[object]:
        """Autocast to :attr:`dtype`, with the products in float8 that :attr:`float8` names."""
        if self.dtype == torch.float32:
            return nullcontext()
        return self._half_precision()

    @contextmanager
    def _half_precision(self) -> Iterator[None]:
        with (
            torch.autocast(self.device.type, dtype=self.dtype),
            nullcontext() if self._working is None else self._working.used(),
            nullcontext() if self._float8 is None else self._float8.used(),
        ):
            yield

    def _outdate(self) -> None:
        if self._working is not None:
            self._working.outdate()

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """Add the gradients of ``weight`` × ``loss``, shape (). The weights of an update's micro-batches sum to 1."""
        weight *= self.weight
        if weight != 1.0:
            loss = loss * weight
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        torch.autograd.backward(loss)

    def update(self) -> None:
        """Clip the gradients, step the optimizer, clear the gradients.

        Raises:
            HookResultError: there are no gradients.
            PluginError: float8 is asked for, and the model has no product that can be.
        """
        if self._float8 is not None:
            self._float8.see_that_it_ran()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if not gradients:
            raise HookResultError(
                "train_step",
                "it reached state.update() with no gradients",
                "Call state.backward(loss) on a loss that depends on the model",
            )
        norm = torch.nn.utils.get_total_norm(gradients)
        self.grad_norm = norm.full_tensor() if self.ranks.sharded else norm  # type: ignore[attr-defined]  # of DTensor
        if self.grad_clip is not None and self._scales_gradients:
            # One pass over memory less: the fused kernel divides by it while it updates.
            self.optimizer.grad_scale = (self.grad_norm / self.grad_clip).clamp(min=1.0)  # type: ignore[attr-defined]
        # Reading the norm is free on a CPU, and can save multiplying every gradient by 1.
        elif self.grad_clip is not None and (self.device.type != "cpu" or not self.grad_norm <= self.grad_clip):
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.grad_clip, self.grad_norm)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.forget_gradients()
        self.step += 1

    def forget_gradients(self) -> None:
        """Clear them, and the copies of the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        self._outdate()

    @property
    def _scales_gradients(self) -> bool:
        """Whether the optimizer divides gradients by its ``grad_scale``, as torch's fused Adam does on GPUs."""
        fused = isinstance(self.optimizer, torch.optim.Adam) and all(g["fused"] for g in self.optimizer.param_groups)
        return fused and self.device.type == "cuda" and self.scaler is None and self.ranks.size == 1

    def set_learning_rate(self, value: float) -> None:
        """Set the rate of the next update for all parameters."""
        for group in self.optimizer.param_groups:
            group["lr"] = value


class _Synchronised(list["Batch"]):
    """Micro-batches; while one that is not the last is trained on, ranks exchange no gradients."""

    def __init__(self, micro_batches: list[Batch], state: TrainState) -> None:
        super().__init__(micro_batches)
        self._state = state

    def __iter__(self) -> Iterator[Batch]:
        model, ranks = self._state.model, self._state.ranks
        try:
            for number, one in enumerate(super().__iter__(), 1):
                ranks.synchronise(model, number == len(self))
                yield one
        finally:
            ranks.synchronise(model, True)
