"""The committed comparison of all built-in architectures: its files agree with each other and with what README says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from archbench import available

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results" / "reference" / "compare-nano"
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "comparison.json").read_text())
    return found


def test_every_built_in_architecture_took_part_by_the_command_that_the_readme_gives(outcome: dict[str, Any]) -> None:
    built_in = {entry.name for entry in available() if entry.package == "archbench"}
    assert {row["architecture"] for row in outcome["quality"]} == built_in
    assert outcome["command"] in README
    assert not outcome["git_revision"].endswith("-dirty")


def test_the_table_in_the_readme_is_that_of_the_outcome(outcome: dict[str, Any]) -> None:
    table = {
        cells[0].strip(" `"): cells for line in README.splitlines() if len(cells := line.strip("| ").split("|")) == 8
    }
    for row in outcome["quality"]:
        _, verdict, bits, difference, interval, *_ = (cell.strip(" `*") for cell in table[row["architecture"]])
        assert verdict == row["verdict"]
        assert bits == f"{row['bits_per_byte']:.3f} ± {row['sd']:.3f}"
        if row["difference"] is not None:
            assert _number(difference) == pytest.approx(100 * row["difference"], abs=0.051)
            low, high = interval.split(" to ")
            assert _number(low) == pytest.approx(100 * row["combined_low"], abs=0.051)
            assert _number(high) == pytest.approx(100 * row["combined_high"], abs=0.051)


def _number(text: str) -> float:
    (found,) = re.findall(r"[+−-]?\d+\.\d+", text)
    return float(found.replace("−", "-"))
