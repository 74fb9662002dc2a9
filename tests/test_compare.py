"""``archbench compare`` from the command line: what it leaves, what goes wrong, and what survives ``kill -9``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

import archbench
from archbench.config import RunConfig
from archbench.errors import StorageError
from archbench.files.seal import unsealed
from archbench.results.schema import ROLES
from archbench.study.compare_results import unit_scores
from archbench.study.outcome import Record
from archbench.study.records import read_record
from archbench.study.run_cells import RunCell, cell_key
from archbench.study.work import Work, carried_out
from archbench.testing.evaluation import LEVEL
from forked_children import forked_children
from installations import RunCLI

SMALL = (
    "--config",
    "checked=false",
    "--config",
    "speed.repeats=1",
    "--config",
    "speed.new_tokens=4",
    "--tokens",
    "8192",
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "runs", "away", "from"]
    file.write_text(" ".join(words[(7 * i + i * i) % len(words)] for i in range(9_000)))
    return file


@pytest.fixture
def hostile(tmp_path: Path, minimal_plugin: str) -> Path:
    """Seed 1 of ``lossy`` is killed, that of ``nan`` diverges; ``plain`` is right, ``broken`` cannot be built."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    build = "    return Bigram(config)"
    assert build in minimal_plugin
    endings = {
        "plain": "",
        "lossy": "    if torch.initial_seed() == 1:\n        import os\n        os.kill(os.getpid(), 9)\n",
        "nan": "    if torch.initial_seed() == 1:\n        return nn.Module.apply(Bigram(config), filled)\n",
        "broken": "    raise RuntimeError('out of order')\n",
    }
    filled = "\n\ndef filled(module):\n    nn.init.constant_(module.weight, torch.nan)\n"
    for name, ending in endings.items():
        source = minimal_plugin.replace('"bigram"', f'"{name}"').replace(build, ending + build)
        (folder / f"{name}.py").write_text("import torch\n" + source + filled)
    return folder


def outcome_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = unsealed(json.loads((folder / "comparison.json").read_text()))
    return found


@pytest.mark.slow
def test_lost_and_diverged_seeds_and_absent_architectures_each_have_a_stated_outcome(
    cli: RunCLI, corpus: Path, hostile: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = (
        "compare", "plain", "lossy", "nan", "broken", "--plugin", hostile, "--match", "tokens", "--profile", "smoke",
        "--corpus", corpus, "--seeds", "4", "--no-tuning", "--sweeps", "0", "--contexts", "none", "--out", out, *SMALL,
    )  # fmt: skip
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    outcome = outcome_of(out)
    rows = {row["architecture"]: row for row in outcome["quality"]}
    assert set(rows) == {"plain", "lossy", "nan"}
    assert (rows["lossy"]["seeds"], rows["lossy"]["lost"], rows["lossy"]["diverged"]) == (3, 1, 0)
    assert "lost" in rows["lossy"]["reason"]
    assert rows["lossy"]["verdict"] in ("equivalent", "inconclusive")
    assert (rows["nan"]["seeds"], rows["nan"]["diverged"], rows["nan"]["verdict"]) == (3, 1, "no verdict")
    assert "diverged" in rows["nan"]["reason"]
    cells = [cell for cell in outcome["cells"] if cell["stage"] == "seed"]
    assert [cell["outcome"] for cell in cells if cell["architecture"] == "nan" and cell["seed"] == 1] == ["diverged"]
    assert "its loss was no longer finite at update 0" in done.stdout + json.dumps(outcome["cells"])
    (lost,) = [cell for cell in cells if cell["outcome"] == "failed"]
    assert "was killed" in lost["cause"]
    (broken,) = [model for model in outcome["models"] if model["architecture"] == "broken"]
    assert not broken["matched"]
    assert "broken" in done.stdout
    frame = archbench.read_results(out / "runs.parquet", trials=True)
    roles = frame.drop_duplicates("run_id").set_index("run_id").role
    assert all(roles.get(cell["run_id"]) in (ROLES[cell["stage"]], None) for cell in outcome["cells"])
    assert roles.notna().all()
    assert archbench.read_results(out / "runs" / "*" / "*.parquet", trials=True).role.notna().all(), (
        "in their own files"
    )
    assert frame.run_id.nunique() == sum(cell["outcome"] in ("ok", "diverged") for cell in outcome["cells"])

    before = {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    again = cli(*command)  # everything is known: nothing is run, and the outcome is the same
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()} == before
    assert outcome_of(out)["quality"] == outcome["quality"]


@pytest.mark.slow
def test_a_killed_comparison_leaves_no_process_and_goes_on_where_it_was(
    cli: RunCLI, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = [
        "compare", "gpt1", "llama", "--profile", "smoke", "--corpus", corpus, "--seeds", "3", "--sweeps", "2",
        "--contexts", "1,2", "--jobs", "2", "--out", out, *SMALL, "--set", "n_layer=1",
    ]  # fmt: skip
    script = Path(sys.executable).with_name("archbench")
    with subprocess.Popen([str(script), *map(str, arguments)], stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        deadline = time.monotonic() + 600
        while len(list((out / "cells").glob("*.json"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.2)
        started = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert started
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in started)
    known = {file.name: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    assert len(known) >= 5
    assert not (out / "comparison.json").exists()

    done = subprocess.run(
        [str(script), *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {name: (out / "cells" / name).stat().st_mtime_ns for name in known} == known
    outcome = outcome_of(out)
    baseline, llama = outcome["quality"]
    assert baseline["verdict"] == "baseline"
    assert llama["seeds"] == 3
    assert llama["combined_low"] < llama["difference"] < llama["combined_high"]
    assert {tuning["architecture"] for tuning in outcome["tuning"]} == {"gpt1", "llama"}
    assert all(len(tuning["points"]) >= 5 for tuning in outcome["tuning"])
    costs = {(row["metric"], row["architecture"]): row for row in outcome["costs"]}
    assert costs["train", "llama"]["ratio"] > 0
    assert costs["state", "llama"]["verdict"] == "exact"
    assert costs["train", "gpt1"]["floor_low"] <= costs["train", "gpt1"]["floor_high"]
    assert [point["context_length"] for point in outcome["curves"]] == [128, 256, 128, 256]
    readable = {(row["architecture"], row["multiple"]) for row in outcome["positions"] if row["loss"] is not None}
    assert ("llama", 4) in readable
    assert ("gpt1", 2) not in readable  # a table of positions has no more rows
    assert any(row["architecture"] == "gpt1" and row["cause"] for row in outcome["positions"])

    again = cli(*arguments)
    assert re.search(r"(\d+) runs, \1 of them known, about 0 s left", again.stderr), again.stderr


def test_a_run_that_fails_is_a_record_and_not_the_end(tmp_path: Path, hostile: Path, corpus: Path) -> None:
    config = RunConfig(
        architecture="lossy", profile="smoke", seed=1, checked=False, phases=["train"], plugins=[str(hostile)],
        data={"corpus": str(corpus)},
    )  # fmt: skip
    cell = RunCell("seed", config, cell_key(config, "source"), 64)
    (record,) = carried_out(Work((cell,), tmp_path, (), Record)).records
    assert record.outcome == "failed"
    assert "was killed" in (record.cause or "")
    assert read_record(Record, tmp_path, cell.key) is None, "the same command measures it again"


@pytest.fixture
def _forked() -> Iterator[None]:
    with forked_children():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_forked")
def test_checks_of_the_same_model_are_taken_over_and_of_another_are_not(tmp_path: Path, corpus: Path) -> None:
    small = {"n_layer": 1, "context_length": 32}
    config = RunConfig(
        architecture="gpt1", profile="smoke", phases=["quality"], data={"corpus": str(corpus)}, out=str(tmp_path),
        overrides=small, threads=1,
    )  # fmt: skip
    first = archbench.run(config, quiet=True).run_id.iloc[0]
    for overrides, taken in ((small, first), ({**small, "context_length": 16}, None)):
        other = config.override(seed=1, overrides=overrides)
        frame = archbench.run(other, quiet=True, checked_by=tmp_path / first)
        assert set(frame.conformance) == {str(LEVEL)}
        assert {"causality", "cached_decode"} <= set(frame[frame.phase == "check"].metric)
        findings = json.loads((tmp_path / frame.run_id.iloc[0] / "check.json").read_text())
        assert findings["taken_from"] == taken


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "0123.json").write_text('{"key": "0123"')
    with pytest.raises(StorageError, match=r"0123\.json"):
        read_record(Record, tmp_path, "0123")


def test_a_changed_plugin_or_seed_or_setting_is_another_cell() -> None:
    one = RunConfig(architecture="gpt1")
    keys = {
        cell_key(one, "a"), cell_key(one, "b"), cell_key(one.override(seed=1), "a"),
        cell_key(one.override(dtype="bfloat16"), "a"), cell_key(one, "a", block=1),
    }  # fmt: skip
    assert len(keys) == 5
    assert cell_key(one, "a") == cell_key(one.override(out="elsewhere"), "a")


def test_documents_are_the_units_where_there_are_enough_and_empty_ones_are_left_out_and_counted(tmp_path: Path) -> None:
    documents = pd.DataFrame({"bytes": [10] * 40 + [0] * 3, "nats": [1.0] * 40 + [0.0] * 3})
    blocks = pd.DataFrame({"document": [0, 0, 1], "nats": [1.0, 2.0, 3.0]})
    folder = tmp_path / "runs" / "k" / "run"
    folder.mkdir(parents=True)
    documents.to_parquet(folder / "documents.parquet")
    blocks.to_parquet(folder / "blocks.parquet")
    scores, units = unit_scores(tmp_path, {"one": [Record(key="k", run_id="run", outcome="ok")]})
    assert (units.kind, units.count, units.empty) == ("documents", 40, 3)
    assert scores["one"].unit_nats.shape == (1, 40)
    documents.head(2).to_parquet(folder / "documents.parquet")
    scores, units = unit_scores(tmp_path, {"one": [Record(key="k", run_id="run", outcome="ok")]})
    assert (units.kind, units.count, units.empty) == ("blocks", 3, 0)
    assert scores["one"].unit_nats.tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compare", "gpt1"), "archbench compare gpt1"),
        (("compare", "gpt1", "llama", "--match", "size"), "match"),
        (("compare", "gpt1", "llama", "--baseline", "gpt2"), "baseline 'gpt2'"),
        (("compare", "gpt1", "llama", "--contexts", "1,x"), "--contexts 1,x"),
        (("compare", "gpt1", "llama", "--config", "seed=3"), "--config seed"),
        (("compare", "gpt1", "llama", "--match", "time", "--jobs", "2"), "jobs"),
        (("tune", "gpt11"), "'gpt11'"),
        (("compare", "gpt1", "lama"), "'lama'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(cli: RunCLI, tmp_path: Path, arguments: Any, said: str) -> None:
    done = cli(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("runs"))


def test_a_folder_of_another_plan_is_not_written_over(cli: RunCLI, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    other = {"digest": "00000000", "plan": {"architectures": ["gpt1"]}}
    (tmp_path / "out" / "plan.json").write_text(json.dumps(other))
    done = cli("compare", "gpt1", "llama", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert str(tmp_path / "out") in done.stderr
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == other
