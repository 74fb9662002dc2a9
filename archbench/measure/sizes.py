"""How large a model is, by the numbers that architectures are compared by; on the meta device, at no cost.

Active parameters are those that the forward pass of one token uses: all of a dense model's; a sparse model says how
many (:class:`archbench.protocols.SparseModel`).

Non-embedding parameters leave out what grows with the vocabulary or the context and not with the model: every
``nn.Embedding`` (tokens, positions), and the output head, tied or not (Kaplan et al. 2020, Scaling Laws for Neural
Language Models, arXiv:2001.08361, section 2.1; they leave it out because its share shrinks as models grow, and
loss is predicted better without it). The head is:

* of a :class:`archbench.protocols.LinearHeadModel`, the weight and bias that ``head_parameters()`` returns;
* of any other, the ``nn.Linear`` of V outputs that forward calls last, and those of V outputs right before it, where
  logits are added up from several.

An embedding or a head that is a bare ``nn.Parameter`` is not recognised and counts as part of the model: define
``head_parameters()``, or use an ``nn.Embedding``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from archbench.errors import UsageError
from archbench.measure.flops import cache_bytes, count_flops, layer_table
from archbench.protocols import LinearHeadModel, SparseModel


@dataclass(frozen=True)
class Size:
    """One model's size, at one context length.

    Attributes:
        parameters: numbers in its parameters, tied ones once.
        active_parameters: those that the forward pass of one token uses.
        non_embedding_active_parameters: those without embeddings and output head.
        forward_flops_per_token: model FLOPs of a forward pass (:mod:`archbench.measure.flops`).
        training_flops_per_token: of a forward and backward pass.
        state_bytes: what decoding keeps of one sequence of ``context_length`` positions, in the parameters' dtype;
            None without a cache.
    """

    parameters: int
    active_parameters: int
    non_embedding_active_parameters: int
    forward_flops_per_token: float
    training_flops_per_token: float
    state_bytes: int | None


def size_of(model: nn.Module, context_length: int) -> Size:
    """Everything that :class:`Size` holds, of a model built under ``torch.device("meta")``.

    Raises:
        DeviceError: the model is not on the meta device, or does something that cannot be done there.
        UsageError: ``context_length`` is more than the model can read, or what it declares is invalid.
    """
    flops = count_flops(model, 1, context_length)
    return Size(
        parameters=_numel(model.parameters()),
        active_parameters=active_parameters(model),
        non_embedding_active_parameters=non_embedding_active_parameters(model),
        forward_flops_per_token=flops.forward_per_token,
        training_flops_per_token=flops.training_per_token,
        state_bytes=cache_bytes(model, 1, context_length),
    )


def active_parameters(model: nn.Module) -> int:
    """Parameters that the forward pass of one token uses, embeddings and head included; on any device.

    Raises:
        UsageError: a module says that more of its parameters are inactive than it has.
    """
    return _numel(model.parameters()) - _inactive(model, set())


def decode_step_bytes(model: nn.Module, batch_size: int, positions: int) -> int | None:
    """Bytes that one decoding step of ``batch_size`` sequences reads: each weight once, and the state.

    * A tied weight counts once. Of an embedding that is not the head too, ``batch_size`` rows count.
    * Of E experts of which a token is sent to A, min(E, A ``batch_size``) count: the most that the batch can reach.
    * The state is that of all sequences after ``positions`` positions. What is written, and activations, do not count.

    Args:
        model: as in :func:`head_names`.
        positions: read so far, the step's own included.

    Returns:
        Bytes; None if the model decodes without a cache: then a step reads the whole text again.

    Raises:
        DeviceError, UsageError: as in :func:`head_names` and :func:`active_parameters`.
    """
    state = cache_bytes(model, batch_size, positions)
    if state is None:
        return None
    head, named = {*head_names(model)}, dict(model.named_parameters())
    gathered = {id(table.weight): table for table in model.modules() if isinstance(table, nn.Embedding)}
    whole = {name: weight for name, weight in named.items() if name in head or id(weight) not in gathered}
    rows = {name: weight for name, weight in named.items() if name not in whole}
    number = _inactive(model, set(), batch_size)
    inactive = number and number * max(named.values(), key=Tensor.numel).element_size()
    read = sum(weight.nbytes for weight in whole.values())
    read += sum(weight[0].nbytes * min(batch_size, len(weight)) for weight in rows.values())
    return read - inactive + state


def non_embedding_active_parameters(model: nn.Module, head: Iterable[str] | None = None) -> int:
    """:func:`active_parameters` without embeddings and output head.

    Args:
        model: on any device if ``head`` is given or it is a ``LinearHeadModel``, else on the meta device.
        head: :func:`head_names` of a model of the same architecture, which saves the run that finds them.

    Raises:
        DeviceError, UsageError: as in :func:`head_names` and :func:`active_parameters`.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    excluded: dict[int, Tensor] = {id(parameter): parameter for table in tables for parameter in table.parameters()}
    named = dict(model.named_parameters())
    names = head_names(model) if head is None else head
    excluded |= {id(named[name]): named[name] for name in names if name in named}
    return active_parameters(model) - _numel(excluded.values())


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the output head's parameters.

    Args:
        model: on any device if it is a ``LinearHeadModel``, else on the meta device, to find the head by running it.

    Raises:
        DeviceError: it has to run, and is not on the meta device or cannot run there.
    """
    head = {id(parameter) for parameter in _head_parameters(model)}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in head)


def _inactive(module: nn.Module, seen: set[nn.Module], tokens: int = 1) -> int:
    """What the module declares for that many tokens, or else the sum over its children."""
    if module in seen:
        return 0
    seen.add(module)
    if not isinstance(module, SparseModel):
        return sum(_inactive(child, seen, tokens) for child in module.children())
    counts = "tokens" in inspect.signature(module.inactive_parameters).parameters
    inactive: object = module.inactive_parameters(**({"tokens": tokens} if counts else {}))
    total = _numel(module.parameters())
    if not isinstance(inactive, int) or isinstance(inactive, bool) or not 0 <= inactive <= total:
        cause = f"it returned {inactive!r}, of {total} parameters"
        raise UsageError(
            f"{type(module).__name__}.inactive_parameters",
            cause,
            "Return how many of the module's parameters one token's forward pass does not use",
        )
    # Of a module that answers for one token alone: each token uses at most as many others as the first does.
    return inactive if counts else max(0, inactive - (tokens - 1) * (total - inactive))


def _head_parameters(model: nn.Module) -> list[Tensor]:
    if isinstance(model, LinearHeadModel):
        return [tensor for tensor in model.head_parameters() if tensor is not None]
    called: list[nn.Linear] = []

    def record(module: nn.Module, args: object, output: object) -> None:
        assert isinstance(module, nn.Linear)
        called.append(module)

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [linear.register_forward_hook(record) for linear in linears]
    try:
        logits = layer_table(model, 1, 2)[0].output_shape  # (1, 2, V); one position may be a special case
    finally:
        for handle in handles:
            handle.remove()
    heads = []
    while logits and called and called[-1].out_features == logits[-1]:
        heads.append(called.pop())
    return [parameter for head in heads for parameter in head.parameters()]


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
