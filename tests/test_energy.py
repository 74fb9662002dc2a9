"""Joules: counters that wrap, memory beside packages, what is too short to count, and joules for each token."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from archbench.measure import energy as energies
from archbench.measure.energy import Energy, RAPLCounter, counter_of, energy_used
from archbench.runs.device_watch import device_watched
from archbench.runs.rows import Rows

RANGE = 1_000_000
CPU = torch.device("cpu")


def zone(powercap: Path, folder: str, name: str, microjoules: int) -> Path:
    place = powercap / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "name").write_text(f"{name}\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    (place / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return place / "energy_uj"


def test_packages_and_the_memory_beside_them_are_counted_past_the_end_of_their_range(tmp_path: Path) -> None:
    packages = [zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", 900_000) for i in (0, 1)]
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 0)
    others = [zone(tmp_path, "intel-rapl:0:0", "core", 0), zone(tmp_path, "intel-rapl:2", "psys", 0)]
    others.append(zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0))
    counter = counter_of("cpu", tmp_path)
    assert isinstance(counter, RAPLCounter)
    assert counter.joules() == 0
    packages[0].write_text("950000")
    packages[1].write_text("100000")  # it has begun again
    memory.write_text("30000")
    for other in others:
        other.write_text("500000")
    assert counter.joules() == pytest.approx(0.05 + 0.2 + 0.03)
    packages[1].write_text("150000")
    assert counter.joules() == pytest.approx(0.33)


def test_where_no_counter_may_be_read_the_reason_is_said(tmp_path: Path) -> None:
    assert "no counters" in str(counter_of("cpu", tmp_path / "none"))
    zone(tmp_path, "intel-rapl:0", "package-0", 0).unlink()  # root's, for others
    assert "cannot be read" in str(counter_of("cpu", tmp_path))
    with energy_used("cpu", "nothing counts it") as energy:
        pass
    assert energy == Energy(None, "nothing counts it", countable=False)


class Steady:
    """A device that takes 50 W."""

    step = 1e-3

    def joules(self) -> float:
        return 50 * time.monotonic()


def test_a_block_has_the_energy_of_its_time_and_one_too_short_for_its_counter_has_none() -> None:
    began = time.monotonic()
    with energy_used("cpu", Steady()) as energy:
        time.sleep(0.02)
    assert energy.joules is not None
    assert 50 * 0.02 <= energy.joules <= 50 * (time.monotonic() - began)
    with energy_used("cpu", Steady()) as short:
        pass
    assert short.joules is None
    assert "too short" in short.reason


def test_rows_have_joules_a_token_where_there_is_a_counter_and_none_where_a_cpu_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measured(source: Any, device: str = "cpu") -> dict[str, Any]:
        monkeypatch.setattr(energies, "counter_of", lambda name: source)
        rows = Rows("train", device=device)
        with device_watched(CPU, rows, first=True, quiet=True), energy_used(CPU) as energy:
            time.sleep(0.02)
        rows.add_energy(energy, 10, quiet=True)
        return {f"{row['phase']} {row['metric']}": row["value"] for row in rows.finished()}

    counted = measured(Steady())
    assert sorted(counted) == ["environment joules", "train joules_per_token"]
    assert 0 < 10 * counted["train joules_per_token"] <= counted["environment joules"]
    assert measured("none here") == {}
    assert measured("none here", device="cuda") == {"train joules_per_token": None}
