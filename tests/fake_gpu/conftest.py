"""CUDA paths on a GPU that is not there: torch's CUDA build over libraries that count calls and compute nothing.

    DIR/run pytest tests/fake_gpu -m ''      # DIR: such a build, with archbench and its test tools installed

No value and no time from it means anything. What does: which kernels, products, copies and synchronisations the host
asks for, which backend torch picks, and that no call fails. Elsewhere each file of this folder is one visible skip.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest


def _is_fake() -> bool:
    try:
        return hasattr(ctypes.CDLL("libcudart.so.13"), "fc_reset")
    except OSError:
        return False


FAKE = _is_fake()


class NoFakeGPU(pytest.Module):
    """A file of this folder in a run without the counting libraries: skipped before it is imported."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip("needs torch's CUDA build over libraries that count (tests/fake_gpu)", allow_module_level=True)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if FAKE else NoFakeGPU.from_parent(parent, path=module_path)
