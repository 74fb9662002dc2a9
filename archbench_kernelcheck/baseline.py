"""Instructions per iteration, compared with a committed baseline.

For each version of Triton, chip and launch, the file holds the instructions per iteration of the innermost loops (only
those with tensor-core instructions, if there are any), in the order of their addresses. Registers, shared memory,
resident blocks are there for the reader and are not compared. Each version of Triton has a baseline
of its own, because it compiles different code; a version without one is reported.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archbench.errors import DataError
from archbench_kernelcheck.figures import Failure, Figures

TOLERANCE = 0.05

Counts = dict[str, dict[str, dict[str, Any]]]
"""By chip and launch: ``loops``, the instructions per iteration of each, and the figures for the reader."""


def write(path: Path, results: Sequence[Figures | Failure]) -> None:
    """Make ``results`` the baseline of the installed Triton; those of other versions stay.

    Raises:
        DataError: the file exists and is not a baseline.
    """
    versions = _read(path) if path.exists() else {}
    versions[triton_version()] = _counts(results)
    path.write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def differences(path: Path, results: Sequence[Figures | Failure], tolerance: float = TOLERANCE) -> list[str]:
    """The differences from the baseline, one sentence each; chips without a result are ignored.

    Args:
        path: the committed file.
        results: of the installed Triton.
        tolerance: relative, in both directions, so that an improvement is committed too.

    Raises:
        DataError: the file does not exist, or is not a baseline.
    """
    versions = _read(path)
    version = triton_version()
    if version not in versions:
        return [f"there is no baseline for triton {version} in {path}, which has {', '.join(versions) or 'none'}"]
    before, now = versions[version], _counts(results)
    found = []
    for chip, launches in now.items():
        known = before.get(chip, {})
        found += [f"{chip}, {launch}: not in the baseline" for launch in launches if launch not in known]
        for launch, before_it in known.items():
            if launch not in launches:
                found.append(f"{chip}, {launch}: in the baseline, and was not checked")
                continue
            loops, loops_now = before_it["loops"], launches[launch]["loops"]
            if len(loops_now) != len(loops):
                found.append(f"{chip}, {launch}: {len(loops_now)} loops, but the baseline has {len(loops)}")
            else:
                found += [
                    f"{chip}, {launch}, loop {number}: {new} instructions per iteration, {new / old - 1:+.0%} of {old}"
                    for number, (old, new) in enumerate(zip(loops, loops_now, strict=True), 1)
                    if abs(new / old - 1) > tolerance
                ]
    return found


def triton_version() -> str:
    """Version of the installed Triton, read without importing it."""
    return importlib.metadata.version("triton")


def _counts(results: Sequence[Figures | Failure]) -> Counts:
    counts: Counts = {}
    for result in results:
        if isinstance(result, Figures):
            counts.setdefault(result.chip, {})[result.launch] = {
                "loops": [loop.instructions for loop in result.tensor_loops or result.loops],
                "registers": result.registers,
                "shared_bytes": result.shared_bytes,
                "blocks": result.blocks_per_multiprocessor,
            }
    return counts


def _read(path: Path) -> dict[str, Counts]:
    try:
        versions = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"cannot be read as a baseline: {error}", "Write it again, or restore it") from error
    if not isinstance(versions, dict):
        raise DataError(str(path), "is not a baseline: it holds no object", "Write it again, or restore it")
    return versions
