"""The conformance suite: checks that an architecture is what a fair comparison assumes.

From the command line ``archbench check NAME``; in a plugin's own tests::

    from archbench.testing import ArchitectureChecks

    class TestMyArch(ArchitectureChecks):
        architecture = "my-arch"

or without a line of code: ``pytest --pyargs archbench.testing --archbench-arch my-arch``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archbench.testing.suite import ArchitectureChecks as ArchitectureChecks

__all__ = ["ArchitectureChecks"]


def __getattr__(name: str) -> Any:
    if name != "ArchitectureChecks":
        raise AttributeError(f"module 'archbench.testing' has no attribute {name!r}")
    from archbench.testing.suite import ArchitectureChecks

    return ArchitectureChecks
