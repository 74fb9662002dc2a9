"""A disk that is full from the n-th write on: a library that is loaded before libc counts and refuses them.

It counts in all processes of a command together, and in what torch, Arrow and safetensors write: whatever creates a
file or a folder below the given one, writes, flushes, renames or links. The n-th fails, a write after half of its
bytes; what needs room fails from then on.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")
_FORMAT = "qqq1000s"
NEVER = 1 << 40


class FullDisk:
    """A folder whose disk can be full.

    Args:
        folder: of the tests; all below it is on the disk.
        kept: a folder beside it, for the library and the count.
    """

    def __init__(self, folder: Path, kept: Path) -> None:
        compiler = shutil.which("cc")
        if sys.platform != "linux" or compiler is None:
            pytest.skip("writes are counted by a library for Linux that cc has to compile")
        library, self._control = kept / "full_disk.so", kept / "full_disk"
        command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, SOURCE, "-ldl"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            pytest.skip(f"cc cannot compile for this system: {built.stderr[:200]}")
        self.folder = folder.resolve()
        self.empty()
        self.environment = {"LD_PRELOAD": str(library), "FULL_DISK": str(self._control)}

    def full_at(self, n: int, number: int = errno.ENOSPC) -> None:
        """Begin to count again; the n-th write is refused with the error ``number``."""
        content = struct.pack(_FORMAT, 0, n, number, os.fsencode(self.folder))
        with self._control.open("r+b" if self._control.exists() else "w+b") as file:
            file.write(content)

    def empty(self) -> None:
        """Count, and refuse nothing."""
        self.full_at(NEVER)

    @property
    def count(self) -> int:
        """Writes since it began to count."""
        with self._control.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            return int(struct.unpack_from("q", content)[0])
