"""The matrix kills wrong kernels: for each of them, one of its cases finds a wrong value or access."""

from __future__ import annotations

from pathlib import Path

import pytest
from attention_cases import CASES, DROPOUT_CASES
from examination import examine
from kernel_mutants import MUTANTS, Mutant, copied

pytestmark = [
    pytest.mark.mutants,
    pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning"),  # wrong kernels make such rows
]

CHEAPEST_FIRST = [*DROPOUT_CASES, *sorted(CASES, key=lambda case: case.cost)]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_matrix_kills_the_mutant(mutant: Mutant, tmp_path: Path, record_property: pytest.RecordProperty) -> None:
    with copied(tmp_path, "mutated_kernels", mutant) as launches:
        for case in filter(mutant.shows, CHEAPEST_FIRST):
            finding = next(examine(case, launches), None)
            if finding:
                record_property("killed_by", f"{case}: {finding.text}")
                print(f"{mutant.name}: killed by {case}: {finding.text}")
                return
    pytest.fail(f"{mutant.name}: survives every case of the matrix that it concerns")


def test_the_unmutated_copy_survives(tmp_path: Path) -> None:
    with copied(tmp_path, "unmutated_kernels", None) as launches:
        for case in CHEAPEST_FIRST[: len(DROPOUT_CASES) + 20]:
            assert list(examine(case, launches)) == [], case
