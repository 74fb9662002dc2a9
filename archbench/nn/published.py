"""Published weights under a model's own names, for the hook ``import_weights``."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from archbench.errors import CheckpointError

Source = str | tuple[str, ...] | list[tuple[str, ...]]
"""A published name; several, whose rows are put one below the other; or a list of these, each one entry of a stack."""


def published_weights(
    state_dict: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    names: Mapping[str, Source],
    *,
    model: str,
    transposed: Collection[str] = (),
    tied_head: str | None = None,
) -> dict[str, Tensor]:
    """A state dict for a model, taken from published weights; nothing may be missing or left over.

    Args:
        state_dict: published name -> tensor.
        expected: the model's own state dict, as on the meta device: names and shapes.
        names: own name -> published name, or how several are put together (:data:`Source`). ``*`` stands for the number
            of the layer, the same on both sides.
        model: whose weights these have to be, for the messages, as in ``LlamaForCausalLM``.
        transposed: the own names, with ``*``, of what is published as (in, out).
        tied_head: the published name of a head that may be there and has to equal what ``embedding.weight`` is.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape; a tied head that is not tied.
    """
    given = dict(state_dict)
    sources: dict[str, list[tuple[str, ...]]] = {}
    for name in expected:
        layer = next((part for part in name.split(".") if part.isdigit()), "*")
        sources[name] = [tuple(part.replace("*", layer) for part in parts) for parts in _stack(names[_pattern(name)])]
    if tied_head is not None and (head := given.pop(tied_head, None)) is not None:
        embedding = sources["embedding.weight"][0][0]
        if not torch.equal(given.setdefault(embedding, head), head):
            cause = f"it differs from {embedding}, and the configuration has the head tied to it"
            raise unusable(model, tied_head, cause)
    wanted = {part for stack in sources.values() for parts in stack for part in parts}
    if missing := sorted(wanted - given.keys()):
        raise unusable(model, missing[0], f"it is missing, one of {len(missing)} that are")
    if unexpected := sorted(given.keys() - wanted):
        cause = f"a model of this configuration has no such tensor ({len(unexpected)} are left over)"
        raise unusable(model, unexpected[0], cause)
    weights = {}
    for name, stack in sources.items():
        # Projections published as 1×1 convolutions are stored (in, out).
        turned = _pattern(name) in transposed
        entries = [_joined([given[part].t().contiguous() if turned else given[part] for part in p]) for p in stack]
        tensor = torch.stack(entries) if isinstance(names[_pattern(name)], list) else entries[0]
        if tensor.shape != expected[name].shape:
            shapes = f"{(*tensor.shape,)}, the configuration's {(*expected[name].shape,)}"
            raise unusable(model, stack[0][0], f"as {name} its shape is {shapes}")
        weights[name] = tensor
    return weights


def unusable(model: str, tensor: str, cause: str) -> CheckpointError:
    """The error of weights that do not fit."""
    remedy = f"Pass weights of {model}, and --set the sizes (vocab_size, n_layer, …) that they have"
    return CheckpointError(f"weights, tensor {tensor}", cause, remedy)


def _stack(source: Source) -> list[tuple[str, ...]]:
    if isinstance(source, list):
        return source
    return [(source,) if isinstance(source, str) else source]


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _pattern(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
