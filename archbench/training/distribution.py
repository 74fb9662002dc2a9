"""The processes that train together, called ranks: what each holds of the batch and the model, and what they agree on.

With ``ddp`` each rank has the whole model, and gradients are averaged while the backward pass runs (torch's
DistributedDataParallel). With ``fsdp`` each has a part of every parameter, gradient and moment, and gathers one block
at a time (FSDP2, ``fully_shard``). Tensors on GPUs travel by NCCL, all others by gloo.

Every rank reads its rows of each micro-batch from the same sampler: the global batch is that of one process. Its loss
is weighted by its tokens over the mean rank's, so that the average over ranks, which torch takes, is the mean over all
tokens, also where the rows do not divide by the ranks.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor, nn

from archbench.errors import PluginError, one_line
from archbench.nn.experts import balanced_over

if TYPE_CHECKING:
    from archbench.config import ParallelName

LONGEST_WAIT = timedelta(minutes=30)
"""For a rank that is alive and does not come, as while one measures alone; one that dies is noticed at once."""


class PeerError(Exception):
    """Another rank has ended or was interrupted: the cause is there, and this rank is not at fault."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of one training, seen from one of them.

    Attributes:
        rank: this one's number; 0 writes checkpoints and rows.
        size: their number; 1: no other process, and no method communicates.
        parallel: what they share.
    """

    rank: int = 0
    size: int = 1
    parallel: ParallelName = "ddp"

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether parameters are distributed tensors (DTensor)."""
        return self.size > 1 and self.parallel == "fsdp"

    def rows(self, batch_size: int, micro_batches: int) -> npt.NDArray[np.int64] | None:
        """This rank's rows of a batch, in order: a part of each micro-batch; None: all of them. Ranks with a lower
        number have at most one more of a micro-batch."""
        if self.size == 1:
            return None
        parts = np.arange(batch_size).reshape(micro_batches, -1)
        return np.concatenate([np.array_split(part, self.size)[self.rank] for part in parts])

    def gather(self, values: Sequence[float] | npt.NDArray[np.float64]) -> Tensor:
        """Every rank's values, as many on each: (size, n) float64, on the CPU."""
        own = torch.as_tensor(values, dtype=torch.float64)
        if self.size == 1:
            return own[None]
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        return torch.stack(every)

    def any(self, flag: bool) -> bool:
        """Whether it is true on some rank."""
        return flag if self.size == 1 else bool(self.gather([flag]).any())

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, which is pickled."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def first(self, made: Callable[[], Any]) -> Any:
        """What ``made`` returns on rank 0, on all ranks; it is called nowhere else."""
        return self.gather_objects(made() if self.leads else None)[0]

    def wait(self) -> None:
        """Until all ranks are here."""
        self.gather([0.0])

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within this context losses over a whole batch, such as that which balances experts, are over all ranks'."""
        if self.size == 1:
            yield
            return
        with balanced_over(_summed):
            yield

    def shard_model(self, model: nn.Module, device: torch.device) -> int | None:
        """With ``fsdp``, distribute the parameters in place; returns the number of blocks that are gathered one at a
        time, besides the rest of the model; 0 if it has none. None: nothing is distributed.

        Raises:
            PluginError: torch cannot shard the model, or a tensor hook would be lost.
        """
        if not self.sharded:
            return None
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        name = type(model).__name__
        for place, parameter in model.named_parameters():
            if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
                cause = f"parameter {place} has a tensor hook, which a parameter in parts does not have"
                raise PluginError(f"{name}, --parallel fsdp", cause, "Use --parallel ddp, or a hook of a module")
        mesh = init_device_mesh(device.type, (self.size,))
        blocks = repeated_blocks(model)
        try:
            for module in [*blocks, model]:
                fully_shard(module, mesh=mesh)
        except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
            cause = f"torch cannot shard it ({one_line(error)})"
            raise PluginError(f"{name}, --parallel fsdp", cause, "Use --parallel ddp") from error
        return len(blocks)

    def replicate(self, model: nn.Module, device: torch.device) -> nn.Module:
        """With ``ddp``, a wrapper of ``model`` that averages gradients over ranks; the same parameters."""
        if self.size == 1 or self.sharded:
            return model
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():  # of the name of the option, which torch 2.10 has under no other
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            return DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,  # the rehearsal refuses models whose training changes them
                gradient_as_bucket_view=True,
            )

    def synchronise(self, model: nn.Module, wanted: bool) -> None:
        """Whether the next forward and backward pass exchange gradients: only those of the last micro-batch do."""
        if self.size == 1:
            return
        if self.sharded:
            model.set_requires_gradient_sync(wanted)  # type: ignore[operator]  # of FSDPModule
        else:
            model.require_backward_grad_sync = wanted  # type: ignore[assignment]  # what no_sync() sets

    def whole(self, state: Any) -> Any:
        """Nested dicts and lists with distributed tensors as whole ones, on the CPU: on rank 0 alone, None elsewhere.

        All ranks have to call it; each then holds one whole tensor at a time. What is tied stays tied.
        """
        found: dict[int, Tensor | None] = {}

        def gathered(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: gathered(one) for name, one in value.items()}
            if isinstance(value, list):
                return [gathered(one) for one in value]
            if not hasattr(value, "full_tensor"):
                return value
            if id(value) not in found:
                full = value.full_tensor()
                found[id(value)] = full.detach().cpu() if self.leads else None
            return found[id(value)]

        return gathered(state) if self.sharded else state

    def seed(self, step: int) -> None:
        """Give the random generators of this rank, after ``step`` updates, a state that no other has (of dropout)."""
        torch.manual_seed(hash((torch.initial_seed(), self.rank, step)) % 2**63)


def store_at(address: str, port: int, *, kept_here: bool = False) -> Any:
    """The store at which processes meet (a TCPStore); for port 0 of one kept here the system chooses another."""
    kind: Any = dist.TCPStore  # type: ignore[attr-defined]
    return kind(address, port, is_master=kept_here, wait_for_workers=False, timeout=LONGEST_WAIT)


ALONE = Ranks()
"""One process that trains by itself."""


def join(environment: Mapping[str, str], prefix: str, device: torch.device, parallel: ParallelName) -> Ranks:
    """Meet the other ranks at the address that torchrun's variables have, and form a group.

    Args:
        environment: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, whose store another process keeps.
        prefix: of the keys in that store; another for each group.
    """
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    store = c10d.PrefixStore(prefix, store_at(address, port))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    return Ranks(rank, size, parallel)


def leave() -> None:
    """End the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def host() -> str:
    """This machine's name, for messages and rows."""
    return socket.gethostname()


def from_a_peer(error: BaseException | None) -> bool:
    """Whether another rank's end is what raised ``error``, here or in a plugin's hook."""
    while error is not None:
        if isinstance(error, PeerError | dist.DistError) or "gloo/" in str(error) or "NCCL" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of lists of layers, all of one class: of each ``ModuleList``, or ``Sequential`` of two and more, that
    is in no other such list."""
    found: list[nn.Module] = []
    for child in model.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        alike = len({type(member) for member in members}) == 1 and any(True for _ in members[0].parameters())
        if alike and (len(members) > 1 or isinstance(child, nn.ModuleList)):
            found += members
        else:
            found += repeated_blocks(child)
    return found


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, or this rank's part of a distributed one."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def part_like(full: Tensor, reference: Tensor) -> Tensor:
    """This rank's part of ``full``, distributed as ``reference`` is; ``full`` itself if that is whole or other."""
    if not hasattr(reference, "full_tensor") or full.shape != reference.shape:
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(reference, DTensor)
    on_device = full.to(reference.device)
    return distribute_tensor(on_device, reference.device_mesh, reference.placements, src_data_rank=None)


def _summed(values: Tensor) -> Tensor:
    values = values.clone()
    dist.all_reduce(values)
    return values
