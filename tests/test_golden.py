"""What people have on their disks and in their scripts stays: results, plans, keys, exit codes, what programs read.

The golden files are written by ``python tests/golden/freeze.py``; a difference here is a contract that was broken.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from archbench import read_results
from archbench.study import records
from forked_children import forked_children
from golden import adapters, snapshots, studies
from golden.error_catalogue import CATALOGUE, FILES

HERE = snapshots.HERE


@pytest.fixture(autouse=True)
def _frozen_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of cells contain archbench's version, and were frozen with an earlier one."""
    monkeypatch.setattr(records, "__version__", snapshots.golden("cell_keys")["versions"]["archbench"])


@pytest.fixture
def _in_golden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)


def assert_same(expected: Any, found: Any, name: str) -> None:
    """Equal, or a diff of the lines that are not."""
    if expected == found:
        return
    before, after = (json.dumps(one, indent=1, ensure_ascii=False).splitlines() for one in (expected, found))
    lines = list(difflib.unified_diff(before, after, f"{name}, frozen", f"{name}, now", lineterm="", n=1))
    pytest.fail("\n".join([*lines[:60], f"({len(lines)} lines differ)"]), pytrace=False)


@pytest.mark.usefixtures("_in_golden")
@pytest.mark.parametrize("name", [name for name in snapshots.SNAPSHOTS if name != "cell_keys"])
def test_it_is_as_it_was_frozen(name: str) -> None:
    assert_same(snapshots.golden(name), snapshots.current(name), name)


@pytest.mark.usefixtures("_in_golden")
def test_what_an_earlier_session_measured_is_found_by_its_keys() -> None:
    expected = snapshots.golden("cell_keys")
    if expected["versions"] != snapshots.versions():
        pytest.skip(f"keys contain the versions, and were frozen with {expected['versions']}")
    assert_same(expected, snapshots.current("cell_keys"), "cell_keys")


def test_every_error_has_its_exit_code_and_names_the_culprit(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCHBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    wrong = []
    for command, code, culprit in CATALOGUE:
        if "hf:" in command and find_spec("transformers") is None:
            continue
        given = command.replace("REFERENCE", str(snapshots.REFERENCE)).split()
        with forked_children():
            found, out, error = adapters.output(*given)
        if found != code or culprit not in error or out or error.count("\n") != 1 or "Traceback" in error:
            wrong.append(f"archbench {command}: exit code {found}, not {code}; {culprit!r} in: {out}{error}")
    assert not wrong, "\n".join(wrong)
    assert {path.name for path in tmp_path.iterdir()} <= {*(Path(name).parts[0] for name in FILES), "results"}
    assert not list(tmp_path.rglob("*.parquet"))[1:], "nothing was measured"


@pytest.mark.usefixtures("_in_golden")
@pytest.mark.parametrize("study", studies.OUTCOMES)
def test_a_finished_study_is_judged_as_it_was_and_measures_nothing(study: str, tmp_path: Path) -> None:
    if snapshots.golden("cell_keys")["versions"] != snapshots.versions():
        pytest.skip("cells of other versions are other cells")
    expected = studies.outcome_in(studies.STUDIES / study, study)
    assert_same(expected, studies.written_again(study, tmp_path / study), study)
    rows = read_results(tmp_path / study / "runs.parquet", trials=True)
    assert rows.role.notna().all(), "its runs had none"
    cells = {path.name for path in (studies.STUDIES / study / "cells").iterdir()}
    assert {path.name for path in (tmp_path / study / "cells").iterdir()} == cells


@pytest.mark.slow
def test_a_comparison_begun_by_the_old_archbench_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if snapshots.golden("cell_keys")["versions"] != snapshots.versions():
        pytest.skip("cells of other versions are other cells")
    monkeypatch.chdir(tmp_path)
    for name in ("left.py", "right.py"):
        shutil.copy(HERE / name, tmp_path)
    digest = studies.STUDIES / "comparison" / "plan.json"
    folder = studies.interrupted(tmp_path / "results" / f"compare-{json.loads(digest.read_text())['digest']}")
    known = {file: (file.read_bytes(), os.stat(file).st_mtime_ns) for file in (folder / "cells").iterdir()}
    code, out, error = adapters.output(*studies.COMPARE)
    assert code == 0, error
    outcome = json.loads(out)
    assert {cell["outcome"] for cell in outcome["cells"]} == {"ok"}
    assert {file: (file.read_bytes(), os.stat(file).st_mtime_ns) for file in known} == known
    before = studies.outcome_in(studies.STUDIES / "comparison", "comparison")
    assert [cell["key"] for cell in outcome["cells"]] == [cell["key"] for cell in before["cells"]]
