"""``archbench doctor --prove``: what a device computes and how fast, held to what is expected of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from archbench.cli.output import print_json
from archbench.errors import ConformanceError, DeviceError
from archbench.presentation.live_view import log
from archbench.presentation.quantities import duration
from archbench.presentation.terminal import echo, show


def prove(out: Path, device: str, names: Sequence[str], *, command: str, json: bool) -> None:
    """Conduct the proofs and print the table.

    Raises:
        DeviceError: the device computes nothing, so all is void.
        ConformanceError: a statement fails.
        UsageError, StorageError: as :func:`archbench.proof.day.conduct`.
    """
    from archbench.proof.day import LIMIT, Proof, chosen, conduct, estimated
    from archbench.report.proof_tables import proof_conclusions, proof_table, time_table

    proofs = chosen(names, gpu=device.startswith("cuda"))
    on_gpu = f", about {duration(estimated(proofs))} on an H100 (a guess)" if device.startswith("cuda") else ""
    log(f"{len(proofs)} proofs on {device}{on_gpu}, at most {duration(LIMIT)} each", sys.stderr)

    def begun(proof: Proof) -> None:
        log(f"{proof.name}: {proof.about}", sys.stderr)

    outcome = conduct(out, device, proofs, command=command, begun=begun)
    if json:
        print_json(outcome.as_json())
    else:
        show(time_table(outcome))
        show(proof_table(outcome))
        said = proof_conclusions(outcome)
        echo(f"{said.headline} {said.details}")
        echo(f"A page of it: archbench report {out}")
    if outcome.void:
        step = "Check the driver and the installation of torch, then prove again into another folder"
        raise DeviceError(device, "it computes nothing: a product of 2 × 3 numbers is wrong", step)
    if failing := outcome.count("fails"):
        count = f"{failing} statement{'s' * (failing > 1)} of {failing + outcome.count('holds')}"
        step = f"See the lines that fail, above and in {out / outcome.file}"
        raise ConformanceError(device, f"{count} fail" + "s" * (failing == 1), step)
