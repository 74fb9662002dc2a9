"""The process, started again with stream capture in front of the libraries that count (stream_capture.c).

DIR/run python tests/fake_gpu/preloading.py -m archbench run gpt1 --device cuda --preset nano …
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("stream_capture.c")


def is_fake() -> bool:
    """Whether CUDA's libraries are those that count and compute nothing."""
    try:
        return hasattr(ctypes.CDLL("libcudart.so.13"), "fc_reset")
    except OSError:
        return False


def is_preloaded() -> bool:
    return hasattr(ctypes.CDLL(None), "capture_get")


def preload(command: list[str]) -> None:
    """Replace this process by Python's ``command``, with the library loaded; children inherit it.

    Raises:
        subprocess.CalledProcessError: the C compiler fails.
    """
    os.environ["LD_PRELOAD"] = f"{_library()} {os.environ.get('LD_PRELOAD', '')}".strip()
    os.execv(sys.executable, [sys.executable, *command])


def _library() -> Path:
    """The compiled library, named after its source's content, so that it is compiled once."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"archbench-stream-capture-{os.getuid()}-{digest}.so"
    if not place.exists():
        made = place.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"], check=True)
        made.replace(place)  # at once: another process may compile it too
    return place


if __name__ == "__main__":
    preload(sys.argv[1:])
