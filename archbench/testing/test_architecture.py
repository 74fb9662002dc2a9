"""What ``pytest --pyargs archbench.testing --archbench-arch NAME`` runs: the suite on any architecture."""

from __future__ import annotations

import pytest

from archbench.errors import UsageError
from archbench.testing.evaluation import parsed_expectations
from archbench.testing.suite import ArchitectureChecks, Examination


class TestArchitecture(ArchitectureChecks):
    """Every check for each architecture named on the command line."""

    @classmethod
    def examinations(cls, config: pytest.Config) -> dict[str, Examination]:
        names: list[str] = config.getoption("archbench_arch")
        if not names:
            raise UsageError("--archbench-arch", "it is missing", "Name an architecture that archbench list shows")
        option = "--archbench-xfail"
        return {
            f"{name}-": Examination(
                name,
                plugins=config.getoption("archbench_plugin"),
                preset=config.getoption("archbench_preset") or "nano",
                expected_failures=parsed_expectations(config.getoption("archbench_xfail"), option),
                culprit=option,
            )
            for name in names
        }
