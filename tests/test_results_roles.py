"""The table tells what a row is: trials and pilots of a study are marked, and left out unless they are asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import archbench
from archbench.errors import ArchbenchWarning, StorageError
from archbench.measure.machine import git_revision, revision_of
from archbench.results.reading import read_results
from archbench.results.schema import ROLES, TRIALS, Role
from archbench.results.store import new_run_id, write_run
from archbench.study.run_cells import source_digest
from installations import RunCLI
from test_results_schema import COMMON

SCORE = {"phase": "quality", "metric": "bits_per_byte", "value": 3.0}
ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "tests" / "golden" / "studies"
"""As version 3 wrote them."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of each role, and one of none."""
    roles: tuple[Role | None, ...] = (*set(ROLES.values()), None)
    for role in roles:
        write_run(tmp_path / "out", new_run_id(), [SCORE], {}, {**COMMON, "role": role})
    return tmp_path / "out"


def test_trials_and_pilots_are_left_out_unless_asked_for(folder: Path) -> None:
    def roles(*arguments: Any, **more: Any) -> set[str]:
        return set(read_results(folder, *arguments, **more).role.fillna("none"))

    assert roles() == {"confirm", "timing", "cost", "none"}
    assert roles(trials=True) == {*ROLES.values(), "none"}
    assert roles({"role": "trial"}) == {"trial"}
    assert roles(["role="]) == {"none"}


def test_the_command_says_how_many_it_leaves_out(folder: Path, cli: RunCLI) -> None:
    some, every = (cli("results", folder, "--json", *more) for more in ((), ("--trials",)))
    assert len(every.stdout.splitlines()) == len(some.stdout.splitlines()) + 2
    assert "2 trials and pilots" in some.stderr
    assert every.stderr == ""
    asked = cli("results", folder, "--where", "role=trial")
    assert "· trial" in asked.stdout
    assert "· nan" not in cli("results", folder, "--limit", "0").stdout
    assert asked.stderr == ""


@pytest.mark.parametrize(("study", "trials"), [("comparison", True), ("ladder", False), ("probe", False)])
def test_an_older_table_gets_its_roles_from_the_outcome_beside_it(study: str, trials: bool) -> None:
    file = STUDIES / study / "runs.parquet"
    assert "role" not in pq.read_schema(file).names
    rows = read_results(file, trials=True)
    assert set(rows.schema_version) == {3}
    assert rows.role.notna().all()
    assert set(rows.role.isin(TRIALS)) == ({True, False} if trials else {False})
    scores = rows[rows.phase == "quality"]
    trained = rows[rows.metric == "training_seconds"].set_index("run_id").tokens_seen
    assert (scores.tokens_seen == scores.run_id.map(trained)).all()


def test_an_outcome_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    shutil.copytree(STUDIES / "ladder", tmp_path / "ladder")
    (tmp_path / "ladder" / "scale.json").write_text("{")
    with pytest.raises(StorageError, match=r"runs\.parquet: scale\.json beside it cannot be read"):
        read_results(tmp_path / "ladder" / "runs.parquet")
    (tmp_path / "ladder" / "scale.json").unlink()
    with pytest.warns(ArchbenchWarning, match="nothing says which of its rows are trials"):
        assert read_results(tmp_path / "ladder" / "runs.parquet").role.isna().all()


def test_a_plugin_has_the_revision_of_its_own_repository(tmp_path: Path, minimal_plugin: str) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    file = tmp_path / "mine" / "plugin.py"
    (tmp_path / "venv").mkdir()
    file.parent.mkdir()
    file.write_text(minimal_plugin)
    (tmp_path / "venv" / "installed.py").write_text(minimal_plugin)
    (tmp_path / "README").write_text("mine")
    plugin = archbench.load("bigram", plugins=[file])
    assert plugin.revision() is None
    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    git("add", "README")
    git("commit", "-m", "first")
    first = git_revision(tmp_path)
    assert plugin.revision() is None, "the commit lacks it"
    git("add", "mine")
    git("commit", "-m", "second")
    assert plugin.revision() == git_revision(tmp_path) != first
    file.write_text(f"{minimal_plugin}\n")
    assert plugin.revision() == f"{git_revision(tmp_path)}"
    assert str(plugin.revision()).endswith("-dirty")
    assert revision_of(tmp_path / "venv" / "installed.py") is None


def test_a_built_in_plugin_has_the_revision_of_archbench() -> None:
    assert archbench.load("gpt2").revision() == git_revision()


def test_an_edited_plugin_is_another_one_to_a_study_whatever_its_configuration(
    tmp_path: Path, minimal_plugin: str
) -> None:
    """The smallest plugin's configuration is archbench's own ModelConfig."""
    file = tmp_path / "plugin.py"
    digests = []
    for number, text in enumerate((minimal_plugin, minimal_plugin.replace("nn.Embedding", "torch.nn.Embedding"))):
        file.write_text(f"import torch\n{text}")
        os.utime(file, ns=(number, number))
        digests.append(source_digest(archbench.load("bigram", plugins=[file])))
    assert len(set(digests)) == 2
