"""CUDA paths on a GPU that is not there: torch's CUDA build over libraries that count calls and compute nothing.

    DIR/run pytest tests/fake_gpu -m ''      # DIR: such a build, with archbench and its test tools installed

No value and no time from it means anything. What does: which kernels, products, copies and synchronisations the host
asks for, which backend torch picks, what a stream capture refuses, and that no call fails. Elsewhere each file of this
folder is one visible skip.

The libraries know no stream capture: pytest starts itself again with stream_capture.c loaded before them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from preloading import is_fake, is_preloaded, preload

FAKE = is_fake()


def pytest_configure(config: pytest.Config) -> None:
    if not FAKE or is_preloaded():
        return
    if "PYTEST_XDIST_WORKER" in os.environ or config.getoption("numprocesses", None):
        raise pytest.UsageError("tests/fake_gpu starts pytest again: run it without -n")
    config.pluginmanager.getplugin("capturemanager").stop_global_capturing()  # gives the terminal back
    preload(["-m", "pytest", *config.invocation_params.args])


class NoFakeGPU(pytest.Module):
    """A file of this folder in a run without the counting libraries: skipped before it is imported."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip("needs torch's CUDA build over libraries that count (tests/fake_gpu)", allow_module_level=True)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if FAKE else NoFakeGPU.from_parent(parent, path=module_path)
