"""Machine code as basic blocks and loops, for any instruction set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import networkx as nx

LONGEST_WAIT = 12
"""A loop of at most this many instructions that waits for a barrier does nothing else."""


class Kind(Enum):
    """What an instruction is counted as."""

    TENSOR = "tensor core"
    EXP = "exponential unit"
    SPILL = "spill"
    NARROW_LOAD = "narrow global load"
    ATOMIC = "atomic"
    SCALAR = "scalar unit"
    WAIT = "barrier wait"
    OTHER = "other"


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        text: as disassembled, without address and comments.
        opcode: its mnemonic with modifiers, as in ``HMMA.16816.F32.BF16``.
        kind: what it is counted as.
        flops: FLOPs per warp that executes it; 0 unless it is a tensor-core instruction.
        targets: labels it may jump to.
        falls_through: whether the next instruction may follow.
    """

    text: str
    opcode: str
    kind: Kind = Kind.OTHER
    flops: float = 0.0
    targets: tuple[str, ...] = ()
    falls_through: bool = True


@dataclass
class Block:
    """A basic block: entered at its first instruction, left at its last."""

    labels: list[str]
    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """A natural loop: its header, and every block from which the header is reached again, by number."""

    header: int
    blocks: frozenset[int]


class Program:
    """The control flow of one kernel.

    Args:
        lines: labels (strings) and instructions in the order of their addresses.
    """

    def __init__(self, lines: Iterable[str | Instruction]) -> None:
        self.blocks = _blocks(lines)
        self.loops = _natural_loops(self.blocks)

    def instructions(self, blocks: Iterable[int] | None = None) -> list[Instruction]:
        """The instructions of some blocks, or of all, in the order of their addresses."""
        chosen = range(len(self.blocks)) if blocks is None else sorted(blocks)
        return [instruction for number in chosen for instruction in self.blocks[number].instructions]

    def looped(self) -> list[Instruction]:
        """The instructions that lie in any loop."""
        return self.instructions({number for loop in self.loops for number in loop.blocks})

    def innermost(self) -> list[Loop]:
        """Loops that hold no other, in the order of their addresses.

        A loop that only waits for a barrier is ignored: it is not listed, and a loop around it may be innermost.
        """
        real = [loop for loop in self.loops if not self._waits(loop)]
        return [loop for loop in real if not any(other.blocks < loop.blocks for other in real)]

    def body(self, loop: Loop) -> list[Instruction]:
        """The instructions of one iteration: those of every block of the loop, without the loops inside it.

        Both sides of a branch are counted: the figure is the most that an iteration executes.
        """
        inside = {number for other in self.loops if other.blocks < loop.blocks for number in other.blocks}
        return self.instructions(loop.blocks - inside)

    def _waits(self, loop: Loop) -> bool:
        kinds = [instruction.kind for instruction in self.instructions(loop.blocks)]
        return len(kinds) <= LONGEST_WAIT and Kind.WAIT in kinds and Kind.TENSOR not in kinds


def _blocks(lines: Iterable[str | Instruction]) -> list[Block]:
    blocks: list[Block] = []
    ended = True
    for line in lines:
        if isinstance(line, str):
            if ended or blocks[-1].instructions:
                blocks.append(Block([]))
                ended = False
            blocks[-1].labels.append(line)
            continue
        if ended:
            blocks.append(Block([]))
        blocks[-1].instructions.append(line)
        ended = bool(line.targets) or not line.falls_through
    at = {label: number for number, block in enumerate(blocks) for label in block.labels}
    for number, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else None
        if (last is None or last.falls_through) and number + 1 < len(blocks):
            block.successors.append(number + 1)
        if last is not None:
            block.successors += [at[target] for target in last.targets if target in at]
    return blocks


def _natural_loops(blocks: Sequence[Block]) -> list[Loop]:
    """Aho, Lam, Sethi and Ullman, *Compilers* (2nd edition), section 9.6: dominators, back edges, natural loops."""
    if not blocks:
        return []
    graph = nx.DiGraph((number, after) for number, block in enumerate(blocks) for after in block.successors)
    graph.add_node(0)
    graph = graph.subgraph({0} | nx.descendants(graph, 0))
    parents = nx.immediate_dominators(graph, 0)

    def dominates(header: int, number: int | None) -> bool:
        while number is not None and number != header:
            above = parents.get(number)
            number = None if above == number else above  # networkx < 3.6: the first block dominates itself
        return number == header

    members: dict[int, set[int]] = {}
    for number, header in graph.edges:
        if dominates(header, number):
            inside = members.setdefault(header, {header})
            if number != header:
                inside |= {number} | nx.ancestors(graph.subgraph(graph.nodes - {header}), number)
    return [Loop(header, frozenset(inside)) for header, inside in sorted(members.items())]
