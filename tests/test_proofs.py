"""``archbench doctor --prove``: what a device computes is held to what is expected of it, a proof at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from archbench.errors import StorageError, UsageError
from archbench.proof.day import LIMIT, PROOFS, Proof, chosen, conduct, estimated
from archbench.proof.statements import COMPUTES, ProofOutcome, Proved, judged, noted
from archbench.report.contents import read
from command_line import archbench
from forked_children import forked_children
from installations import RunCLI

BROKEN = Proof("broken", "it cannot begin", "os:getcwd", 1.0)
MISSING = Proof("missing", "it is not there", "archbench.proof.nowhere:nothing", 1.0)


def test_the_day_fits_into_25_minutes_and_each_proof_into_its_limit() -> None:
    assert estimated(PROOFS) <= 25 * 60
    assert max(proof.seconds for proof in PROOFS) <= LIMIT <= 600


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (("--proof", "device"), "--proof"),
        (("--prove", "out", "--proof", "nothing"), "--proof nothing"),
        (("--prove", "out", "--proof", "kernels"), "--proof kernels"),
    ],
)
def test_proofs_that_cannot_be_asked_for(options: tuple[str, ...], culprit: str, tmp_path: Path) -> None:
    done = archbench("doctor", "--device", "cpu", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert culprit in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_proof_that_breaks_off_fails_alone_and_is_repeated_where_others_are_kept(tmp_path: Path) -> None:
    begun: list[str] = []

    def again(*proofs: Proof) -> ProofOutcome:
        with forked_children():
            return conduct(tmp_path, "cpu", proofs, command="", begun=lambda proof: begun.append(proof.name))

    for _ in range(2):
        outcome = again(BROKEN, MISSING)
        assert outcome.count("fails") == 2
    assert begun == ["broken", "missing"] * 2
    ended = {proof.name: proof.ended for proof in outcome.proofs}
    assert "TypeError" in str(ended["broken"])
    assert "nowhere" in str(ended["missing"])

    whole = Proved(name="broken", about="", statements=(noted("it", 1),), seconds=1.0)
    (tmp_path / "proofs" / "broken.json").write_text(json.dumps(whole.model_dump()))
    assert again(BROKEN).count("fails") == 0
    assert len(begun) == 4, "what came to its end is kept"

    plan = tmp_path / ProofOutcome.plan_file
    plan.write_text(plan.read_text().replace(torch.__version__, "1.0"))
    with pytest.raises(StorageError, match="proof-plan"):
        again(BROKEN)


def test_proofs_of_other_devices_do_not_mix(tmp_path: Path) -> None:
    conduct(tmp_path, "cpu", (), command="archbench", begun=print)
    with pytest.raises(UsageError, match="cpu"):
        conduct(tmp_path, "cuda:0", (), command="archbench", begun=print)


@pytest.mark.parametrize("computes", [True, False])
def test_the_page_says_what_fails_and_that_all_is_void_where_nothing_computes(computes: bool, tmp_path: Path) -> None:
    statements = (
        judged("it computes", computes, "1", 0, COMPUTES),
        judged("it is exact", False, "≤ 1", 2),
        judged("it is fast", True, "≥ 1", 2),
        noted("its version", "13", key="fact"),
    )
    machine = {"device_name": "NVIDIA H100"}
    common = {"format": 1, "archbench_version": "0", "git_revision": None, "command": "", "finished": "2026-11-29"}
    proved = Proved(name="device", about="that it computes", statements=statements, seconds=3.0)
    ProofOutcome(**common, machine=machine, device="cuda:0", void=not computes, proofs=(proved,)).write(tmp_path, [])

    (page,) = read([str(tmp_path)])
    assert page.verdict is not None
    verdicts = [row[-1].text for row in page.tables[0].rows]
    if computes:
        assert verdicts == ["holds", "fails", "holds", "noted"]
        assert "2 statements of 3" in page.verdict.headline
        assert "NVIDIA H100" in page.verdict.headline
    else:
        assert verdicts == ["fails", "void", "void", "noted"]
        assert page.verdict.headline.startswith("Void")


@pytest.mark.slow
def test_a_cpu_passes_what_means_something_there(cli: RunCLI, tmp_path: Path) -> None:
    names = ("device", "models", "decoding", "resuming")
    done = cli("doctor", "--device", "cpu", "--prove", tmp_path / "out", *(f"--proof={name}" for name in names))
    outcome = ProofOutcome.read(tmp_path / "out")
    failing = [one.what for proof in outcome.proofs for one in proof.statements if one.verdict == "fails"]
    assert set(failing) <= {"nobody else uses it"}, done.stderr
    assert done.returncode == (9 if failing else 0)
    assert {proof.name: proof.ended for proof in outcome.proofs} == dict.fromkeys(names)
    assert chosen((), gpu=False)[0].name == "device"


@pytest.mark.gpu
@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof.name)
def test_a_gpu_holds_what_is_expected(proof: Proof, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    outcome = conduct(tmp_path, "cuda:0", (proof,), command="pytest", begun=print)
    assert not outcome.void
    found = {one.what: one.found for one in outcome.proofs[0].statements if one.verdict == "fails"}
    assert (found, outcome.proofs[0].ended) == ({}, None)
