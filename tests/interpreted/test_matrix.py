"""The fused kernels are attention, and touch no other memory, with every pair of the factors that could matter."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from attention_cases import CASES, DROPOUT_CASES, FACTORS, PERSISTENT_CASES, ROWS, Case
from examination import examine

from archbench.kernels.fused import launches

pytestmark = pytest.mark.matrix


@pytest.mark.memory_safety
@pytest.mark.parametrize("case", [*CASES, *DROPOUT_CASES, *PERSISTENT_CASES], ids=str)
def test_values_and_gradients_are_the_definitions_and_every_access_is_to_a_tensor(case: Case) -> None:
    """Out, log-sum-exp and gradients; each element of an output is written once, and no other."""
    assert list(examine(case, launches)) == []


def test_every_pair_of_values_is_tried() -> None:
    for (first, one), (second, two) in combinations(enumerate(FACTORS), 2):
        tried = {(row[first], row[second]) for row in ROWS}
        assert tried == set(product(FACTORS[one], FACTORS[two])), (one, two)
