"""Compile Triton kernels for GPUs that are not present, and read the machine code. Nothing is run.

::

    python -m archbench_kernelcheck FILE.py --chip sm_90

where ``FILE.py`` defines ``launches(chip: str) -> list[Launch]`` (:class:`archbench.kernels.launch.Launch`).

Registers come from cuobjdump, shared memory from Triton's metadata, and the size of the stack, where spilled registers
go, from cuobjdump and AMD's metadata. The rest is read from the machine code: instructions and spills
of each innermost loop, widths of global loads, and atomics.
"""

from archbench_kernelcheck.checking import Result, check, check_on
from archbench_kernelcheck.chips import CHIPS, Chip, chip_named
from archbench_kernelcheck.compilation import Compiled, compile_launch, pretended
from archbench_kernelcheck.figures import Failure, Figures, LoopFigures, figures, resident_blocks, violations
from archbench_kernelcheck.tables import rows, table

__all__ = [
    "CHIPS",
    "Chip",
    "Compiled",
    "Failure",
    "Figures",
    "LoopFigures",
    "Result",
    "check",
    "check_on",
    "chip_named",
    "compile_launch",
    "figures",
    "pretended",
    "resident_blocks",
    "rows",
    "table",
    "violations",
]
