"""NVIDIA machine code (SASS), as ``nvdisasm -c`` prints it.

Instruction names: CUDA Binary Utilities, "Instruction Set Reference". The FLOPs of a tensor-core instruction follow
from its name (PTX ISA, "mma", "wgmma"); those of tcgen05 from its descriptor (PTX ISA, "Instruction descriptor").
"""

from __future__ import annotations

import re

from archbench_kernelcheck.program import Instruction, Kind, Program

_LABEL = re.compile(r"^(\.L_x_\d+|[\w$.]+):$")
_LINE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+\{?\s*(.*?)\s*;?\s*\}?\s*$")
_GUARDED = re.compile(r"^(@!?U?P[T\d]+)\s+")
_TARGET = re.compile(r"`\(([^)]+)\)")
_IMMEDIATE = re.compile(r"^UMOV\s+(UR\d+),\s*(0x[0-9a-f]+)")

_WARPGROUP = 4  # warps that issue one HGMMA together


def parse(text: str, warps: int) -> Program:
    """The first function of a disassembly.

    Args:
        text: what ``nvdisasm -c`` wrote.
        warps: warps of a block: a tcgen05 instruction is issued once per block, and its FLOPs are shared among them.
    """
    lines: list[str | Instruction] = []
    descriptors: dict[str, int] = {}
    barriers: dict[str, set[str]] = {}
    for raw in text.splitlines():
        if label := _LABEL.match(raw.strip()):
            lines.append(label[1])
        elif match := _LINE.match(raw):
            guard = _GUARDED.match(match[1])
            body = match[1][guard.end() :] if guard else match[1]
            if not body:
                continue
            if immediate := _IMMEDIATE.match(body):
                descriptors[immediate[1]] = int(immediate[2], 16)
            lines.append(_instruction(body, guard[1] if guard else "", warps, descriptors, barriers))
    return Program(lines)


def _instruction(
    body: str, guard: str, warps: int, descriptors: dict[str, int], barriers: dict[str, set[str]]
) -> Instruction:
    opcode, _, operands = body.partition(" ")
    base = opcode.split(".")[0]
    targets: tuple[str, ...] = tuple(_TARGET.findall(body))
    falls_through = True
    if base in ("BSSY", "WARPSYNC"):
        if base == "BSSY":
            barriers.setdefault(operands.split(",")[0].strip(), set()).update(targets)
        targets = ()
    elif base == "BSYNC":
        targets = tuple(sorted(barriers.get(operands.split(",")[0].strip(), ())))
    elif base == "BRX":
        targets, falls_through = tuple(re.findall(r"\.L_x_\d+", operands)), bool(guard)
    elif base in ("BRA", "JMP", "UBRA"):
        conditional = bool(guard) or ".DIV" in opcode or bool(re.match(r"\s*!?U?P\d", operands))
        falls_through = conditional
    elif base in ("EXIT", "RET", "KILL"):
        targets, falls_through = (), bool(guard)
    elif base != "CALL":
        targets = ()
    kind, flops = _classify(base, opcode, body, warps, descriptors)
    return Instruction(body, opcode, kind, flops, targets, falls_through)


def _classify(base: str, opcode: str, body: str, warps: int, descriptors: dict[str, int]) -> tuple[Kind, float]:
    if base in ("HMMA", "HGMMA", "QMMA", "OMMA", "QGMMA", "IMMA", "IGMMA", "DMMA"):
        return Kind.TENSOR, _flops(base, opcode)
    if base.startswith("UTC") and base.endswith("MMA"):
        return Kind.TENSOR, _tcgen05_flops(base, opcode, body, descriptors) / warps
    if base == "MUFU":
        return Kind.EXP, 0.0
    if base in ("STL", "LDL"):
        return Kind.SPILL, 0.0
    if base in ("LDG", "LDGSTS", "LD") and re.search(r"\.[US](8|16)\b", opcode):
        return Kind.NARROW_LOAD, 0.0
    if base in ("ATOM", "ATOMG", "RED", "REDG", "UBLKRED", "UTMAREDG"):
        # An exchange that drops its result is a store: a kernel publishes the tensor map that it made in this way.
        stored = ".EXCH" in opcode and re.search(r"PT, RZ,", body)
        return (Kind.OTHER if stored else Kind.ATOMIC), 0.0
    if base == "SYNCS" and "TRYWAIT" in opcode:
        return Kind.WAIT, 0.0
    return Kind.OTHER, 0.0


def _flops(base: str, opcode: str) -> float:
    """FLOPs per warp of ``HMMA.16816`` (m, n, k run together) or ``HGMMA.64x128x16``."""
    if match := re.search(r"\.(\d+)x(\d+)x(\d+)", opcode):
        m, n, k = (int(size) for size in match.groups())
        return 2.0 * m * n * k / (_WARPGROUP if base.endswith("GMMA") else 1)
    if match := re.search(r"\.(16|8)(8)(\d+)\b", opcode):
        m, n, k = (int(size) for size in match.groups())
        return 2.0 * m * n * k
    return 0.0


def _tcgen05_flops(base: str, opcode: str, body: str, descriptors: dict[str, int]) -> float:
    """FLOPs per block; 0 where the descriptor is no constant."""
    register = re.search(r"idesc\[(UR\d+)\]", body)
    if register is None or register[1] not in descriptors:
        return 0.0
    descriptor = descriptors[register[1]]
    n, m = (descriptor >> 17 & 0x3F) << 3, (descriptor >> 24 & 0x1F) << 4
    # 32 bytes of each row: 16 half-precision numbers (UTCHMMA), 8 tf32, 32 of eight bits
    k = {"UTCHMMA": 16, "UTCQMMA": 32, "UTCIMMA": 32}.get(base, 16)
    if base == "UTCHMMA" and descriptor >> 7 & 0x7 == 2:
        k = 8
    return 2.0 * m * n * k / (2 if ".2CTA" in opcode else 1)
