"""The JSON Schemas of all outcomes. ``python -m archbench.study.json_schema docs/schema`` writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from archbench.files.outputs import Output, check_outputs, write_output
from archbench.study.comparison_outcome import ComparisonOutcome, TuningOutcome
from archbench.study.outcome import Outcome
from archbench.study.probe_outcome import ProbeOutcome
from archbench.study.scale_outcome import ScaleOutcome

OUTCOMES: tuple[type[Outcome], ...] = (ComparisonOutcome, TuningOutcome, ProbeOutcome, ScaleOutcome)

_ELSEWHERE = "another folder: outcomes themselves have these names"


def schemas() -> dict[str, str]:
    """File name of each outcome -> its JSON Schema."""
    return {
        kind.file: json.dumps(kind.model_json_schema(mode="serialization"), indent=1, ensure_ascii=False) + "\n"
        for kind in OUTCOMES
    }


if __name__ == "__main__":
    outputs = {Output(Path(sys.argv[1], name), "JSON Schema", "", _ELSEWHERE): text for name, text in schemas().items()}
    check_outputs(list(outputs))
    for output, text in outputs.items():
        write_output(output, text.encode())
