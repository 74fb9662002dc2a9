"""A clock that goes back or jumps: runs keep their order, or a warning says so; it is read for no duration."""

from __future__ import annotations

import ast
import re
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import archbench
from archbench.config import RunConfig
from archbench.errors import ArchbenchWarning
from archbench.results.store import STEP_BACK, new_run_id, run_time, write_run
from archbench.runs.folder import open_run
from small_runs import begun
from test_results_schema import COMMON

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROW = {"phase": "quality", "metric": "loss", "value": 1.0}


def start(folder: Path, at: datetime) -> str:
    run_id = new_run_id(folder, lambda: at)
    begun(folder, run_id, RunConfig(architecture="gpt1"))
    write_run(folder, run_id, [ROW], {}, COMMON)
    return run_id


@pytest.mark.parametrize("back", [timedelta(0), timedelta(seconds=1), STEP_BACK - timedelta(seconds=1)])
def test_runs_of_one_second_and_after_a_step_back_keep_their_order(back: timedelta, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = [start(tmp_path, NOON), start(tmp_path, NOON - back), start(tmp_path, NOON - back)]
    assert sorted(ids) == ids
    assert open_run(tmp_path, "last").run_id == ids[-1]
    assert archbench.read_results(tmp_path).run_id.to_list() == ids[::-1]
    assert run_time(ids[-1]) == NOON + timedelta(seconds=2)


def test_of_a_clock_that_was_wrong_a_warning_names_the_run_that_will_be_the_last(tmp_path: Path) -> None:
    first = start(tmp_path, NOON)
    with pytest.warns(ArchbenchWarning, match=re.escape("2026-03-01 12:00:00")):
        second = start(tmp_path, NOON - timedelta(hours=1))
    assert run_time(second) == NOON - timedelta(hours=1), "no time is made up"
    assert open_run(tmp_path, "last").run_id == first


def test_a_clock_that_jumps_ahead_keeps_the_order(tmp_path: Path) -> None:
    ids = [start(tmp_path, NOON), start(tmp_path, NOON + timedelta(days=400))]
    assert sorted(ids) == ids


def test_the_wall_clock_is_read_for_dates_and_never_for_durations() -> None:
    root = Path(archbench.__file__).parent
    found = {}
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = ast.unparse(node.func)
                if re.search(r"\btime\.(time|time_ns|ctime|localtime|gmtime)$|\.(now|utcnow|today)$", name):
                    found[str(file.relative_to(root))] = name
    ages = {  # of files: one that seems to be of the future stays, is not kept in an index, and is verified again
        "results/leftovers.py": "time.time",
        "data/text_index.py": "time.time_ns",
        "data/token_file.py": "time.time",
        # Since when another process, perhaps of another machine, has a cell: it is shown, and nothing depends on it.
        "results/claims.py": "time.time",
        "study/status.py": "time.time",
    }
    dates = ("results/store.py", "study/outcome.py", "plugin/trust.py", "presentation/live_view.py")
    assert found == dict.fromkeys(dates, "datetime.now") | ages
