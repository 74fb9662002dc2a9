"""A results folder of any size is shown from the files of the runs that are shown."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from archbench.errors import StorageError, UnknownNameError
from archbench.results.newest import NewestRuns
from archbench.results.reading import read_results
from archbench.results.store import write_run
from test_cli_results import COMMON, rows

REFERENCE = Path(__file__).parents[1] / "results" / "reference"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs: the second a trial, the third of gpt2; the first's file is damaged."""
    others = {2: {"role": "trial"}, 3: {"architecture": "gpt2"}}
    for day in (1, 2, 3, 4):
        write_run(tmp_path, f"2026010{day}T000000-00000{day}", rows(), {}, COMMON | others.get(day, {}))
    damaged = tmp_path / "20260101T000000-000001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    return tmp_path


def test_only_files_of_the_runs_asked_for_are_opened(folder: Path) -> None:
    runs = NewestRuns(folder)
    assert [frame.run_id.iloc[0][:8] for frame in islice(runs, 2)] == ["20260104", "20260103"]
    assert (runs.count(), runs.hidden) == (2, 0)
    with pytest.raises(StorageError, match="20260101"):
        list(NewestRuns(folder))


def test_conditions_are_looked_for_in_every_file(folder: Path) -> None:
    (folder / "20260101T000000-000001.parquet").unlink()
    runs = NewestRuns(folder, ["phase=decode", "architecture=gpt2"])
    (found,) = runs
    assert set(found.phase) == {"decode"}
    assert (runs.count(), runs.hidden) == (0, 0)
    runs = NewestRuns(folder, ["phase=decode"])
    assert len(next(iter(runs))) == 5
    assert (runs.count(), runs.hidden) == (1, 1)
    assert len(list(NewestRuns(folder, ["role=trial"]))) == 1
    runs = NewestRuns(folder, ["phase=decoding"])
    assert list(runs) == []
    with pytest.raises(UnknownNameError, match="decode"):
        runs.count()


def test_runs_and_rows_are_those_of_read_results_in_the_same_order() -> None:
    """Also of the file of a study, which has many runs, and of an earlier version."""
    for place in (str(REFERENCE / "gpt1-revisions"), str(REFERENCE / "probe-mini" / "runs.parquet")):
        whole = read_results(place)
        frames = list(NewestRuns(place))
        assert [frame.run_id.iloc[0] for frame in frames] == list(whole.run_id.drop_duplicates())
        first = whole[whole.run_id == whole.run_id.iloc[0]].reset_index(drop=True)
        assert frames[0].reset_index(drop=True).equals(first)
        assert sum(map(len, frames)) == len(whole)
