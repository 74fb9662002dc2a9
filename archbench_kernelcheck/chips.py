"""Limits of the chips that the static check knows.

One named product stands for each architecture. Sources:

- limits of shared memory, registers, warps and blocks: CUDA C++ Programming Guide, "Compute Capabilities",
  table "Technical Specifications per Compute Capability"; for CDNA 3, AMD Instinct MI300 ISA guide, section 3;
- multiprocessors and clocks: the vendors' white papers and data sheets (A100, GA102, Ada, H100, Blackwell, RTX
  Blackwell, CDNA 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archbench.errors import UnknownNameError, did_you_mean

KIB = 1024


@dataclass(frozen=True)
class Chip:
    """One GPU, as the static check sees it.

    Attributes:
        name: compute capability or gfx name, as in ``sm_90``.
        product: the product whose sizes these are.
        backend: Triton's backend: ``cuda`` or ``hip``.
        arch: Triton's architecture: ``90``, ``gfx942``.
        warp: threads in a warp (a wave).
        multiprocessors: SMs (compute units).
        clock: boost clock in Hz.
        shared_per_block: bytes of shared memory a block may have.
        shared_per_multiprocessor: bytes of shared memory an SM has.
        shared_reserved: bytes of it that the driver reserves per resident block.
        registers: 32-bit registers of an SM.
        register_unit: registers are allocated to a warp in multiples of this.
        warps: warps an SM may hold.
        blocks: blocks an SM may hold.
        schedulers: partitions of an SM, each with its own share of registers and warps.

    """

    name: str
    product: str
    backend: str
    arch: int | str
    multiprocessors: int
    clock: float
    shared_per_block: int
    shared_per_multiprocessor: int
    warps: int
    blocks: int

    warp: int = 32
    shared_reserved: int = KIB
    registers: int = 65536
    register_unit: int = 256
    schedulers: int = 4

    def target(self) -> Any:
        """Triton's ``GPUTarget``."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget(self.backend, self.arch, self.warp)


def _nvidia(arch: int, product: str, multiprocessors: int, clock: float, shared: int, warps: int, blocks: int) -> Chip:
    """A chip with ``shared`` KiB of shared memory per SM, of which a block may have all but the reserved one."""
    return Chip(
        name=f"sm_{arch}",
        product=product,
        backend="cuda",
        arch=arch,
        multiprocessors=multiprocessors,
        clock=clock,
        shared_per_block=(shared - 1) * KIB,
        shared_per_multiprocessor=shared * KIB,
        warps=warps,
        blocks=blocks,
    )


_CDNA3 = Chip(
    name="gfx942",
    product="MI300X",
    backend="hip",
    arch="gfx942",
    warp=64,
    multiprocessors=304,
    clock=2.100e9,
    shared_per_block=64 * KIB,
    shared_per_multiprocessor=64 * KIB,
    shared_reserved=0,
    registers=4 * 512 * 64,  # each SIMD: 512 vector registers (VGPR and AGPR) of 64 lanes
    register_unit=8 * 64,
    warps=32,
    blocks=32,
)

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # arch, product, SMs, clock, KiB shared, warps, blocks
        _nvidia(80, "A100 SXM 80 GB", 108, 1.410e9, 164, 64, 32),
        _nvidia(86, "RTX 3090", 82, 1.695e9, 100, 48, 16),
        _nvidia(89, "RTX 4090", 128, 2.520e9, 100, 48, 24),
        _nvidia(90, "H100 SXM", 132, 1.830e9, 228, 64, 32),
        _nvidia(100, "B200", 148, 1.850e9, 228, 64, 32),
        _nvidia(120, "RTX 5090", 170, 2.407e9, 100, 48, 24),
        _CDNA3,
    )
}


def chip_named(name: str) -> Chip:
    """The chip of that name.

    Raises:
        UnknownNameError: there is no such chip.
    """
    if name not in CHIPS:
        raise UnknownNameError(f"chip {name!r}", "is not known to the static check", did_you_mean(name, CHIPS))
    return CHIPS[name]
