"""``archbench regress --device cuda``: a wait, a copy or a kernel that a change brings fails by name."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import archbench_plugins.gpt1 as gpt1
import pytest
import torch

from archbench.regression.benchmark import Subject
from archbench.regression.gpu_requests import NAMES, counts
from archbench.regression.verdict_table import Row, exact_rows

SOURCE = Path(gpt1.__file__).read_text().replace('name="gpt1"', 'name="copy"')
STEP = "    return next_token_step(state, batch)\n"
HIDDEN = "        for block in self.blocks:\n            x = block(x, cache)\n"
SMALL = {"vocab_size": "64", "context_length": "32", "n_layer": "1", "n_head": "2", "d_model": "16", "d_ff": "32"}
NO_GRAPH_STEP = [f"gpu_graph_step_{name}" for name in NAMES]
CHANGES = {
    "a loss that is read": (
        STEP,
        "    loss = next_token_step(state, batch)\n    loss.item()\n    return loss\n",
        {"gpu_step_copies_to_host", "gpu_step_bytes_to_host", "gpu_step_waits", *NO_GRAPH_STEP},
    ),
    "a copy from pageable memory": (
        STEP,
        f"    torch.ones(3).to(state.device)\n{STEP}",
        {"gpu_step_copies_to_device", "gpu_step_bytes_to_device", "gpu_step_waits", *NO_GRAPH_STEP},
    ),
    "a copy from pinned memory": (
        STEP,
        f"    torch.ones(3).pin_memory().to(state.device, non_blocking=True)\n{STEP}",
        {"gpu_step_copies_to_device", "gpu_step_bytes_to_device", "gpu_graph_step_in_graphs"},
    ),
    "a kernel in the step": (
        STEP,
        f"    torch.ones(3, device=state.device)\n{STEP}",
        {"gpu_step_launches", "gpu_graph_step_in_graphs"},
    ),
    "a kernel in the model": (
        HIDDEN,
        f"{HIDDEN}        x = x.neg()\n",
        {"gpu_step_launches", "gpu_graph_step_in_graphs", "gpu_token_launches", "gpu_graph_token_in_graphs"},
    ),
    "a wait in the model": (
        HIDDEN,
        f"{HIDDEN}        float(x.sum())\n",
        {
            "gpu_step_launches", "gpu_step_copies_to_host", "gpu_step_bytes_to_host", "gpu_step_waits",
            "gpu_token_launches", "gpu_token_copies_to_host", "gpu_token_bytes_to_host", "gpu_token_waits",
            *NO_GRAPH_STEP, *(f"gpu_graph_token_{name}" for name in NAMES),
        },
    ),
}  # fmt: skip


@cache
def counted(change: str | None = None) -> tuple[dict[str, float | None], dict[str, str]]:
    source = SOURCE
    if change is not None:
        old, new, _ = CHANGES[change]
        assert source.count(old) == 1
        source = source.replace(old, new)
    with TemporaryDirectory() as place:
        file = Path(place, "copy.py")
        file.write_text(source)
        return counts(Subject.load("copy", [str(file)], overrides=SMALL), torch.device("cuda"))


def rows(change: str) -> list[Row]:
    (base, _), (head, reasons) = counted(), counted(change)
    return exact_rows("copy", base, head, reasons)


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_brings_fails_by_name_and_nothing_else_does(change: str) -> None:
    assert {row.metric for row in rows(change) if row.verdict == "FAIL"} == CHANGES[change][2]


def test_the_same_code_has_the_same_counts() -> None:
    counted.cache_clear()
    first = counted()
    counted.cache_clear()
    assert counted() == first
    costs, reasons = first
    assert not reasons
    assert costs["gpu_step_copies_to_device"] == 2, "inputs and targets"
    assert costs["gpu_step_bytes_to_device"] == 2 * 2 * 32 * 8
    assert costs["gpu_step_waits"] == costs["gpu_step_copies_to_host"] == 0
    assert {costs[f"gpu_token_{name}"] for name in ("copies_to_device", "copies_to_host", "waits")} == {0}
    assert costs["gpu_graph_token_launches"] == 1
    assert costs["gpu_graph_step_copies_to_device"] == 3, "inputs, targets, and rates with seeds"
    assert costs["gpu_graph_step_launches"] == 2, "the graph, and a copy of the loss and the norm"
    assert costs["gpu_graph_step_waits"] == costs["gpu_graph_step_copies_to_host"] == 0


def test_why_no_graph_is_counted_stands_beside_it() -> None:
    row = next(row for row in rows("a wait in the model") if row.metric == "gpu_graph_token_launches")
    assert (row.head, row.verdict) == (None, "FAIL")
    assert "capturing" in row.note


def test_the_command_counts_on_the_gpu(tmp_path: Path) -> None:
    project = '[project]\nname = "copy"\nversion = "1"\n[project.entry-points.archbench]\ncopy = "copied"\n'
    (tmp_path / "pyproject.toml").write_text(project)

    def git(*arguments: str) -> None:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    git("init", "--quiet")
    old, new, failing = CHANGES["a loss that is read"]
    for source in (SOURCE, SOURCE.replace(old, new)):
        (tmp_path / "copied.py").write_text(source)
        git("add", "-A")
        git("commit", "--quiet", "-m", "x")
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "archbench", "regress", "HEAD~1", "HEAD", "--exact-only", "--device", "cuda"]
    done = subprocess.run([*command, *settings], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 10, done.stderr
    said = done.stderr.partition("regressed (")[2].partition(")")[0]
    assert {name.partition(":")[2] for name in said.split(", ")} == failing | {"step_operations"}
