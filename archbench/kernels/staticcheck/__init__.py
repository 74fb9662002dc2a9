"""Compile Triton kernels for GPUs that are not there, and read the machine code. Nothing is run.

::

    python -m archbench.kernels.staticcheck FILE.py --chip sm_90

where ``FILE.py`` defines ``launches(chip: str) -> list[Launch]``.
"""

from archbench.kernels.staticcheck.bounds import Bound, bound, loop_bound
from archbench.kernels.staticcheck.checking import check
from archbench.kernels.staticcheck.chips import CHIPS, Chip, chip_named
from archbench.kernels.staticcheck.compilation import Compiled, compile_launch, pretended
from archbench.kernels.staticcheck.figures import Failure, Figures, LoopFigures, figures, resident_blocks, violations
from archbench.kernels.staticcheck.table import rows, table

__all__ = [
    "CHIPS",
    "Bound",
    "Chip",
    "Compiled",
    "Failure",
    "Figures",
    "LoopFigures",
    "bound",
    "check",
    "chip_named",
    "compile_launch",
    "figures",
    "loop_bound",
    "pretended",
    "resident_blocks",
    "rows",
    "table",
    "violations",
]
