"""Optimizers from ``torch.optim``, with decoupled weight decay on matrices only.

Decoupled decay (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization") shrinks a weight by
learning rate × decay, apart from the gradient step. By default torch adds SGD's and Adam's decay to the gradient; here
it is decoupled for every optimizer, so that ``weight_decay`` has one meaning. Adam with decoupled decay *is* AdamW:
``adam`` and ``adamw`` give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archbench.errors import ConfigError

if TYPE_CHECKING:
    from archbench.config import TrainingConfig

_FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(model: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer over the model's trainable parameters, at the peak learning rate.

    Raises:
        ConfigError: no parameter is trainable, or Muon finds no hidden matrix.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not named:
        raise ConfigError(
            "the model", "no parameter requires a gradient", "Train an architecture that has trainable parameters"
        )
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        fused = device.type in _FUSED_DEVICES and _all_float32(named.values())
        groups = decay_groups(named.values(), decay)
        return DecoupledSGD(groups, lr=rate, momentum=config.betas[0], fused=fused)
    if config.optimizer == "muon":
        hidden = hidden_matrices(model)
        if not hidden:
            raise ConfigError(
                "optimizer muon",
                "the model has no 2-D weight besides its embeddings and output head",
                "Use optimizer adamw",
            )
        rest = [parameter for name, parameter in named.items() if name not in hidden]
        # The update is scaled to AdamW's root mean square, so that one learning rate suits both
        # (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).
        muon = SkippingMuon(
            [named[name] for name in hidden],
            lr=rate,
            weight_decay=decay,
            momentum=config.betas[0],
            adjust_lr_fn="match_rms_adamw",
        )
        return MuonWithAdamW(muon, _adam(torch.optim.AdamW, rest, config, device)) if rest else muon
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return _adam(kind, list(named.values()), config, device)


def _adam(
    kind: type[torch.optim.Adam], parameters: list[nn.Parameter], config: TrainingConfig, device: torch.device
) -> torch.optim.Optimizer:
    # Fused: one pass over memory instead of a dozen, 3 to 5 times as fast on a CPU (docs/reference/training.md).
    fused = device.type in _FUSED_DEVICES and _all_float32(parameters)
    decoupled = {} if kind is torch.optim.AdamW else {"decoupled_weight_decay": True}
    groups = decay_groups(parameters, config.weight_decay)
    return kind(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused or None, **decoupled)


def _all_float32(parameters: Iterable[nn.Parameter]) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in parameters)


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices (two or more dimensions) decay, gains and biases do not."""
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: nn.Module) -> list[str]:
    """Names of the 2-D weights that Muon trains: all except embeddings, tables of positions and the output head.

    Embeddings are the weights of ``nn.Embedding`` modules. Outside the numbered layers (``layers.0.…``), a matrix with
    as many rows as an embedding is an output head or a table of positions.
    """
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    rows = {table.shape[0] for table in tables}
    config = getattr(model, "config", None)
    rows |= {size for size in (getattr(config, "vocab_size", None), getattr(config, "context_length", None)) if size}
    table_ids = {id(table) for table in tables}
    hidden = []
    for name, parameter in model.named_parameters():
        numbered = any(part.isdigit() for part in name.split("."))
        head = not numbered and parameter.ndim > 0 and parameter.shape[0] in rows
        if parameter.requires_grad and parameter.ndim == 2 and id(parameter) not in table_ids and not head:
            hidden.append(name)
    return hidden


def rate_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it can read its learning rate from the device, () float32, as fused kernels do."""
    kinds = torch.optim.Adam, torch.optim.SGD
    return isinstance(optimizer, kinds) and all(group["fused"] for group in optimizer.param_groups)


class DecoupledSGD(torch.optim.SGD):
    """SGD with momentum and decoupled weight decay (SGDW, Loshchilov & Hutter 2019, algorithm 1).

    Groups store the decay as ``decoupled_decay``, because torch adds ``weight_decay`` to the gradient.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float, fused: bool) -> None:
        groups = [{"params": group["params"], "decoupled_decay": group["weight_decay"]} for group in groups]
        super().__init__(groups, lr=lr, momentum=momentum, fused=fused or None)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        found_inf = _found_inf(self)
        for group in self.param_groups:
            rate, held = group["lr"], isinstance(group["lr"], Tensor)  # see rate_on_device
            if group["decoupled_decay"]:
                decay = (rate.double() if held else rate) * group["decoupled_decay"]
                kept = 1.0 - decay * (1.0 if found_inf is None else 1.0 - found_inf)
                torch._foreach_mul_(group["params"], kept.float() if held else kept)
            if found_inf is not None and group["momentum"]:
                # torch makes the first step's momentum in its kernel, which writes nothing where that step is skipped.
                for one in group["params"]:
                    if one.grad is not None:
                        self.state[one].setdefault("momentum_buffer", torch.zeros_like(one.grad))
        return super().step(closure)


class SkippingMuon(torch.optim.Muon):
    """torch's Muon, which can skip a step for loss scaling without the host asking the GPU whether it has to.

    torch's loss scaling reads from the GPU whether gradients are infinite unless the optimizer says that it takes the
    answer as a tensor, ``found_inf`` (torch/amp/grad_scaler.py). Such a step here costs a copy of the matrices.
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        found_inf = _found_inf(self)
        if found_inf is None:
            return super().step(closure)  # type: ignore[no-untyped-call]
        skip = found_inf.bool()
        trained = [one for group in self.param_groups for one in group["params"] if one.grad is not None]
        before = [one.clone() for one in trained]
        for one in trained:
            gradient, momentum = one.grad, self.state[one].get("momentum_buffer")
            # The mean of the momentum and itself is the momentum: what is skipped leaves nothing in it.
            kept = torch.zeros_like(gradient) if momentum is None else momentum
            gradient.copy_(torch.where(skip, kept, gradient))
        loss = super().step(closure)  # type: ignore[no-untyped-call]
        for one, earlier in zip(trained, before, strict=True):
            one.copy_(torch.where(skip, earlier, one))
        return loss


def _found_inf(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """1 where loss scaling found infinite gradients: the step moves nothing. Shape (); None without scaling."""
    found: Tensor | None = getattr(optimizer, "found_inf", None)
    return found


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers as one: Muon for the hidden matrices, AdamW for the rest."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self.parts = (muon, adamw)
        self._step_supports_amp_scaling = all(getattr(part, "_step_supports_amp_scaling", False) for part in self.parts)
        super().__init__([{"params": group["params"]} for part in self.parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """Use the parts' own groups: a learning rate set here applies to them."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> Any:
        assert closure is None
        found_inf = _found_inf(self)
        for part in self.parts:
            if found_inf is not None:
                part.found_inf = found_inf  # type: ignore[attr-defined]
            part.step()
            if found_inf is not None:
                del part.found_inf  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
