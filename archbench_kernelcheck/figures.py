"""Figures read from the machine code of a launch, and the faults that they show."""

from __future__ import annotations

import re
from dataclasses import dataclass

from archbench_kernelcheck import amdgcn, sass
from archbench_kernelcheck.chips import Chip
from archbench_kernelcheck.compilation import Compiled
from archbench_kernelcheck.program import Instruction, Kind

TENSOR_MEMORY_COLUMNS = 512  # of an SM of compute capability 10.0; PTX ISA, "Tensor Memory"


@dataclass(frozen=True)
class LoopFigures:
    """One iteration of an innermost loop, per warp.

    Attributes:
        instructions: all instructions.
        issued: those that take an issue slot (on AMD only vector instructions: scalar ones are issued in parallel).
        tensor_instructions: tensor-core instructions.
        tensor_flops: their FLOPs per warp (those of an instruction of several warps are shared among them).
        exponentials: instructions of the exponential unit (MUFU, all functions).
        spills: loads and stores of spilled registers.
        narrow_loads: global loads of one or two bytes per thread.
        masks: selects, which masking is made of.
        tensor_waits: waits for tensor-core instructions in flight (``sm_90``).
    """

    instructions: int
    issued: int
    tensor_instructions: int
    tensor_flops: float
    exponentials: int
    spills: int
    narrow_loads: int
    masks: int
    tensor_waits: int

    @property
    def serialised(self) -> bool:
        """Whether each HGMMA is waited for before the next, as ptxas does if registers are too few to pipeline."""
        return self.tensor_waits >= max(self.tensor_instructions, 3)


@dataclass(frozen=True)
class Figures:
    """One launch on one chip.

    Attributes:
        chip: name of the chip.
        launch: name of the launch.
        kernel: name of the kernel.
        registers: 32-bit registers per thread.
        stack_bytes: stack per thread, where spilled registers go; from cuobjdump or AMD's metadata.
        loop_spills: loads and stores of spilled registers in any loop.
        shared_bytes: shared memory per block.
        shared_limit: what the chip allows.
        tensor_memory: columns of tensor memory per block.
        tensor_instructions: in the whole kernel.
        half_precision_dots: whether the kernel multiplies matrices of 8 or 16 bits.
        narrow_loads: global loads of one or two bytes per thread in the whole kernel.
        atomics: atomic operations and reductions on global memory.
        instructions: in the whole kernel.
        warps: per block.
        specialised: whether warps of a block run different code.
        blocks_per_multiprocessor: resident at once, from registers, shared memory and warps; 0 if none fits.
        loops: innermost loops in the order of their addresses.
        seconds: of compiling.
    """

    chip: str
    launch: str
    kernel: str
    registers: int
    stack_bytes: int
    loop_spills: int
    shared_bytes: int
    shared_limit: int
    tensor_memory: int
    tensor_instructions: int
    half_precision_dots: bool
    narrow_loads: int
    atomics: int
    instructions: int
    warps: int
    specialised: bool
    blocks_per_multiprocessor: int
    loops: tuple[LoopFigures, ...]
    seconds: float

    @property
    def tensor_loops(self) -> tuple[LoopFigures, ...]:
        """The innermost loops with tensor-core instructions, in the order of their addresses."""
        return tuple(loop for loop in self.loops if loop.tensor_instructions)


@dataclass(frozen=True)
class Failure:
    """A launch that does not compile for a chip."""

    chip: str
    launch: str
    cause: str


def figures(compiled: Compiled) -> Figures:
    """Read the machine code of a compiled launch."""
    chip = compiled.chip
    nvidia = chip.backend == "cuda"
    program = sass.parse(compiled.code, compiled.warps) if nvidia else amdgcn.parse(compiled.code)
    code = program.instructions()
    return Figures(
        chip=chip.name,
        launch=compiled.launch,
        kernel=compiled.kernel,
        registers=compiled.registers,
        stack_bytes=compiled.stack,
        loop_spills=_count(program.looped(), Kind.SPILL),
        shared_bytes=compiled.shared,
        shared_limit=chip.shared_per_block,
        tensor_memory=compiled.tensor_memory,
        tensor_instructions=_count(code, Kind.TENSOR),
        half_precision_dots=compiled.half_precision_dots,
        narrow_loads=_count(code, Kind.NARROW_LOAD),
        atomics=_count(code, Kind.ATOMIC),
        instructions=len(code),
        warps=compiled.warps,
        specialised=compiled.specialised,
        blocks_per_multiprocessor=resident_blocks(
            chip, compiled.registers, compiled.warps, compiled.shared, compiled.tensor_memory
        ),
        loops=tuple(_loop(program.body(loop)) for loop in program.innermost()),
        seconds=compiled.seconds,
    )


def resident_blocks(chip: Chip, registers: int, warps: int, shared: int, tensor_memory: int = 0) -> int:
    """Blocks an SM holds at once, by the formula of NVIDIA's occupancy calculator."""
    per_warp = -(-registers * chip.warp // chip.register_unit) * chip.register_unit
    by_registers = chip.registers // chip.schedulers // per_warp * chip.schedulers // warps if per_warp else chip.blocks
    taken = shared + chip.shared_reserved
    limits = [chip.blocks, chip.warps // warps, by_registers]
    if shared > chip.shared_per_block:
        limits.append(0)
    if taken:
        limits.append(chip.shared_per_multiprocessor // taken)
    if tensor_memory:
        limits.append(TENSOR_MEMORY_COLUMNS // tensor_memory)
    return min(limits)


def violations(result: Figures | Failure) -> list[str]:
    """The faults of a launch on a chip, one sentence each."""
    if isinstance(result, Failure):
        return [f"does not compile: {result.cause}"]
    found = []
    if result.loop_spills:
        found.append(f"{result.loop_spills} spill instructions inside loops")
    if result.shared_bytes > result.shared_limit:
        found.append(f"{result.shared_bytes} bytes of shared memory, but the chip allows {result.shared_limit}")
    if result.tensor_memory > TENSOR_MEMORY_COLUMNS:
        found.append(f"{result.tensor_memory} columns of tensor memory, but there are {TENSOR_MEMORY_COLUMNS}")
    if not result.blocks_per_multiprocessor and result.shared_bytes <= result.shared_limit:
        found.append(f"no block of {result.warps} warps with {result.registers} registers fits")
    if result.half_precision_dots and not result.tensor_instructions:
        found.append("multiplies half-precision matrices without a tensor-core instruction")
    if result.narrow_loads:
        found.append(f"{result.narrow_loads} global loads of one or two bytes")
    if result.atomics:
        found.append(f"{result.atomics} atomic instructions")
    return found


def _count(instructions: list[Instruction], kind: Kind) -> int:
    return sum(instruction.kind is kind for instruction in instructions)


def _loop(body: list[Instruction]) -> LoopFigures:
    return LoopFigures(
        instructions=len(body),
        issued=len(body) - _count(body, Kind.SCALAR),
        tensor_instructions=_count(body, Kind.TENSOR),
        tensor_flops=sum(instruction.flops for instruction in body),
        exponentials=_count(body, Kind.EXP),
        spills=_count(body, Kind.SPILL),
        narrow_loads=_count(body, Kind.NARROW_LOAD),
        masks=sum(bool(re.match(r"F?SEL\b|v_cndmask", instruction.opcode)) for instruction in body),
        tensor_waits=sum(instruction.opcode == "WARPGROUP.DEPBAR.LE" for instruction in body),
    )
