"""Tables of what a device was shown to do: each statement with what was expected and found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archbench.presentation.quantities import counted, duration
from archbench.presentation.tables import Column, Table, table
from archbench.proof.statements import ProofOutcome
from archbench.report.conclusions import Conclusions
from archbench.report.kernel_tables import kernel_tables

VOID = "void"

FEW = 5
"""Failing statements that the conclusions name."""

MEANING = (
    ("holds", "what was found keeps the bound"),
    ("fails", "it does not, or the proof broke off"),
    ("noted", "a fact without a bound"),
    ("not run", "it cannot be tested here; the reason stands beside it"),
    (VOID, "the device computes nothing, so what was found means nothing"),
)


def device_of(outcome: ProofOutcome) -> str:
    """Its name: of the GPU, or of the CPU."""
    return str(outcome.machine.get("device_name") or outcome.machine.get("cpu") or outcome.device)


def proof_page(outcome: ProofOutcome, folder: Path) -> tuple[str, str, Conclusions, tuple[Table, ...]]:
    """Title, subtitle, conclusions and tables, also of the kernels that were timed for it.

    Raises:
        StorageError: the rows in its folder are damaged.
    """
    from archbench.results.reading import read_results

    timed = not outcome.void and any(folder.glob("*.parquet"))
    kernels = kernel_tables(read_results([str(folder)]).query("phase == 'kernel'")) if timed else []
    proofs = counted(len(outcome.proofs), "proof")
    return (
        f"Proofs on {device_of(outcome)}",
        f"{proofs} · {outcome.device} · {outcome.finished:%Y-%m-%d}",
        proof_conclusions(outcome),
        (proof_table(outcome), time_table(outcome), *kernels),
    )


def proof_table(outcome: ProofOutcome) -> Table:
    """One row a statement, in the order of the proofs."""
    columns = (
        Column("proof", "name"), Column("statement", "text"), Column("expected", "text", priority=1),
        Column("found", "text"), Column("verdict", "verdict"),
    )  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for proof in outcome.proofs:
        for one in proof.statements:
            verdict: str = VOID if outcome.void and one.verdict != "not run" and not one.key else one.verdict
            rows.append((proof.name, one.what, one.expected, one.found, verdict))
        if proof.ended is not None:
            verdict = VOID if outcome.void else "fails"
            rows.append((proof.name, "it comes to its end", "yes", f"no: {proof.ended}", verdict))
    return table("proof", "Expected and found", columns, rows, grouped=1)


def time_table(outcome: ProofOutcome) -> Table:
    """How long each proof took."""
    columns = Column("proof", "name"), Column("what it shows", "text"), Column("time", unit="s", show=duration)
    rows = [(proof.name, proof.about, proof.seconds) for proof in outcome.proofs]
    return table("proof-times", "Proofs", columns, rows)


def proof_conclusions(outcome: ProofOutcome) -> Conclusions:
    """The headline counts verdicts; what the proofs do not show is said."""
    verdicts = {one.verdict for proof in outcome.proofs for one in proof.statements}
    if outcome.void:
        headline = "Void: this device computes nothing, so no value and no time found on it means anything."
        verdicts.add("void")  # type: ignore[arg-type]
    else:
        holds, fails = outcome.count("holds"), outcome.count("fails")
        headline = f"{counted(holds, 'statement')} of {holds + fails} hold on {device_of(outcome)}."
    skipped = outcome.count("not run")
    details = f"{counted(outcome.count('noted'), 'fact')} noted, {counted(skipped, 'statement')} not tested here."
    if not outcome.void and (failing := [one.what for proof in outcome.proofs for one in proof.failing]):
        others = f" and {len(failing) - FEW} others" if len(failing) > FEW else ""
        details = f"Failing: {'; '.join(failing[:FEW])}{others}. {details}"
    return Conclusions(
        headline=headline,
        details=details,
        matched=("Each proof ran in a process of its own, one after the other, with nothing of ours beside it.",),
        limits=(
            "Other devices, drivers and versions: what holds here need not hold there.",
            "Quality: nothing is trained to its end.",
        ),
        meanings=tuple((verdict, meaning) for verdict, meaning in MEANING if verdict in verdicts),
    )
