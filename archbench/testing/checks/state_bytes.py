"""A decoding cache lists all that it holds, and nothing is kept elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archbench.measure.flops import cache_bytes, on_meta, storage_bytes
from archbench.protocols import CachedModel, DecodingCache
from archbench.testing.attributes import module_attributes, tensors_in
from archbench.testing.elsewhere import Elsewhere
from archbench.testing.evaluation import Fault, NotApplicable, and_more, check
from archbench.testing.subject import Subject

B = 2
_CAPACITY, _LARGER = 32, 256
"""Positions of a cache that is read one at a time, and of one that is filled at once: as far as the context goes."""
_NUMBER = 8
"""Bytes: an unlisted tensor of at most one integer a sequence is bookkeeping, not memory of what was read, such as
``cumulative_length`` of transformers' ``StaticCache``."""


@check(gate=True, needs=("logits", "generate", "cached_decode"))
def check_state_bytes(subject: Subject) -> str:
    """How much memory a sequence needs is compared by what the cache says it holds; what is kept elsewhere is not
    seen."""
    model = subject.model()
    if not isinstance(model, CachedModel):
        raise NotApplicable("it has no decoding cache")
    capacity = min(_CAPACITY, subject.T)
    tokens = subject.tokens(B, min(_LARGER, subject.T))
    with torch.inference_mode():
        # Tables that a forward pass leaves behind are the model's own; what only decoding leaves is its state.
        model(subject.tokens(1, subject.T))
        model(tokens[:, -1:])
        before = _shapes_kept_by(model)
        half = max(capacity // 2, 1)
        empty = _check_filled(subject, model, tokens[:, :capacity], [half, *[1] * (capacity - half)], Elsewhere())
        if tokens.shape[1] > capacity:
            _check_filled(subject, model, tokens, [tokens.shape[1] - 1, 1])
    for path, shape in _shapes_kept_by(model).items():
        if before.get(path) != shape:
            was = f"was {before[path]}" if path in before else "was not there"
            raise Fault(
                f"decoding leaves a tensor of shape {shape} on the model as {path} (it {was} after a forward pass): "
                "what is kept between tokens belongs into the cache, where it is counted and each cache has its own"
            )
    return f"{empty:,} bytes for {B} sequences of {capacity} positions"


def _check_filled(
    subject: Subject, model: CachedModel, tokens: Tensor, sizes: list[int], elsewhere: Elsewhere | None = None
) -> int:
    """Read ``tokens`` (B, capacity) in chunks of those sizes; the bytes of the cache, before and after."""
    assert isinstance(model, nn.Module)
    capacity = tokens.shape[1]
    cache = model.new_cache(B, capacity)
    empty = _held(subject, cache, model, "when it is new")
    _check_meta(model, capacity, _listed_bytes(_listed(cache)))
    start = 0
    for size in sizes:
        model.extend(tokens[:, start : start + size], cache)
        start += size
    full = _held(subject, cache, model, f"after reading {capacity} tokens")
    if full != empty:
        raise Fault(
            f"the cache holds {empty:,} bytes when it is new and {full:,} after reading {capacity} tokens: allocate in "
            "new_cache all that its capacity needs, since that is what is measured"
        )
    if elsewhere is None:
        return empty
    # What the cache or the model has is judged by its path, elsewhere in this file.
    kept = [("cache", cache), *module_attributes(model)]
    known = [tensor for name, value in kept for _, tensor in tensors_in(value, name, set())]
    made, written = elsewhere.since([*model.parameters(), *model.buffers(), *known])
    if made or written:
        what = f"{made:,} bytes of new tensors" if made else f"{written:,} bytes of tensors that were written to"
        raise Fault(
            f"after reading {capacity} tokens there are {what}, in no cache and on no module: what is kept between "
            "tokens belongs into the cache, where it is counted. Look for dictionaries, lists and tables of the module "
            "or of a class"
        )
    return empty


def _listed(cache: object) -> list[Tensor]:
    """What ``tensors()`` returns, if it is what it should be."""
    if not isinstance(cache, DecodingCache):
        raise Fault(f"new_cache returns a {type(cache).__name__} without 'length' or 'tensors()': give it both")
    tensors: object = cache.tensors()
    if not isinstance(tensors, list) or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise Fault("cache.tensors() has to return a list of every tensor that the cache holds")
    return tensors


def _held(subject: Subject, cache: DecodingCache, model: nn.Module, when: str) -> int:
    """Bytes of the cache, if it lists all that it holds and holds no more than it lists."""
    listed, again = _listed(cache), _listed(cache)
    storages = {_storage(tensor) for tensor in listed}
    if storages != {_storage(tensor) for tensor in again}:
        raise Fault(f"{when} cache.tensors() makes new tensors at every call: it has to return those the cache holds")
    weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    declared, allocated = _listed_bytes(listed), storage_bytes(listed)
    bookkeeping: list[tuple[str, Tensor]] = []
    for path, tensor in tensors_in(cache, "cache", {id(module) for module in model.modules()}):
        if tensor.numel() and _storage(tensor) not in storages | weights:
            if tensor.untyped_storage().nbytes() <= _NUMBER * B and not tensor.is_floating_point():
                bookkeeping.append((path, tensor))
                continue
            raise Fault(
                f"{when} {path} holds {storage_bytes([tensor]):,} bytes that cache.tensors() does not list (it lists "
                f"{declared:,}): add it there"
            )
    if bookkeeping:
        path, unlisted = bookkeeping[0][0], storage_bytes(tensor for _, tensor in bookkeeping)
        more = and_more([path for path, _ in bookkeeping])
        subject.note(
            f"cache.tensors() does not list {path}{more}: {unlisted:,} bytes of integers that count as nothing"
        )
    if allocated > declared:
        raise Fault(
            f"{when} the tensors that cache.tensors() lists have {declared:,} bytes, and {allocated:,} are allocated "
            "behind them: some are views of something larger, which stays in memory. List the whole, or copy the part"
        )
    if allocated < declared:
        raise Fault(
            f"{when} cache.tensors() lists {declared:,} bytes, and only {allocated:,} are allocated: it lists the same "
            "memory more than once"
        )
    return allocated


def _check_meta(model: nn.Module, capacity: int, declared: int) -> None:
    try:
        computed = cache_bytes(on_meta(model), B, capacity)
    except (RuntimeError, NotImplementedError) as error:
        raise Fault(
            f"new_cache fails for a model on the meta device, where its bytes are computed ({error}): make the cache's "
            "tensors on the device of the weights, and read no values"
        ) from error
    if computed != declared:
        raise Fault(
            f"a cache for {B} sequences of {capacity} tokens has {computed:,} bytes by its shapes on the meta device "
            f"and {declared:,} here: make its shapes and dtypes depend on the configuration and the weights alone"
        )


def _shapes_kept_by(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every tensor on the model that is no parameter, buffers included."""
    seen = {id(thing) for thing in (*model.modules(), *model.parameters())}
    kept = [*model.named_buffers(), *module_attributes(model)]
    return {path: (*tensor.shape,) for name, value in kept for path, tensor in tensors_in(value, name, seen)}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _listed_bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
