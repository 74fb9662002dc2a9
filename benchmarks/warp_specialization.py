"""What the installed Triton makes of ``tl.range(..., warp_specialize=True)`` in the attention kernels. Nothing runs.

    python benchmarks/warp_specialization.py        # for sm_90 and sm_100; pip install triton==... for another version

The three kernels, unchanged but for that argument in every loop over keys or queries, bfloat16 with the table's blocks;
then the forward kernels of :data:`archbench.kernels.fused.configurations.PERSISTENT`. Writes the rows of the table in
``docs/explanation/kernels.md``.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

import torch
import triton

from archbench.kernels import fused
from archbench_kernelcheck import check, pretended, violations
from archbench_kernelcheck.checking import Result
from archbench_kernelcheck.chips import chip_named
from archbench_kernelcheck.figures import Failure

CHIPS, WIDTHS, PACKAGE = ("sm_90", "sm_100"), (64, 128), "specialized_everywhere"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        everywhere(Path(folder))
        jobs = []
        for chip in CHIPS:
            with pretended(chip_named(chip)):
                changed = importlib.import_module(f"{PACKAGE}.catalogue")
                unchanged = importlib.import_module("archbench.kernels.fused.catalogue")
                launches = changed.table_launches(chip, WIDTHS, (torch.bfloat16,))
                jobs += [one for one in launches if not one.name.startswith("delta") and "windowed" not in one.name]
                jobs += [one for one in unchanged.persistent_launches(chip) if "windowed" not in one.name]
            jobs = [job if isinstance(job, tuple) else (chip_named(chip), job) for job in jobs]
        for result in check(jobs):
            print(f"| {triton.__version__} | {result.chip} | {result.launch} | {told(result)} |")


def everywhere(folder: Path) -> None:
    """A copy of the kernels that asks for specialised warps in every loop, as a package that can be imported."""
    source = Path(next(iter(fused.__path__)))
    (folder / PACKAGE).mkdir()
    for file in source.glob("*.py"):
        text = file.read_text(encoding="utf-8").replace("archbench.kernels.fused", PACKAGE)
        text = text.replace(", warp_specialize=SPECIALIZED", "")
        for block in ("BLOCK_S", "BLOCK_T"):
            text = text.replace(f"{block}, disable_licm=TMA", f"{block}, disable_licm=TMA, warp_specialize=True")
        (folder / PACKAGE / file.name).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))


def told(result: Result) -> str:
    """Whether warps are specialised, and the figures of the code."""
    if isinstance(result, Failure):
        return "does not compile | | | | "
    found = "; ".join(violations(result)) or "sound"
    specialised = "yes" if result.specialised else "no"
    return f"{specialised} | {result.warps} | {result.registers} | {result.shared_bytes} | {found}"


if __name__ == "__main__":
    main()
