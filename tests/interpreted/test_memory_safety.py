"""In every case the fused kernels read only elements of tensors, and write each one of an output once and no other."""

from __future__ import annotations

import pytest
from attention_cases import CASES, Case
from examination import MEMORY, findings

pytestmark = pytest.mark.memory_safety


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_access_is_to_a_tensor_and_every_output_is_written_once(case: Case) -> None:
    assert [finding.text for finding in findings(case) if finding.proof == MEMORY] == []
