"""One proof after the other, each in a process of its own with a limit; what ended is not repeated."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.child.process import Child, LostError
from archbench.errors import ArchbenchError, StorageError, UsageError
from archbench.files.loader import read_json, read_model
from archbench.files.seal import sealed
from archbench.files.writing import write_text
from archbench.proof.statements import COMPUTES, Bench, ProofOutcome, Proved, Statement
from archbench.results.store import prepare_folder
from archbench.study.outcome import heading

if TYPE_CHECKING:
    from archbench.child.entry import Parent

LIMIT = 600.0
"""Seconds of one proof."""

PARTS = "proofs"
"""Folder of the finished proofs, a file each."""


@dataclass(frozen=True)
class Proof:
    """One part of the day.

    Attributes:
        about: what it shows.
        place: ``module:function``, in this package if it begins with a dot; ``function(bench)`` yields its statements.
        seconds: about, on an H100: a guess, until one has run it.
        cpu: whether it means something without a GPU.
    """

    name: str
    about: str
    place: str
    seconds: float
    cpu: bool = True


PROOFS: tuple[Proof, ...] = (
    Proof("device", "versions, clocks, peaks; that it computes at all", ".device_facts:facts", 40),
    Proof("attention", "the fused kernel against float64, on silicon", ".attention_matrix:matrix", 150, cpu=False),
    Proof("models", "whole models: loss and gradients by each attention", ".whole_models:agreement", 90),
    Proof("decoding", "cached and captured decoding against full passes", ".decoded_tokens:tokens", 120),
    Proof("updates", "updates from captured graphs against eager ones", ".captured_updates:updates", 20),
    Proof("resuming", "a broken run goes on with the same losses", ".continued_training:resumed", 35),
    Proof("float16", "scaled losses train as float32's do", ".continued_training:scaled", 30, cpu=False),
    Proof("float8", "products of 8-bit floats: values, a loss curve, times", ".float8_products:float8", 40, cpu=False),
    Proof("checks", "the conformance checks of every built-in", ".gate_of_all:checks", 300),
    Proof("kernels", "attention and loss kernels against torch's", ".kernel_race:kernels", 240, cpu=False),
    Proof("gpt1", "the published GPT-1: training and decoding", ".gpt1_race:speeds", 160, cpu=False),
    Proof("peers", "the same GPT-1 by transformers, in turns", ".gpt1_race:peers", 90, cpu=False),
    Proof("sanitizer", "a training step under compute-sanitizer", ".sanitized_step:sanitized", 120, cpu=False),
    Proof("autotuning", "what was timed once is not timed again", ".autotuned_twice:autotuned", 60, cpu=False),
)
"""In the order in which a finding would spoil those that follow."""


def estimated(proofs: Sequence[Proof]) -> float:
    """Seconds on an H100; see :attr:`Proof.seconds`."""
    return sum(proof.seconds for proof in proofs)


def chosen(names: Sequence[str], *, gpu: bool) -> tuple[Proof, ...]:
    """The proofs of these names, or all; without a GPU, those that mean something there. The first is always one.

    Raises:
        UsageError: there is no such proof, or it needs a GPU.
    """
    known = {proof.name: proof for proof in PROOFS}
    for name in names:
        if name not in known:
            raise UsageError(f"--proof {name}", "there is no such proof", f"Use one of {', '.join(known)}")
        if not (gpu or known[name].cpu):
            raise UsageError(f"--proof {name}", "it needs a GPU", "Leave it out, or name one with --device")
    wanted = {PROOFS[0].name, *names} if names else known
    return tuple(one for one in PROOFS if one.name in wanted and (gpu or one.cpu))


def conduct(
    out: Path, device: str, proofs: Sequence[Proof], *, command: str, begun: Callable[[Proof], None]
) -> ProofOutcome:
    """Prove one after the other; those that an earlier call brought to their end are kept.

    Args:
        device: ``cpu`` or ``cuda:N``.
        command: what the user typed.
        begun: called before each.

    Returns:
        Of all proofs in the folder, those of earlier calls too.

    Raises:
        UsageError: the folder holds proofs of other versions or another device.
        StorageError: the folder cannot be written, or a file in it is damaged.
    """
    from archbench.measure.machine import describe, versions

    prepare_folder(str(out))
    now, machine = versions(), describe(device)
    _see_plan(out, {"device": device, "device_name": machine.get("device_name"), **now})
    for proof in proofs:
        kept = _kept(out, proof)
        if kept is None or kept.ended is not None:
            begun(proof)
            _write(_file(out, proof), _proved(proof, device, out).model_dump(mode="json"))
    proved = [kept for proof in dict.fromkeys((*PROOFS, *proofs)) if (kept := _kept(out, proof))]
    computes = next((one for part in proved for one in part.statements if one.key == COMPUTES), None)
    outcome = ProofOutcome(
        **heading(ProofOutcome, command, now),
        machine=machine,
        device=device,
        void=computes is not None and computes.verdict == "fails",
        proofs=tuple(proved),
    )
    outcome.write(out, [])
    return outcome


def _file(out: Path, proof: Proof) -> Path:
    return out / PARTS / f"{proof.name}.json"


def _kept(out: Path, proof: Proof) -> Proved | None:
    """What an earlier call found; None if it did not run."""
    file = _file(out, proof)
    return read_model(Proved, file, next_step="Delete it to prove it again") if file.exists() else None


def _see_plan(out: Path, plan: dict[str, Any]) -> None:
    file = out / ProofOutcome.plan_file
    if not file.exists():
        _write(file, plan)
        return
    found = read_json(file, next_step=f"Name another folder than {out}", sealing="required")
    for name, value in plan.items():
        was = found.get(name) if isinstance(found, dict) else None
        if was != value:
            cause = f"its proofs are of {name} {was}, and this is {value}"
            raise UsageError(f"--prove {out}", cause, "Name another folder")


def _proved(proof: Proof, device: str, out: Path) -> Proved:
    """Run it in a child; what broke off keeps the statements that it had made."""
    statements: list[Statement] = []
    start, ended = time.monotonic(), None
    request = {"place": proof.place, "device": device, "out": str(out)}
    try:
        with Child(__name__, request, culprit=f"proof {proof.name}", traced=True) as child:
            while (message := child.receive(max(0.0, LIMIT - (time.monotonic() - start)))) is not None:
                statements.append(Statement(**message))
    except LostError as lost:
        ended = f"it took longer than {LIMIT:g} s" if lost.code is None else f"its process {lost}"
    except StorageError:
        raise
    except ArchbenchError as error:
        ended = f"{error.culprit}: {error.cause}"
    seconds = time.monotonic() - start
    return Proved(name=proof.name, about=proof.about, statements=tuple(statements), seconds=seconds, ended=ended)


def _write(file: Path, content: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, sealed(content, indent=1))
    except OSError as error:
        raise StorageError(str(file), f"it cannot be written ({error.strerror})", "Make room, and repeat") from error


def main(parent: Parent, request: dict[str, Any]) -> None:
    """In the child: send each statement as it is judged, and None at the end."""
    from archbench.runs.device import resolve_device

    module, function = request["place"].split(":")
    prove = getattr(importlib.import_module(module, __package__), function)
    for statement in prove(Bench(resolve_device(request["device"]), Path(request["out"]))):
        parent.send(statement.model_dump(mode="json"))
    parent.send(None)
