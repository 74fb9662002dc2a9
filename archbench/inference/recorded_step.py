"""A step recorded once as a flat list of torch's calls: what a CUDA graph is on a GPU, for CPUs.

A small model's token takes a CPU longer to ask for than to compute: modules, wrappers, views made anew. The recorder
runs a step under a dispatch mode and keeps every operation that computes or writes; views are made once. What an
operation gave while it was recorded is the buffer that its replay writes to, so that no address changes.

Operations are repeated, and no line of Python. So a step is refused that decides on the host by values (``item``,
``tolist``, an index that is a mask), or that reads a tensor of which nobody knows that it stays where it is.
:func:`why_not_recorded` holds replays to eager steps, which finds what bypasses the dispatcher.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from archbench.inference.sampling import Sampling
from archbench.inference.static_step import DIFFERENCE, PROVEN_POSITIONS, no_static_steps
from archbench.kernels import attention_backends
from archbench.kernels.packed_product import decoding_step, packed_copies
from archbench.protocols import CachedModel, StaticCache

Call = Callable[[], object]

_COPIES = ("aten::_to_copy", "aten::clone")
_EMPTY = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided")
_MOVES = ("aten::set_", "aten::resize_", "aten::resize_as_")
_READS = ("aten::resolve_conj", "aten::resolve_neg")
"""All that the dispatcher sees of ``tolist`` and ``numpy``."""

_HOST_DECIDES = "it reads values on the host, as by item(), tolist() or numpy(), and may decide by them"


@dataclass(frozen=True)
class Recording:
    """What a step did.

    Attributes:
        calls: to be made in this order, in ``torch.inference_mode``.
        refusal: why they are not the step, as a clause; None if they are.
    """

    calls: list[Call]
    refusal: str | None

    def replay(self) -> None:
        for call in self.calls:
            call()


def record(step: Callable[[], object], fixed: Iterable[Tensor]) -> Recording:
    """Take a step, truly, and record it; in ``torch.inference_mode``.

    Args:
        step: it has run before, so that what is built or chosen at the first time is there.
        fixed: the tensors that stay where they are, which it may read and write: weights, buffers, states, inputs.
    """
    recorder = _Recorder(fixed)
    with recorder:
        step()
    return Recording(recorder.calls(), next(iter(recorder.refusals), None))


def why_not_replayed(model: nn.Module, sampling: Sampling) -> str | None:
    """Why a recording would leave out what this decoding asks for besides the model's operations; None if nothing."""
    if type(sampling) is not Sampling:
        return f"its sampling, a {type(sampling).__name__}, may run code of its own at each token"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on, which would cast what a recording has cast"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode is on, which sees what the model asks for"
    every = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    hooked = next((name for name, one in model.named_modules() if one._forward_hooks or one._forward_pre_hooks), None)
    if every or hooked is not None:
        return f"a hook is registered on {hooked or type(model).__name__}, which a recording would not call"
    return None


def why_not_recorded(model: nn.Module, batch_size: int) -> str | None:
    """Why a recorded step of B sequences would not decode as eager ones do, as a clause; None if it would.

    Both read the same random tokens; the recording is made from the first one. The answer is kept with the model.
    """
    proofs = _proofs.setdefault(model, {})
    key = attention_backends.ambient, batch_size
    if key not in proofs:
        try:
            proofs[key] = _difference(model, batch_size)
        except Exception as error:  # noqa: BLE001  as in why_not_static
            proofs[key] = f"a recorded step fails: {type(error).__name__}: {error}"
    return proofs[key]


_proofs: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, int], str | None]] = weakref.WeakKeyDictionary()


def _difference(model: nn.Module, B: int) -> str | None:
    assert isinstance(model, CachedModel)
    config: Any = model.config  # decode_with_cache has asked
    positions = min(PROVEN_POSITIONS, config.context_length)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (B, positions), generator=generator).to(device)
    eager, static = model.new_cache(B, positions), model.new_cache(B, positions)
    if not isinstance(static, StaticCache):
        return no_static_steps(static)
    static.clear()
    expected = [model.extend(tokens[:, place : place + 1], eager) for place in range(positions)]  # (B, V) each
    model.extend(tokens[:, :1], static)
    token, position, found = tokens[:, :1].clone(), tokens.new_zeros(1), torch.empty_like(expected[0])
    reach = static.reach(positions)

    def step() -> None:
        static.hold(position, reach)
        try:
            with decoding_step():
                found.copy_(model.extend(token, static))
        finally:
            static.release()

    take: Callable[[], object] = step  # the first one builds what a recording should not hold
    for place in range(1, positions):
        token.copy_(tokens[:, place : place + 1])
        position.fill_(place)
        if place == 2:
            fixed = [*kept_tensors(model), *packed_copies(), *static.tensors(), token, position, found]
            recording = record(step, fixed)
            if recording.refusal is not None:
                return recording.refusal
            take = recording.replay
        else:
            take()
        off = float((found - expected[place]).float().norm() / expected[place].float().norm().clamp_min(1e-30))
        if not off <= DIFFERENCE.get(found.dtype, 0.05):
            return f"its recorded step gives other logits than eager ones: they differ by {off:.2g} of their norm"
    return None


def kept_tensors(model: nn.Module) -> list[Tensor]:
    """The model's weights and buffers."""
    return [*model.parameters(), *model.buffers()]


@dataclass(frozen=True)
class _Operation:
    """One that computes or writes.

    Attributes:
        run: called with ``arguments`` and ``named``, it repeats the operation.
        reads, gives: its tensors.
        takes_out: whether ``run`` writes its results to tensors given as ``out``.
        needed: whether it counts even if nobody reads what it gives.
    """

    name: str
    run: Callable[..., Any]
    arguments: Sequence[Any]
    named: dict[str, Any]
    reads: list[Tensor]
    gives: list[Tensor]
    takes_out: bool = False
    needed: bool = False
    in_place: bool = False

    def again(self, wanted: set[int]) -> Call:
        """Repeats it, and writes what it gives, if that is among the storages ``wanted``, to where it was given."""
        if self.in_place:
            return partial(self.run, *self.arguments, **self.named)
        if self.name in _COPIES:
            return partial(self.gives[0].copy_, self.arguments[0])
        if self.takes_out:
            out = self.gives[0] if len(self.gives) == 1 else tuple(self.gives)
            return partial(self.run, *self.arguments, **self.named, out=out)
        targets = [(place, tensor) for place, tensor in enumerate(self.gives) if _storage(tensor) in wanted]

        def compute_and_copy() -> None:
            given = [*_tensors(self.run(*self.arguments, **self.named))]
            for place, tensor in targets:
                tensor.copy_(given[place])

        return compute_and_copy


class _Recorder(TorchDispatchMode):
    """Keeps each operation of torch's kernels. Composite ones are taken apart, so that their views are seen."""

    def __init__(self, fixed: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fixed = {_storage(tensor) for tensor in fixed}
        self.made: dict[int, Tensor] = {}  # by storage; held, since a freed address is given again
        self.written: set[int] = set()
        self.operations: list[_Operation] = []
        self.refusals: dict[str, None] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise the first operation imports torch's compiler, to keep it out: 1.6 s

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        if function._schema.name in _READS:
            self._refuse(_HOST_DECIDES)
        if _composite(function):
            with self:
                return function.decompose(*arguments, **named)
        reads = [*_tensors((arguments, [*named.values()]))]
        self._judge(function, arguments, reads)
        run = _binding(function)
        try:
            given = run(*arguments, **named)
        except TypeError:
            if run is function:
                raise
            run = function  # the binding takes other arguments than the operator
            given = run(*arguments, **named)
        self._keep(function, run, arguments, named, reads, given)
        return given

    def calls(self) -> list[Call]:
        """Of the operations, those that write to what is fixed, and those whose results these read."""
        wanted: set[int] = set()
        kept = []
        for operation in reversed(self.operations):
            gives = {_storage(tensor) for tensor in operation.gives}
            constant = not operation.reads and not gives & self.written
            if operation.needed or (gives & wanted and not constant):
                kept.append(operation.again(wanted))
                wanted |= {_storage(tensor) for tensor in operation.reads}
        return kept[::-1]

    def _judge(self, function: Any, arguments: Any, reads: list[Tensor]) -> None:
        """Note why this operation cannot be repeated as it is."""
        name, tags = function._schema.name, function.tags
        if torch.Tag.data_dependent_output in tags:
            self._refuse(_HOST_DECIDES)
        elif torch.Tag.dynamic_output_shape in tags:
            masks = [index for index in _tensors(arguments[1:]) if index.dtype in (torch.bool, torch.uint8)]
            if masks or name != "aten::index":
                self._refuse(f"the shape of what {name} gives depends on values")
        for tensor in reads:
            if name == "aten::lift_fresh":
                self.made[_storage(tensor)] = tensor  # of a number of the host's: a constant
            elif (place := _storage(tensor)) not in self.fixed and place not in self.made:
                shape = tuple(tensor.shape)
                self._refuse(f"{name} reads a tensor {shape} that is no parameter, no buffer and not of its cache")

    def _refuse(self, reason: str) -> None:
        self.refusals[reason] = None

    def _keep(
        self, function: Any, run: Callable[..., Any], arguments: Any, named: Any, reads: list[Tensor], given: Any
    ) -> None:
        name, gives = function._schema.name, [*_tensors(given)]
        targets = [*_tensors(_targets(function, arguments, named))]
        if targets and torch.Tag.inplace_view in function.tags:
            if name in _MOVES or not all(_storage(target) in self.made for target in targets):
                self._refuse(f"{name} changes where a tensor that outlives the step has its elements")
        elif targets:
            self.written |= {_storage(target) for target in targets}
            operation = _Operation(name, run, arguments, named, reads, gives, needed=True, in_place=True)
            self.operations.append(operation)
        else:
            inputs = {_storage(tensor) for tensor in reads}
            fresh = {_storage(tensor): tensor for tensor in gives if _storage(tensor) not in inputs}
            self.made |= fresh
            if fresh and name not in _EMPTY:  # otherwise it gave views, or nothing yet
                random = torch.Tag.nondeterministic_seeded in function.tags
                takes_out = not random and _takes_out(run, function, arguments, named, given)
                operation = _Operation(name, run, arguments, named, reads, gives, takes_out, needed=random)
                self.operations.append(operation)


def _takes_out(run: Callable[..., Any], function: Any, arguments: Any, named: Any, given: Any) -> bool:
    """Whether torch's binding computes the same again into what it gave."""
    if run is function:
        return False
    try:
        run(*arguments, **named, out=tuple(given) if isinstance(given, tuple) else given)
    except (TypeError, RuntimeError):
        return False
    return True


def _targets(function: Any, arguments: Sequence[Any], named: dict[str, Any]) -> Iterator[Any]:
    """The arguments that it writes to."""
    for place, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield arguments[place] if place < len(arguments) else named.get(argument.name)


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            yield from _tensors(value)


def _storage(tensor: Tensor) -> int:
    """Tells storages apart, of those that live at the same time."""
    if tensor.layout != torch.strided:  # of a library's own, which no other tensor shares
        return id(tensor)
    address: int = tensor.untyped_storage()._cdata
    return address


@cache
def _composite(function: Any) -> bool:
    """Whether it only calls other operators."""
    name = function.name()
    own = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
    return not own and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


@cache
def _binding(function: Any) -> Callable[..., Any]:
    """What Python code calls for this operator: torch's binding where there is one, at half the operator's cost."""
    namespace, _, name = function._schema.name.partition("::")
    if namespace != "aten" or function._schema.is_mutable != name.endswith("_"):
        return function  # type: ignore[no-any-return]
    homes: list[Any] = [torch._C._VariableFunctions, torch._C._nn, torch._C._linalg]  # type: ignore[attr-defined]
    if name.endswith("_"):
        homes = [torch._C.TensorBase]
    found: Callable[..., Any] = next((getattr(home, name) for home in homes if hasattr(home, name)), function)
    return found
