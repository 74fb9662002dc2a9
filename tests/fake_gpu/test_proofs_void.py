"""The proofs of a GPU run to their end where nothing is computed, and no figure of theirs is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from archbench.proof.day import Proof, chosen, conduct
from archbench.report.contents import read

SHORT = ("device", "attention", "resuming", "autotuning")


def _begun(proof: Proof) -> None:
    print(proof.name)


@pytest.mark.slow
@pytest.mark.parametrize("names", [SHORT, ()], ids=["short", "all"])
def test_every_proof_is_begun_and_all_is_void(names: tuple[str, ...], tmp_path: Path) -> None:
    proofs = chosen(names, gpu=True)
    outcome = conduct(tmp_path, "cuda:0", proofs, command="archbench doctor", begun=_begun)
    assert outcome.void
    assert [proof.name for proof in outcome.proofs] == [proof.name for proof in proofs]
    assert all(proof.statements for proof in outcome.proofs if proof.name in SHORT), "none breaks off at once"
    (page,) = read([str(tmp_path)])
    facts = {row[1].text for row in page.tables[0].rows if row[-1].text == "noted"}
    assert not [fact for fact in facts if "product" in fact or "bandwidth" in fact]
    assert {row[-1].text for row in page.tables[0].rows} <= {"noted", "void", "fails", "not run"}
