"""The fused kernels run by Triton's interpreter on the CPU: an own pytest run, because the variable counts at import.

    TRITON_INTERPRET=1 pytest tests/interpreted                    # all of it, some minutes
    TRITON_INTERPRET=1 pytest tests/interpreted -m matrix          # proof 1: values and gradients against float64
    TRITON_INTERPRET=1 pytest tests/interpreted -m mutants         # proof 2: it kills wrong kernels; -rP says where
    TRITON_INTERPRET=1 pytest tests/interpreted -m memory_safety   # proof 3: what is read and written, and how often

Proofs 1 and 3 look at the same executions, in the same tests. Without the variable every file of this folder is one
visible skip, and Triton is not imported. With ``-n 2`` they take half the time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class NotInterpreted(pytest.Module):
    """A file of this folder in a run without the interpreter: skipped before it is imported."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip(
            f"needs Triton's interpreter: TRITON_INTERPRET=1 pytest {self.path.relative_to(self.config.rootpath)}",
            allow_module_level=True,
        )


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if INTERPRETED else NotInterpreted.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True, scope="session")
def _corrected_interpreter() -> Iterator[None]:
    from interpreter_corrections import bfloat16_corrected, patched_once, scalars_converted

    with bfloat16_corrected(), scalars_converted(), patched_once():
        yield
