"""Compile one launch for a chip that is not present.

Triton asks its driver which GPU to compile for. :func:`pretended` installs a driver that only names a chip;
``warmup`` then compiles the exact launch: same arguments, specialisation and options. NVIDIA's assembler and
disassemblers come with Triton's wheel. Triton's own cache keeps the compiled kernels.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from archbench.errors import DeviceError, UsageError
from archbench.kernels.launch import Launch
from archbench_kernelcheck.chips import Chip


@dataclass(frozen=True)
class Compiled:
    """A launch, compiled for a chip.

    Attributes:
        chip: the chip it is compiled for.
        launch: name of the launch.
        kernel: name of the kernel.
        code: disassembly (``nvdisasm -c``) or AMD assembly text.
        registers: 32-bit registers per thread.
        stack: bytes of stack per thread, where spilled registers go.
        warps: warps per block; a warp-specialised kernel has more than its launch's option.
        specialised: whether warps of a block run different code.
        shared: bytes of shared memory per block.
        tensor_memory: columns of tensor memory per block (``sm_100``), else 0.
        half_precision_dots: whether the kernel multiplies matrices of 8 or 16 bits.
        seconds: of compiling; few if Triton has the kernel in its cache.
    """

    chip: Chip
    launch: str
    kernel: str
    code: str
    registers: int
    stack: int
    warps: int
    specialised: bool
    shared: int
    tensor_memory: int
    half_precision_dots: bool
    seconds: float


class _Utilities:
    """The properties that launch code of kernels reads from a driver."""

    def __init__(self, chip: Chip) -> None:
        self._chip = chip

    def get_device_properties(self, device: object) -> dict[str, int]:
        return {
            "max_shared_mem": self._chip.shared_per_block,
            "max_num_regs": self._chip.registers,
            "multiprocessor_count": self._chip.multiprocessors,
            "warpSize": self._chip.warp,
            "sm_clock_rate": int(self._chip.clock / 1e3),
        }


class PretendedDriver:
    """A Triton driver for one chip, which compiles and cannot run."""

    def __init__(self, chip: Chip) -> None:
        self._chip = chip
        self.utils = _Utilities(chip)

    def get_current_target(self) -> Any:
        return self._chip.target()

    def get_current_device(self) -> str:
        # Triton caches compiled kernels by device: this name keeps these apart from a real device's.
        return f"pretended {self._chip.name}"

    def set_current_device(self, device: object) -> None:
        pass

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_device_capability(self, device: object = None) -> tuple[int, int]:
        return divmod(self._chip.arch, 10) if isinstance(self._chip.arch, int) else (9, 4)

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("meta")


@contextlib.contextmanager
def pretended(chip: Chip) -> Iterator[None]:
    """Within this context Triton compiles for ``chip``; the previous driver returns after it.

    Raises:
        DeviceError: Triton is not installed.
        UsageError: Triton's interpreter is on, which compiles nothing.
    """
    try:
        import triton
    except ImportError as error:
        remedy = "Install it with: pip install 'archbench[kernels]' (Linux only)"
        raise DeviceError("triton", "is not installed", remedy) from error
    if triton.knobs.runtime.interpret:
        raise UsageError(
            "TRITON_INTERPRET", "is set, and the interpreter compiles nothing", "Unset it for the static check"
        )
    config = triton.runtime.driver
    before = config._active  # reset_active() would look for a GPU, and fail where there is none
    config.set_active(PretendedDriver(chip))
    try:
        yield
    finally:
        config._active = before


def compile_launch(launch: Launch, chip: Chip) -> Compiled:
    """Compile a launch for a chip, in this process.

    A compiler that crashes ends this process; :func:`~archbench_kernelcheck.checking.check` uses child processes.

    Raises:
        DeviceError: Triton is not installed.
        UsageError: Triton's interpreter is on, or the kernel is autotuned.
    """
    start = time.perf_counter()
    with pretended(chip):
        import triton

        if isinstance(launch.kernel, triton.runtime.Autotuner):
            raise UsageError(
                f"launch {launch.name!r}",
                "has an autotuned kernel, whose configuration is chosen by running it",
                "Give the launch `kernel.fn` and one configuration's arguments and options",
            )
        kernel = launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)
    metadata = kernel.metadata
    if chip.backend == "cuda":
        code, registers, stack = _disassembled(kernel.metadata_group[f"{metadata.name}.cubin"])
    else:
        from archbench_kernelcheck import amdgcn

        code = kernel.asm["amdgcn"]
        registers, stack = amdgcn.metadata(code, "vgpr_count"), amdgcn.metadata(code, "private_segment_fixed_size")
    return Compiled(
        chip=chip,
        launch=launch.name,
        kernel=metadata.name,
        code=code,
        registers=registers,
        stack=stack,
        warps=metadata.num_warps,
        specialised="ttg.warp_specialize" in kernel.asm["ttgir"],
        shared=metadata.shared,
        tensor_memory=getattr(metadata, "tmem_size", 0) or 0,
        half_precision_dots=bool(re.search(r"tt\.dot\S* .*: tensor<[\dx]+x(b?f16|f8\w+)>", kernel.asm["ttir"])),
        seconds=time.perf_counter() - start,
    )


def _disassembled(cubin: str | os.PathLike[str]) -> tuple[str, int, int]:
    """The machine code of a cubin as text, its registers and its bytes of stack per thread."""
    from triton import knobs

    code = _output(knobs.nvidia.nvdisasm.path, "-c", os.fspath(cubin))
    usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", os.fspath(cubin))
    registers, stack = re.findall(r"REG:(\d+)", usage), re.findall(r"STACK:(\d+)", usage)
    assert registers, f"cuobjdump names no registers: {usage}"
    return code, max(map(int, registers)), max(map(int, stack))


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(
            command[0], f"failed: {done.stderr.strip() or done.returncode}", "Check that triton's wheel is complete"
        )
    return done.stdout
