"""The JSON Schemas of all outcomes. ``python -m archbench.study.json_schema docs/schema`` writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from archbench.study.comparison_outcome import ComparisonOutcome, TuningOutcome
from archbench.study.outcome import Outcome
from archbench.study.probe_outcome import ProbeOutcome
from archbench.study.scale_outcome import ScaleOutcome

OUTCOMES: tuple[type[Outcome], ...] = (ComparisonOutcome, TuningOutcome, ProbeOutcome, ScaleOutcome)


def schemas() -> dict[str, str]:
    """File name of each outcome -> its JSON Schema."""
    return {
        kind.file: json.dumps(kind.model_json_schema(mode="serialization"), indent=1, ensure_ascii=False) + "\n"
        for kind in OUTCOMES
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in schemas().items():
        (folder / name).write_text(text, encoding="utf-8")
