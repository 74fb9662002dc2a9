"""The documented JSON Schemas are those of the outcome models, which read and write every committed outcome."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archbench.study.json_schema import OUTCOMES, schemas

ROOT = Path(__file__).parents[1]
MODELS = {kind.file: kind for kind in OUTCOMES}
COMMITTED = sorted(file for name in MODELS for file in (ROOT / "results" / "reference").rglob(name))


def test_the_documented_schemas_are_those_of_the_models() -> None:
    for name, text in schemas().items():
        assert (ROOT / "docs" / "schema" / name).read_text(encoding="utf-8") == text, (
            "Write them anew: python -m archbench.study.json_schema docs/schema"
        )


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_committed_outcome_is_read_and_written_again_with_equal_content(file: Path) -> None:
    assert MODELS[file.name].read(file.parent).as_json() == json.loads(file.read_text(encoding="utf-8"))
