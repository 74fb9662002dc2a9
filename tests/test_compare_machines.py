"""A comparison whose runs came from several machines: quality may, times that are compared may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from archbench.cli import compare, probe, scale
from archbench.config import RunConfig
from archbench.errors import DeviceError
from archbench.report.contents import read
from archbench.study.compare_results import Results
from archbench.study.engine import machine
from archbench.study.outcome import Record
from archbench.study.run_cells import RunCell
from comparison_files import edit, write_comparison


@pytest.mark.parametrize(
    ("stage", "hosts", "mixed"),
    [
        ("speed", ("n1", "n1"), False),
        ("speed", ("n1", "n2"), True),
        ("cost", (None, "n2"), True),
        ("seed", ("n1", "n2"), False),
    ],
)
def test_times_are_compared_only_if_they_come_from_one_machine(
    stage: Any, hosts: tuple[str | None, ...], mixed: bool, tmp_path: Path
) -> None:
    config = RunConfig(architecture="gpt1", profile="smoke")
    cells = [RunCell(stage, config, f"{n}", 64, block=0 if stage == "speed" else None) for n in range(len(hosts))]
    found = [
        (cell, Record(key=cell.key, run_id=None, outcome="ok", host=host))
        for cell, host in zip(cells, hosts, strict=True)
    ]
    frame, plan = pd.DataFrame({"device_name": ["Some CPU"]}), None
    reason = Results(plan, tmp_path, found, {cell.key: frame for cell in cells}).mixed_machines()  # type: ignore[arg-type]
    assert (reason is not None) == mixed
    if reason is not None:
        assert "n2 (Some CPU)" in reason


def test_the_page_names_the_machines_and_why_speed_has_no_verdict(tmp_path: Path) -> None:
    write_comparison(tmp_path)
    content = json.loads((tmp_path / "comparison.json").read_text())
    cells = [{**cell, "host": f"n{number % 2}"} for number, cell in enumerate(content["cells"])]
    costs = [{**row, "ratio": None, "low": None, "high": None, "verdict": "withheld"} for row in content["costs"]]
    edit(tmp_path, cells=cells, costs=costs, withheld="the speed runs were timed on n0 (A) and n1 (B)")
    (part,) = read([str(tmp_path)])
    assert "n0 (" in dict(part.facts)["machines"]
    assert "n1 (" in dict(part.facts)["machines"]
    (table,) = [table for table in part.tables if table.key == "costs"]
    assert "timed on n0 (A) and n1 (B)" in " ".join(table.notes)


@pytest.mark.parametrize("here", [True, False])
def test_a_study_of_gpus_is_planned_on_a_machine_without_one_if_others_measure(here: bool) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    plans = (
        lambda: compare._plan(["gpt1", "llama"], {"run": {"device": "cuda"}}, None, "compare", here=here).run,
        lambda: (
            scale._plan(
                ["gpt1"], {"run": {"device": "cuda"}, "budgets": (4096,), "sizes": (10_000,)}, None, here=here
            ).run
        ),
        lambda: probe._plan(["gpt1"], {"device": "cuda", "plugins": ()}, here=here),
    )
    for plan in plans:
        if here:
            with pytest.raises(DeviceError):
                plan()
        else:
            assert plan().device == "cuda"
    assert machine("cuda", "NVIDIA H100")["device_name"] == "NVIDIA H100", "as cells say"
