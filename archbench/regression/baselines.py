"""Baselines: one machine's measurements of one revision, in a file that no other machine uses."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat

from archbench.errors import StorageError
from archbench.files.loader import read_model, validated
from archbench.files.seal import sealed
from archbench.files.writing import write_text
from archbench.measure.machine import device_name, versions
from archbench.regression import estimates
from archbench.regression.gate import SAMPLES, Plan
from archbench.regression.sides import BENCHMARK_FILES

FORMAT = 1

_AGAIN = "Delete it, and save a new one on the base"


@dataclass(frozen=True)
class Key:
    """Two measurements are comparable if these are the same.

    Attributes:
        device: the CPU's or GPU's model.
        torch: version.
        threads: of each measuring process.
        benchmark: hash of the code that measures and computes levels, and of its settings.
    """

    device: str
    torch: str
    threads: int
    benchmark: str

    @property
    def digest(self) -> str:
        """A short hash, for file names."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def differs(self, other: Key) -> str:
        """``device: 'A' and here 'B'``, for each field in which the two differ."""
        mine, theirs = asdict(self), asdict(other)
        return "; ".join(
            f"{name}: {theirs[name]!r} and here {mine[name]!r}" for name in mine if mine[name] != theirs[name]
        )


def key(device: str, *, preset: str, overrides: Mapping[str, str] | None = None) -> Key:
    """The key of this machine and benchmark."""
    asked = [device.partition(":")[0], preset, dict(overrides or {}), SAMPLES, Plan().turns]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for file in (*BENCHMARK_FILES, Path(estimates.__file__)):
        digest.update(file.read_bytes())
    return Key(device_name(device), str(versions()["torch_version"]), 1, digest.hexdigest()[:12])


@dataclass
class Baseline:
    """One architecture on one machine.

    Attributes:
        key: of the machine and benchmark.
        architecture: its name.
        source: plugin package and version, or path and hash, for people to read.
        exact: metric -> count.
        timed: metric -> level of each process (:func:`archbench.regression.estimates.level`).
    """

    key: Key
    architecture: str
    source: str = ""
    exact: dict[str, int | FiniteFloat | None] = field(default_factory=dict)
    timed: dict[str, list[FiniteFloat]] = field(default_factory=dict)


def path_of(folder: Path, key: Key, architecture: str) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', architecture)}-{key.digest}.json"


def save(folder: Path, baseline: Baseline) -> Path:
    """Write a baseline, over an older one of the same key; returns the file.

    Raises:
        StorageError: the folder cannot be written to, or a file of that name is no baseline.
    """
    path = path_of(folder, baseline.key, baseline.architecture)
    if path.exists():
        _read(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, sealed({"format": FORMAT, **asdict(baseline)}, indent=1))
    except OSError as error:
        raise StorageError(str(folder), f"it cannot be written to ({error.strerror})", "Name another folder") from error
    return path


def read(folder: Path, key: Key, architecture: str) -> Baseline | None:
    """The baseline of that key; None where there is none.

    Raises:
        StorageError: there is a file that is no baseline.
    """
    path = path_of(folder, key, architecture)
    if not path.exists():
        return None
    found = _read(path)
    if (found.key, found.architecture) != (key, architecture):
        raise StorageError(str(path), "it is the baseline of another machine or architecture", _AGAIN)
    return found


def others(folder: Path, key: Key, architecture: str) -> list[str]:
    """How the architecture's existing baselines differ from ``key``."""
    found = [_read(path) for path in sorted(folder.glob("*.json"))]
    return [key.differs(one.key) for one in found if one.architecture == architecture and one.key != key]


def _read(path: Path) -> Baseline:
    content = read_model(dict[str, Any], path, limit=1 << 20, next_step=_AGAIN, sealing="optional")
    if (form := content.pop("format", None)) != FORMAT:
        raise StorageError(str(path), f"its format is {form!r}, and this archbench reads {FORMAT}", _AGAIN)
    return validated(Baseline, content, error=StorageError, culprit=str(path), next_step=_AGAIN)


def missing(rows: Sequence[str]) -> str:
    """Why there is no baseline, given how the existing ones differ (:func:`others`)."""
    return f"there are others, of another {'; or of another '.join(rows)}" if rows else "there is none at all"
