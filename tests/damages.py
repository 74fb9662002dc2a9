"""Damages to files, drawn from a seed: what disks, cables, full disks and bad copies do to bytes.

``ARCHBENCH_DAMAGES`` is the number of damages that each test of them makes; without it, a few dozen.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archbench.errors import ArchbenchError

BLOCKS = (16, 64, 512, 4096)
"""Bytes that are zeroed or swapped together: words of a cable, cache lines, a disk's sectors and pages."""


def count(small: int) -> int:
    """How many damages to make: ``small``, or what ``ARCHBENCH_DAMAGES`` asks for."""
    return int(os.environ.get("ARCHBENCH_DAMAGES", small))


def flipped_bit(content: bytes, random: random.Random) -> bytes:
    place = random.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]


def _block(content: bytes, random: random.Random) -> int:
    return random.choice([size for size in BLOCKS if size * 2 <= len(content)] or [max(1, len(content) // 2)])


def zeroed_block(content: bytes, random: random.Random) -> bytes:
    size = _block(content, random)
    start = random.randrange(0, len(content), size)
    return (content[:start] + bytes(size) + content[start + size :])[: len(content)]


def swapped_blocks(content: bytes, random: random.Random) -> bytes:
    size = _block(content, random)
    blocks = [content[start : start + size] for start in range(0, len(content), size)]
    first, second = random.randrange(len(blocks)), random.randrange(len(blocks))
    blocks[first], blocks[second] = blocks[second], blocks[first]
    return b"".join(blocks)


def truncated(content: bytes, random: random.Random) -> bytes:
    return content[: random.randrange(len(content))]


def lost_part(content: bytes, random: random.Random) -> bytes:
    start, end = sorted((random.randrange(len(content)), random.randrange(len(content))))
    return content[:start] + content[end:]


def doubled_part(content: bytes, random: random.Random) -> bytes:
    start, end = sorted((random.randrange(len(content)), random.randrange(len(content))))
    return content[:end] + content[start:]


def lost_line(content: bytes, random: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[random.randrange(len(lines))]
    return b"".join(lines)


def garbage(content: bytes, random: random.Random) -> bytes:
    start = random.randrange(len(content))
    noise = random.randbytes(random.choice(BLOCKS))
    return (content[:start] + noise + content[start + len(noise) :])[: len(content)]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    damage.__name__: damage
    for damage in (
        flipped_bit, zeroed_block, swapped_blocks, truncated, lost_part, doubled_part, lost_line, garbage,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Damaged:
    """One damage: ``content`` is what the file then holds; ``str()`` names it, so that it can be made again."""

    damage: str
    seed: int
    content: bytes

    def __str__(self) -> str:
        return f"{self.damage}, seed {self.seed}"


def damaged(file: Path, number: int, *, seed: int = 0) -> Iterator[Damaged]:
    """Damage ``file`` ``number`` times, half of them by one flipped bit; it is itself again after each.

    Each time around, the file on disk holds the damaged content. What changes nothing is drawn again.
    """
    whole = file.read_bytes()
    others = [name for name in DAMAGES if name != "flipped_bit"]
    made, own = 0, seed * 1_000_003
    try:
        while made < number:
            own += 1
            draw = random.Random(own)
            name = "flipped_bit" if made % 2 == 0 else draw.choice(others)
            content = DAMAGES[name](whole, random.Random(own))
            if content == whole:
                continue
            made += 1
            file.write_bytes(content)
            yield Damaged(name, own, content)
    finally:
        file.write_bytes(whole)


def refusals(file: Path, read: Callable[[], Any], number: int, *, seed: int = 0) -> float:
    """Share of ``number`` damages to ``file`` after which ``read`` raises an ArchbenchError that names the file.

    After all others it must return what it returns of the whole file: a damage is seen, or changes nothing.
    """
    whole, refused = read(), 0
    for damage in damaged(file, number, seed=seed):
        try:
            found = read()
        except ArchbenchError as error:
            assert str(file) in str(error), f"{damage}: {error}"  # noqa: PT017
            refused += 1
            continue
        assert found == whole, f"{damage} is read as other data"
    return refused / number
