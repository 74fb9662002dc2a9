"""docs/explanation/gpu-counts.md shows the committed counts."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_of_the_committed_counts() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "gpu_counts.py"))
    counts = json.loads((ROOT / "benchmarks" / "gpu_counts.json").read_text())
    tables = [
        script["table_of_decoding"](counts["decoding"]),
        script["table_of_training"](counts["training_before"], counts["training"]),
    ]
    page = (ROOT / "docs" / "explanation" / "gpu-counts.md").read_text()
    for table in tables:
        assert "\n".join(table) in page, "DIR/run python benchmarks/gpu_counts.py prints it"
