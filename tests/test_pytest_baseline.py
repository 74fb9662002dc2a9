"""``--archbench-baseline``: what a session saves, another compares with; what is missing is NEW, no silent pass."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from archbench.files.loader import read_json
from archbench.files.seal import sealed
from forked_children import ForkedCommand

pytest_plugins = "pytester"

BENCHMARKS = ("--pyargs", "archbench.testing", "--benchmark-only", "-p", "no:cacheprovider")
MINE = ("--archbench-arch", "mine", "--archbench-plugin", "mine.py")
EXTRA = "        self.config = config\n        self.extra = nn.Linear(8, 1)\n"


@pytest.fixture(autouse=True)
def _of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sessions that are started here are no part of a ``pytest -n``, in which nothing may be timed."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)


def rows(path: Path) -> dict[tuple[str, str], str]:
    return {(row["architecture"], row["metric"]): row["verdict"] for row in json.loads(path.read_text())}


def session(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """One in a fork that has imported torch: nothing is timed in it."""
    done = ForkedCommand(*arguments, cwd=pytester.path, program="pytest").finished()
    return pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0.0)


@pytest.fixture
def saved(minimal_plugin: str, pytester: pytest.Pytester) -> Path:
    """The baseline of an architecture that has one more layer since."""
    source = minimal_plugin.replace('"bigram"', '"mine"')
    plugin = pytester.path / "mine.py"
    plugin.write_text(source)
    saved = session(pytester, *BENCHMARKS, *MINE, "--archbench-baseline", "save", "-k", "exact")
    saved.assert_outcomes(passed=1, deselected=3)
    saved.stdout.fnmatch_lines(["mine * parameters * 66,049*", "baseline of mine: *mine-*.json"])
    saved.stdout.no_fnmatch_line("*(time in *")  # pytest-benchmark has no time to show
    (file,) = (pytester.path / ".benchmarks" / "archbench").glob("*.json")
    plugin.write_text(source.replace("        self.config = config\n", EXTRA))
    return file


def test_what_a_session_saved_another_compares_with(
    saved: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = pytester.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    (pytester.path / ".archbench-baselines").mkdir()  # where version 0.1 saved it
    saved.rename(pytester.path / ".archbench-baselines" / saved.name)
    options = ("--archbench-baseline", "compare", "--archbench-report", "report.json", "-k", "exact")
    monkeypatch.setenv("COLUMNS", "60")
    done = session(pytester, *BENCHMARKS, *MINE, *options)
    done.assert_outcomes(failed=1, deselected=3)
    verdict_first = ["1 of 11 regressed: mine parameters.", "mine * parameters * FAIL *"]
    done.stdout.fnmatch_lines([*verdict_first, "Left out * (--archbench-report *", "*base; head", "*= FAILURES =*"])
    table = done.stdout.str().partition("compared with the baseline")[2].partition("FAILURES")[0]
    assert max(map(len, table.splitlines())) <= 60
    done.stdout.no_fnmatch_line("DEBUG *")
    found = rows(pytester.path / "report.json")
    assert found["mine", "parameters"] == "FAIL"
    assert found["mine", "forward_flops_per_token"] == "ok"
    assert "| mine | parameters | 66,049 | 66,058 |" in summary.read_text()


@pytest.mark.slow  # tests/test_regression_baselines.py says of which baselines there is none
def test_what_another_machine_saved_is_new(saved: Path, minimal_plugin: str, pytester: pytest.Pytester) -> None:
    (pytester.path / "bigram.py").write_text(minimal_plugin)
    content = read_json(saved, next_step="", sealing="required")
    content["architecture"], content["key"]["device"] = "bigram", "a Xeon"
    (saved.parent / "bigram-000000000000.json").write_text(sealed(content))
    bigram = ("--archbench-arch", "bigram", "--archbench-plugin", "bigram.py", "-k", "exact")
    options = ("--archbench-baseline", "compare", "--archbench-report", "report.json")
    done = session(pytester, *BENCHMARKS, *bigram, *options)
    done.assert_outcomes(passed=1, deselected=3)
    done.stdout.fnmatch_lines(["*bigram*parameters*NEW*'a Xeon'*"])
    assert set(rows(pytester.path / "report.json").values()) == {"NEW"}


@pytest.mark.slow
def test_a_damaged_baseline_fails_by_name_and_without_a_traceback(saved: Path, pytester: pytest.Pytester) -> None:
    saved.write_text(saved.read_text().replace("66049", "66048"))
    done = session(pytester, *BENCHMARKS, *MINE, "-k", "exact", "--archbench-baseline", "compare")
    done.assert_outcomes(failed=1, deselected=3)
    done.stdout.fnmatch_lines([f"*{saved.name}*"])
    done.stdout.no_fnmatch_line("*Traceback*")
    done.stdout.no_fnmatch_line("*another exception occurred*")


@pytest.mark.slow
def test_what_has_no_baseline_fails_where_one_is_required(minimal_plugin: str, pytester: pytest.Pytester) -> None:
    (pytester.path / "mine.py").write_text(minimal_plugin.replace('"bigram"', '"mine"'))
    options = ("--archbench-baseline", "compare", "--require-baseline", "-k", "exact")
    session(pytester, *BENCHMARKS, *MINE, *options).assert_outcomes(failed=1, deselected=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--archbench-baseline", "save"), "*--archbench-baseline *--archbench-arch*"),
        (("--archbench-arch", "gpt1", "--require-baseline"), "*--require-baseline *--archbench-baseline compare"),
        (
            ("--archbench-arch", "gpt1", "--archbench-baseline", "save", "-p", "no:benchmark"),
            "*--archbench-baseline *pip install pytest-benchmark",
        ),
        (("--archbench-arch", "gpt1", "--archbench-rounds", "1"), "*--archbench-rounds*"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(
    options: tuple[str, ...], said: str, pytester: pytest.Pytester
) -> None:
    done = pytester.runpytest(*options)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"ERROR: {said}"])


@pytest.mark.exhaustive
def test_times_are_saved_and_compared_in_fresh_processes(minimal_plugin: str, pytester: pytest.Pytester) -> None:
    source = minimal_plugin.replace('"bigram"', '"mine"')
    plugin = pytester.path / "mine.py"
    plugin.write_text(source)
    options = (*BENCHMARKS, *MINE, "--archbench-rounds", "3", "--benchmark-json", "benchmarks.json")
    pytester.runpytest_subprocess(*options, "--archbench-baseline", "save").assert_outcomes(passed=4)
    (file,) = (pytester.path / ".benchmarks" / "archbench").glob("*.json")
    assert {name: len(levels) for name, levels in json.loads(file.read_text())["timed"].items()} == {
        "train_step": 3, "prefill": 3, "decode": 3,
    }  # fmt: skip
    assert len(json.loads((pytester.path / "benchmarks.json").read_text())["benchmarks"]) == 4
    slowed = "    import time\n    time.sleep(0)\n    end = time.process_time() + 0.02\n"
    plugin.write_text(
        source.replace(
            "    return next_token_step",
            f"{slowed}    while time.process_time() < end: pass\n    return next_token_step",
        )
    )
    done = pytester.runpytest_subprocess(*options, "--archbench-baseline", "compare")
    done.assert_outcomes(passed=3, failed=1)
    done.stdout.fnmatch_lines(["FAILED *test_time[[]mine-train_step[]]*"])
