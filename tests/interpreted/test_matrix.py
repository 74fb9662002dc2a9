"""The fused kernels are attention: out, log-sum-exp and gradients, with every pair of the factors that could matter."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from attention_cases import CASES, FACTORS, ROWS, Case
from examination import VALUES, findings

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_the_definition(case: Case) -> None:
    assert [finding.text for finding in findings(case) if finding.proof == VALUES] == []


def test_every_pair_of_values_is_tried() -> None:
    for (first, one), (second, two) in combinations(enumerate(FACTORS), 2):
        tried = {(row[first], row[second]) for row in ROWS}
        assert tried == set(product(FACTORS[one], FACTORS[two])), (one, two)
