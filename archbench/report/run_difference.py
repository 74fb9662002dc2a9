"""What differs between two runs: configuration, code, machine, and numbers with the noise beside each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from archbench.presentation.quantities import ABSENT, interval, percent, quantity
from archbench.presentation.tables import Cell, Column, Table, table
from archbench.report.basis import TIMES
from archbench.report.kernel_tables import case_name
from archbench.report.run_tables import summarise
from archbench.report.side_by_side import differing, flat, shown

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["larger than noise", "within noise", "noise not known", "equal", "on one side only"]

LEVEL, RESAMPLES, FEWEST = 0.95, 1000, 4
"""Of the bootstrapped interval, which only repeated times have; with fewer samples on a side there is none."""

_CODE = ("archbench_version", "git_revision", "plugin_package", "plugin_version", "wrappers")
_MACHINE = (
    "device_name", "host", "driver", "world_size", "malloc", "products", "torch_version", "triton_version",
    "python_version", "numpy_version", "system", "cpu", "cpus_in_machine", "cpus_usable", "cpu_quota", "cpu_hertz",
    "memory_bytes",
)  # fmt: skip
_CONFIGURATION = (
    "architecture", "preset", "seed", "device", "dtype", "attention", "compile", "threads", "context_length",
    "parameters", "corpus", "tokenizer", "lossless", "conformance", "role",
)  # fmt: skip
_Key = tuple[str, str, str, int | None, int | None]
_ONCE = ("check", "environment")
"""Phases that do not measure the model; nor do the rows of an audit."""


@dataclass(frozen=True)
class Number:
    """One measurement in both runs, in base units; a side is None where it was not measured.

    Attributes:
        a, b: medians, or the last value of what changes with the step.
        samples: of both.
        iqr: lower and upper quartile of both; None with one sample.
        low, high: interval of b / a - 1, bootstrapped from blocks of samples; None with too few of them.
    """

    phase: str
    metric: str
    unit: str
    batch_size: int | None
    prompt_length: int | None
    a: float | None
    b: float | None
    samples: tuple[int, int]
    iqr: tuple[tuple[float, float] | None, tuple[float, float] | None]
    low: float | None
    high: float | None
    verdict: Verdict

    @property
    def change(self) -> float | None:
        """b / a - 1."""
        return self.b / self.a - 1 if self.a and self.b is not None else None


@dataclass(frozen=True)
class Fact:
    """Something else that differs: ``part`` is configuration, code or machine."""

    part: str
    name: str
    a: Any
    b: Any


def facts(rows: tuple[pd.DataFrame, pd.DataFrame], saved: tuple[Mapping[str, Any], Mapping[str, Any]]) -> list[Fact]:
    """What differs but the numbers.

    Args:
        rows: of each run.
        saved: the JSON beside each run; empty where there is none, and then only columns of ``rows`` are compared.
    """
    known = (_known(frame, content, whole=all(saved)) for frame, content in zip(rows, saved, strict=True))
    found = differing(dict(zip("AB", known, strict=True)))
    return [Fact(part, name, values["A"], values["B"]) for (part, name), values in found.items()]


def _known(frame: pd.DataFrame, saved: Mapping[str, Any], *, whole: bool) -> dict[tuple[str, str], Any]:
    known: dict[tuple[str, str], Any] = {}
    for part, names in (("configuration", _CONFIGURATION), ("code", _CODE), ("machine", _MACHINE)):
        for name in names:
            values = sorted(map(str, frame[name].dropna().unique())) if name in frame else []
            known |= {(part, name): ", ".join(values)} if values else {}
    if whole:
        given = flat(saved["run"]) | flat(saved["model"], "model")
        known |= {("configuration", name): str(value) for name, value in given.items()}
        facts = saved["facts"]
        about = {**facts.get("machine", {}), **facts.get("versions", {}), **facts}
        for part, names in (("code", _CODE), ("machine", _MACHINE)):
            known |= {(part, name): str(about[name]) for name in names if about.get(name) is not None}
        known[("configuration", "corpus_sha256")] = facts.get("corpus_sha256")
    return known


def numbers(a: pd.DataFrame, b: pd.DataFrame, *, floor: float = 0.0) -> list[Number]:
    """Every measurement of the two runs.

    Args:
        floor: differences up to this share of the value are noise: what ``archbench doctor`` found on the machine.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    sides = [dict(_measured(frame)) for frame in (a, b)]
    made = []
    for key in dict.fromkeys(key for side in sides for key in side):
        (one, first), (other, second) = (side.get(key, ({}, np.empty(0))) for side in sides)
        low = high = None
        if key[1].partition(" ")[0] in TIMES and min(len(first), len(second)) >= FEWEST:
            low, high = _bounds(first, second, generator)
        a_value, b_value = one.get("median"), other.get("median")
        verdict = _verdict(a_value, b_value, low, high, floor)
        sizes, spreads = (len(first), len(second)), (_quartiles(one), _quartiles(other))
        made.append(Number(*key, a_value, b_value, sizes, spreads, low, high, verdict))
    return made


def _quartiles(line: Mapping[str, Any]) -> tuple[float, float] | None:
    return (line["lower"], line["upper"]) if line.get("lower") is not None else None


def _measured(frame: pd.DataFrame) -> Iterator[tuple[_Key, tuple[dict[str, Any], Any]]]:
    """Phase, metric, unit, batch and prompt -> the summary and the samples."""
    import numpy as np

    frame = frame[~frame.phase.isin(_ONCE) & ~frame.metric.str.startswith("audit_") & frame.value.notna()]
    kernels = ["operation", "query_heads", "kv_heads", "head_width", "window", "model_width"]
    for _, own in frame.groupby(kernels, sort=False, dropna=False):
        kernel = "" if own.operation.isna().all() else f" ({case_name(own.iloc[0].to_dict())})"
        keys = ["phase", "metric", "unit", "batch_size", "prompt_length"]
        groups = [group for _, group in own.groupby(keys, sort=False, dropna=False)]
        for line, group in zip(summarise(own), groups, strict=True):
            samples = np.asarray(group.value, dtype=float)
            samples = samples[-1:] if line["last"] else samples
            yield (
                (line["phase"], line["metric"] + kernel, line["unit"], line["batch_size"], line["prompt_length"]),
                (line, samples),
            )


def _bounds(a: Any, b: Any, generator: Any) -> tuple[float, float]:
    """Interval of median(b) / median(a) - 1. Blocks of neighbours are drawn, since neighbouring samples resemble."""
    import numpy as np

    drawn = []
    for samples in (a, b):
        size = max(1, round(len(samples) ** (1 / 3)))
        starts = generator.integers(0, len(samples) - size + 1, (RESAMPLES, -(-len(samples) // size)))
        indices = (starts[..., None] + np.arange(size)).reshape(RESAMPLES, -1)[:, : len(samples)]
        drawn.append(np.median(samples[indices], axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[1] / drawn[0] - 1
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _verdict(a: float | None, b: float | None, low: float | None, high: float | None, floor: float) -> Verdict:
    if a is None or b is None:
        return "on one side only"
    if a == b:
        return "equal"
    if low is None or high is None or not math.isfinite(low) or not math.isfinite(high):
        return "noise not known"
    return "larger than noise" if (low > 0 or high < 0) and abs(b / a - 1) > floor else "within noise"


def fact_table(found: list[Fact], *, stacked: bool = False) -> Table:
    """``stacked``: B stands below A."""
    sides = [Column("A, below it B", "code")] if stacked else [Column("A", "text"), Column("B", "text")]
    rows = ((one.part, one.name, *_sides(stacked, shown(one.a), shown(one.b))) for one in found)
    return table("facts", "", [Column("part", "name", priority=1), Column("what", "name"), *sides], rows, grouped=1)


def number_table(found: list[Number], *, stacked: bool = False) -> Table:
    """The numbers with the noise beside them; ``stacked``: B stands below A."""
    sides, gap = [Column(side, show=str) for side in ("A ± IQR/2", "B ± IQR/2")], "\n" if stacked else " "
    columns = (
        Column("phase", "name"), Column("metric", "text" if stacked else "name"),
        *([Column("A, below it B", "code")] if stacked else sides), Column("change", show=percent),
        Column(f"{LEVEL:.0%} interval, %", "name", priority=1), Column("", "text" if stacked else "verdict"),
    )  # fmt: skip
    rows = (
        (
            one.phase,
            one.metric + ("" if one.prompt_length is None else f"{gap}{one.batch_size} × {one.prompt_length}"),
            *_sides(stacked, _side(one, 0), _side(one, 1)), Cell(ABSENT) if one.change is None else one.change,
            "" if one.low is None or one.high is None else interval(100 * one.low, 100 * one.high, 2), one.verdict,
        )
        for one in found
    )  # fmt: skip
    note = "Beside a metric: batch × prompt. Beside a number: half the interquartile range of its samples."
    return table("numbers", "", columns, rows, notes=[note], grouped=1)


def _sides(stacked: bool, a: str, b: str) -> list[str]:
    return [f"{a}\n{b}"] if stacked else [a, b]


def _side(one: Number, side: int) -> str:
    ends, middle = one.iqr[side], (one.a, one.b)[side]
    noise = f" ± {(ends[1] - ends[0]) / 2 / abs(middle):.1%}" if ends and middle else ""
    return quantity(middle, one.unit) + noise


def as_json(one: Fact | Number) -> dict[str, Any]:
    return asdict(one) | ({"change": one.change} if isinstance(one, Number) else {})
