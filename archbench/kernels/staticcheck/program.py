"""Machine code as blocks and loops, whatever the instruction set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

LONGEST_WAIT = 12
"""Instructions of the longest loop that is taken for one that only tries a barrier again and again."""


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
        flops: what it adds per warp that executes it, where it is a tensor-core instruction.
        spilled: bytes per thread it stores or loads, where it is a spill.
        targets: labels it may jump to.
        falls_through: whether the next instruction may follow.
    """

    text: str
    opcode: str
    kind: Kind = Kind.OTHER
    flops: float = 0.0
    spilled: int = 0
    targets: tuple[str, ...] = ()
    falls_through: bool = True


@dataclass
class Block:
    """Instructions that are entered at the first and left at the last."""

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

        A loop that only waits for a barrier is none of them, and does not make the one around it an outer one.
        """
        real = [loop for loop in self.loops if not self._waits(loop)]
        return [loop for loop in real if not any(other.blocks < loop.blocks for other in real)]

    def body(self, loop: Loop) -> list[Instruction]:
        """The instructions of one iteration: those of every block of the loop, without the loops inside it.

        Where the loop branches, both ways are counted: the figure is the most that an iteration executes.
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
    reached = _reached(blocks)
    predecessors: dict[int, list[int]] = {number: [] for number in reached}
    for number in reached:
        for successor in blocks[number].successors:
            predecessors[successor].append(number)
    everything = sum(1 << number for number in reached)
    dominators = dict.fromkeys(reached, everything)  # as bit sets
    changed = True
    while changed:
        changed = False
        for number in reached:
            common = everything if predecessors[number] and number != reached[0] else 0
            for predecessor in predecessors[number]:
                common &= dominators[predecessor]
            new = common | 1 << number
            if new != dominators[number]:
                dominators[number], changed = new, True
    members: dict[int, set[int]] = {}
    for number in reached:
        for header in blocks[number].successors:
            if dominators[number] >> header & 1:
                inside, waiting = members.setdefault(header, {header}), [number]
                while waiting:
                    block = waiting.pop()
                    if block not in inside:
                        inside.add(block)
                        waiting += predecessors[block]
    return [Loop(header, frozenset(inside)) for header, inside in sorted(members.items())]


def _reached(blocks: Sequence[Block]) -> list[int]:
    """The blocks that the first one reaches, in reverse postorder."""
    if not blocks:
        return []
    seen, order = {0}, []
    path = [(0, iter(blocks[0].successors))]
    while path:
        number, successors = path[-1]
        for successor in successors:
            if successor not in seen:
                seen.add(successor)
                path.append((successor, iter(blocks[successor].successors)))
                break
        else:
            order.append(number)
            path.pop()
    return order[::-1]
