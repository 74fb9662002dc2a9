"""A baseline of another machine, torch, thread count or benchmark is never compared with: it is not even found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from archbench.errors import StorageError
from archbench.regression import baselines
from archbench.regression.baselines import Baseline, Key, key, missing, others, path_of, read, save

KEY = Key("AMD EPYC", "2.13.0", 1, "abc")
SAVED = Baseline(KEY, "my-arch", "archbench-mine 1.0", {"parameters": 3, "state_bytes": None}, {"decode": [0.1, 0.2]})


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "new", SAVED)
    assert path == path_of(tmp_path / "new", KEY, "my-arch")
    assert read(tmp_path / "new", KEY, "my-arch") == SAVED


@pytest.mark.parametrize(
    ("field", "other"), [("device", "Xeon"), ("torch", "2.12.0"), ("threads", 2), ("benchmark", "abd")]
)
def test_whatever_differs_there_is_no_baseline_and_the_reason_is_said(
    field: str, other: str | int, tmp_path: Path
) -> None:
    save(tmp_path, SAVED)
    here = replace(KEY, **{field: other})
    assert read(tmp_path, here, "my-arch") is None
    assert others(tmp_path, here, "my-arch") == [f"{field}: {getattr(KEY, field)!r} and here {other!r}"]
    assert field in missing(others(tmp_path, here, "my-arch"))


def test_of_another_architecture_there_is_none(tmp_path: Path) -> None:
    save(tmp_path, SAVED)
    assert read(tmp_path, KEY, "other") is None
    assert others(tmp_path, KEY, "other") == []
    assert missing([]) == "there is none at all"


def test_the_key_is_of_this_machine_and_this_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from archbench.measure.machine import cpu_model, versions

    here = key("cpu", preset="nano")
    assert (here.device, here.torch, here.threads) == (cpu_model(), versions()["torch_version"], 1)
    assert key("cpu", preset="small").benchmark != here.benchmark
    changed = tmp_path / "benchmark.py"
    changed.write_text(baselines.BENCHMARK_FILES[-1].read_text() + "\n")
    monkeypatch.setattr(baselines, "BENCHMARK_FILES", (*baselines.BENCHMARK_FILES[:-1], changed))
    assert key("cpu", preset="nano").benchmark != here.benchmark


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format": 99})])
def test_what_is_no_baseline_is_an_error_that_names_the_file(text: str, tmp_path: Path) -> None:
    path = path_of(tmp_path, KEY, "my-arch")
    path.write_text(text)
    with pytest.raises(StorageError, match=path.name):
        read(tmp_path, KEY, "my-arch")
