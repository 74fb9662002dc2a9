"""What numbers rest on: how many runs and samples, whether other work disturbed them, and which checks came first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from archbench.presentation.quantities import counted, quantity
from archbench.results.schema import UNCHECKED

if TYPE_CHECKING:
    import pandas as pd

    from archbench.presentation.tables import Table

_CONFIRM = ("confirm",)
_SPEED = ("train", "prefill", "decode")
_RESTS_ON: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "verdict": (("quality",), _CONFIRM),
    "difference": (("quality",), _CONFIRM),
    **dict.fromkeys(("runs", "summary", "reference", "differences", "history"), (("quality", *_SPEED), ())),
    **dict.fromkeys(("limits", "memory", "samples"), (_SPEED, ())),
    "sizes": (("train",), _CONFIRM),
    **dict.fromkeys(("costs", "matrix"), (_SPEED, ("timing",))),
    "pareto": (("quality", *_SPEED), ("confirm", "timing")),
    "loss": (("train",), _CONFIRM),
    "validation": (("train",), _CONFIRM),
    "context": (("prefill", "decode"), ("cost",)),
    "position": (("positions",), _CONFIRM),
    **dict.fromkeys(("learning-rate", "tuning"), (("quality",), ("trial",))),
    "probes": (("probe",), ()),
    "probe-state": (("probe",), ()),
    "scores": (("probe",), ()),
    **dict.fromkeys(("serving", "throughput", "latencies"), (("serve",), ())),
    "evaluations": (("eval",), ()),
    **dict.fromkeys(("kernels", "attention"), (("kernel",), ())),
    "losses": (("quality", "kernel"), _CONFIRM),  # of a ladder, or of kernels
    **dict.fromkeys(("laws", "forecasts", "size", "tokens", "compute"), (("quality",), _CONFIRM)),
}
"""Key of a table or figure -> phases and roles of the rows that it shows."""

TIMES = ("step_seconds", "seconds_to_first_token", "seconds_per_token", "forward_seconds", "backward_seconds")
"""Metrics whose rows of one case are repeats of the same work."""

_CASES = ["run_id", "metric", "batch_size", "prompt_length", "context_length", "attention", "operation"]
_NEEDED = [*_CASES, "name", "role", "contaminated", "conformance", "device_name", "host", "driver"]


def basis_of(key: str, rows: pd.DataFrame) -> tuple[str, ...]:
    """What the numbers of a table or figure rest on; nothing for one whose rows are not here.

    Args:
        rows: tidy rows with the column ``name``, null for kernels.
    """
    if key not in _RESTS_ON:
        return ()
    phases, roles = _RESTS_ON[key]
    shown = rows.phase.isin(phases) & rows.value.notna() & ~rows.metric.str.startswith("audit_")
    own = rows.loc[shown, _NEEDED]
    return basis(own[own.role.isin(roles)] if roles and own.role.isin(roles).any() else own)


def resting(made: Sequence[Table | None], rows: pd.DataFrame) -> tuple[Table, ...]:
    """The tables that there are, each with what its numbers rest on among its notes."""
    return tuple(replace(one, notes=(*one.notes, *basis_of(one.key, rows))) for one in made if one is not None)


def basis(rows: pd.DataFrame) -> tuple[str, ...]:
    """Sentences: number of runs and samples, disturbance, several machines, conformance."""
    if rows.empty:
        return ()
    sentences = [_samples(rows), _disturbed(rows)]
    if (mixed := several_machines(rows)) is not None:
        sentences.append(mixed)
    if rows["name"].notna().any():
        sentences.append(conformance(rows))
    return tuple(sentences)


def _samples(rows: pd.DataFrame) -> str:
    runs = rows.groupby("name").run_id.nunique()
    if runs.empty:
        text = f"From {counted(rows.run_id.nunique(), 'run')}"
    elif runs.nunique() == 1:
        text = f"From {counted(int(runs.iloc[0]), 'run')}{' of each' if len(runs) > 1 else ''}"
    else:
        text = f"Number of runs: {', '.join(f'{name} {number}' for name, number in runs.items())}"
    sizes = rows[rows.metric.isin(TIMES)].groupby(_CASES, dropna=False).size()
    if len(sizes):
        low, high = int(sizes.min()), int(sizes.max())
        text += f", with {low if low == high else f'{low} to {high}'} samples of each time"
    return f"{text}."


def _disturbed(rows: pd.DataFrame) -> str:
    known = rows[rows.contaminated.notna()]
    if known.empty:
        return "Whether other work disturbed the machine was not recorded."
    by_run = known.groupby("run_id").contaminated.any()
    number = int(by_run.sum())
    if not number:
        return "No other work was detected on the machine."
    runs = "every run" if number == len(by_run) else f"{number} of {len(by_run)} runs"
    return f"Contaminated: other work (a study's own, if it measures several runs at a time) disturbed {runs}."


MACHINE = ["device_name", "host", "driver"]
"""Columns that say where a row was measured."""


def several_machines(rows: pd.DataFrame) -> str | None:
    """Which devices these rows are of, on how many hosts and with which drivers; None if they are of one machine.

    Hosts are counted and not named: a page may be published. Rows of earlier versions say neither host nor driver.
    """
    machines = rows[MACHINE].drop_duplicates()
    named = []
    for device, own in machines.groupby("device_name"):
        hosts, drivers = own.host.nunique(), sorted(map(str, own.driver.dropna().unique()))
        on = f" on {hosts} hosts" if hosts > 1 else ""
        named.append(f"{device}{on}" + (f" with drivers {' and '.join(drivers)}" if len(drivers) > 1 else ""))
    hosts = machines.host.nunique()
    if len(named) <= 1 and hosts <= 1 and machines.driver.nunique() <= 1:
        return None
    where = f"{hosts} machines" if hosts > 1 else "several devices or drivers"
    return f"Measured on {where}: {', '.join(named)}. Speed and memory do not compare across them."


def conformance(rows: pd.DataFrame) -> str:
    """Which conformance checks the architectures of these rows passed."""
    sentences = []
    by_name = rows[rows["name"].notna()].fillna({"conformance": ""}).groupby("name").conformance.unique()
    found: dict[str, list[str]] = {}
    for name, levels in by_name.items():
        for level in levels:
            found.setdefault(str(level), []).append(str(name))
    for level, names in found.items():
        who = "all" if len(names) == len(by_name) else ", ".join(names)
        if not level:
            sentences.append(f"conformance is not known ({who})")
        elif level == UNCHECKED:
            sentences.append(f"the conformance checks were left out ({who})")
        elif level.isdecimal():
            sentences.append(f"the conformance checks of level {level} were passed ({who})")
        else:
            sentences.append(f"conformance checks {level} ({who})")
    text = "; ".join(sentences)
    return f"{text[:1].upper()}{text[1:]}."


def phases_disturbed(rows: pd.DataFrame) -> Sequence[str]:
    """Phases of these rows that other work disturbed."""
    disturbed = rows.phase[rows.contaminated.eq(True).fillna(False)]
    return [str(phase) for phase in disturbed.unique() if phase != "environment"]


def energy_note(frame: pd.DataFrame) -> Iterator[str]:
    """What joules hold, and the power at idle; nothing where there are none."""
    if frame.value[frame.metric == "joules_per_token"].notna().any():
        idle = frame.value[frame.metric == "idle_watts"].dropna()
        draws = "" if idle.empty else f"; idle, before the run, that was {quantity(float(idle.iloc[0]), 'W')}"
        yield f"Energy: of the whole device, for all that it did meanwhile{draws}."
