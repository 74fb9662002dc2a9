"""AMD machine code of CDNA 3, as LLVM's assembly text.

Instruction names: AMD Instinct MI300 ISA guide. Registers and stack: the kernel's metadata
(LLVM, "User Guide for AMDGPU Backend", code object V5 metadata).
"""

from __future__ import annotations

import re

from archbench_kernelcheck.program import Instruction, Kind, Program

_LABEL = re.compile(r"^(\.?L?[\w$.]+):")
_TENSOR = re.compile(r"^v_s?mfmac?_\w+?_(\d+)x(\d+)x(\d+)_?(?:(\d+)b)?")
_NARROW = re.compile(r"^(?:global|buffer|flat)_load_(?:[us]byte|[us]short|[us]byte_d16|short_d16)")


def parse(text: str) -> Program:
    """The kernel's code, from its label to its end."""
    lines: list[str | Instruction] = []
    for raw in text.splitlines():
        line = raw.partition(";")[0].strip()
        if line.startswith(".Lfunc_end"):
            break
        if label := _LABEL.match(line):
            lines.append(label[1])
        elif line and not line.startswith("."):
            lines.append(_instruction(line))
    return Program(lines)


def metadata(text: str, key: str) -> int:
    """A number of the kernel's metadata: ``vgpr_count`` …"""
    match = re.search(rf"^\s*\.{key}:\s*(\d+)", text, re.MULTILINE)
    assert match, f"no .{key} in the metadata of the AMD assembly"
    return int(match[1])


def _instruction(line: str) -> Instruction:
    opcode, _, operands = line.partition(" ")
    targets: tuple[str, ...] = ()
    falls_through = opcode not in ("s_endpgm", "s_branch", "s_setpc_b64")
    if opcode == "s_branch" or opcode.startswith("s_cbranch"):
        targets = (operands.strip(),)
    kind, flops = _classify(opcode)
    return Instruction(line, opcode, kind, flops, targets, falls_through)


def _classify(opcode: str) -> tuple[Kind, float]:
    if match := _TENSOR.match(opcode):
        m, n, k, blocks = (int(size) if size else 1 for size in match.groups())
        return Kind.TENSOR, 2.0 * m * n * k * blocks
    if re.match(r"^v_(exp|log|rcp|rsq|sqrt|sin|cos)_", opcode):
        return Kind.EXP, 0.0
    if opcode.startswith(("scratch_load", "scratch_store")):
        return Kind.SPILL, 0.0
    if _NARROW.match(opcode):
        return Kind.NARROW_LOAD, 0.0
    if re.match(r"^(global|buffer|flat)_atomic", opcode):
        return Kind.ATOMIC, 0.0
    if opcode.startswith("s_"):
        return Kind.SCALAR, 0.0
    return Kind.OTHER, 0.0
