"""``--archbench-baseline``: a pytest session's measurements of architectures, saved or compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from archbench.errors import StorageError
from archbench.files.outputs import Output, check_outputs, write_output
from archbench.plugin.discovery import plugin_paths
from archbench.regression.baselines import Baseline, Key, key, missing, others, read, save
from archbench.regression.benchmark import Subject
from archbench.regression.gate import Plan, compare_saved, levels_of
from archbench.regression.sides import Request, Side
from archbench.regression.verdict_table import (
    Row,
    as_json,
    cells,
    conclusion,
    count_table,
    exact_rows,
    markdown,
    row_table,
    write_summary,
)

TITLE = "archbench: compared with the baseline"
COUNTS = "archbench: exact costs"
REPORT = "--archbench-report"


def baseline_folders(config: pytest.Config) -> list[Path]:
    """Where baselines are read; the first is where they are saved.

    They are in a folder of pytest-benchmark's storage, which is from the working directory on, or in
    ``--archbench-baseline-dir``. Until version 0.1 they were in ``.archbench-baselines``.
    """
    asked: str | None = config.getoption("archbench_baseline_dir")
    if asked is not None:
        return [config.rootpath / asked]
    scheme, separator, path = str(config.getoption("benchmark_storage", "")).rpartition("://")
    is_folder = path and (not separator or scheme == "file")
    storage = Path(path) if is_folder else Path(".benchmarks")  # it can also be a database
    return [config.invocation_params.dir / storage / "archbench", config.rootpath / ".archbench-baselines"]


class BaselineSession:
    """One session's measurements and their table.

    Attributes:
        mode: ``save``, ``compare``, or None, where benchmarks are compared with nothing.
        rows: the comparisons so far; where nothing is compared, the counts.
    """

    def __init__(self, config: pytest.Config) -> None:
        option = config.getoption
        self.mode: str | None = option("archbench_baseline")
        self.device: str = option("archbench_device")
        self.rows: list[Row] = []
        self._folders = baseline_folders(config)
        self._required: bool = option("require_baseline")
        self._judged = self.device == "cpu" or bool(option("archbench_exclusive"))
        asked: str | None = option("archbench_report")
        self._report_file = asked and Output(Path(asked), "comparison with a baseline", REPORT, "remove this one")
        check_outputs([self._report_file] if self._report_file else [])
        self._plugins = plugin_paths(option("archbench_plugin"))
        self._preset: str = option("archbench_preset") or "nano"
        self._plan = Plan(rounds=option("archbench_rounds"), max_rounds=2 * option("archbench_rounds"))
        self._baselines: dict[str, Baseline] = {}
        self._saved: dict[str, Path] = {}
        self._timed: dict[str, dict[str, Row]] = {}
        self._subjects: dict[str, Subject] = {}

    @property
    def key(self) -> Key:
        """Of this machine and these options."""
        return key(self.device, preset=self._preset)

    def subject(self, architecture: str) -> Subject:
        """The architecture, loaded once in this process."""
        if architecture not in self._subjects:
            self._subjects[architecture] = Subject.load(architecture, self._plugins, self._preset)
        return self._subjects[architecture]

    def exact(self, architecture: str, costs: dict[str, float | None], reasons: Mapping[str, str]) -> list[Row]:
        """Save counts, or compare them; ``reasons`` says why the head has none."""
        if self.mode == "save":
            self._baseline(architecture).exact = costs
            self._save(architecture)
        if self.mode != "compare":
            self.rows += exact_rows(architecture, None, costs, reasons)
            return []
        baseline = self._read(architecture)
        return self._kept(architecture, exact_rows(architecture, (baseline and baseline.exact) or None, costs, reasons))

    def timed(self, architecture: str, metric: str) -> list[Row]:
        """Save a time, or compare it; fresh processes measure all times when the first is asked for."""
        side = Side(architecture, Request([architecture], self._plugins, self._preset, {}, self.device))
        if self.mode == "save" and not self._baseline(architecture).timed:
            (found,) = levels_of([side], self._plan)
            self._baseline(architecture).timed = {name: levels for (_, name), levels in found.items()}
            self._save(architecture)
        if self.mode != "compare":
            return []
        if architecture not in self._timed:
            saved = self._read(architecture)
            base = {} if saved is None else saved.timed
            rows = compare_saved(base, side, self._plan, architecture, judged=self._judged)
            self._timed[architecture] = {row.metric: row for row in rows}
        return self._kept(architecture, [self._timed[architecture][metric]])

    def check(self, rows: list[Row]) -> None:
        """Fail the test that ``rows`` belong to, if one of them is a failure."""
        bad = [row for row in rows if row.verdict == "FAIL" or (row.verdict == "NEW" and self._required)]
        if bad:
            pytest.fail("\n".join("  ".join(filter(None, cells(row))) for row in bad), pytrace=False)

    def report(self, terminal: pytest.TerminalReporter) -> None:
        """Write the verdict and its table, the job's summary and the JSON file; without a baseline, the counts."""
        from archbench.presentation.terminal import show

        if not self.rows:
            return
        compared = self.mode == "compare"
        terminal.section(TITLE if compared else COUNTS)
        if compared:
            terminal.write_line(f"{conclusion(self.rows)}.")
            terminal.write_line("")
        show(row_table(self.rows) if compared else count_table(self.rows), everything=f"{REPORT} FILE has all")
        if not compared:
            return
        write_summary(markdown(self.rows, TITLE, conclusion(self.rows)))
        if self._report_file:
            lines = [as_json(row) for row in self.rows]
            write_output(self._report_file, (json.dumps(lines, indent=1, ensure_ascii=False) + "\n").encode())

    def name_saved(self, terminal: pytest.TerminalReporter) -> None:
        """Name the files that were saved."""
        for architecture, path in self._saved.items():
            terminal.write_line(f"baseline of {architecture}: {path}")

    def _kept(self, architecture: str, rows: list[Row]) -> list[Row]:
        if any(row.verdict == "NEW" for row in rows) and self._read(architecture) is None:
            with _without_traceback():
                why = missing([other for folder in self._folders for other in others(folder, self.key, architecture)])
            rows = [replace(row, note=f"no baseline of this machine: {why}") for row in rows]
        self.rows += rows
        return rows

    def _read(self, architecture: str) -> Baseline | None:
        with _without_traceback():
            found = (read(folder, self.key, architecture) for folder in self._folders)
            return next((one for one in found if one is not None), None)

    def _baseline(self, architecture: str) -> Baseline:
        if architecture not in self._baselines:
            found = self.subject(architecture).architecture
            self._baselines[architecture] = Baseline(self.key, architecture, f"{found.package} {found.version}")
        return self._baselines[architecture]

    def _save(self, architecture: str) -> None:
        with _without_traceback():
            self._saved[architecture] = save(self._folders[0], self._baselines[architecture])


@contextmanager
def _without_traceback() -> Iterator[None]:
    """Within this context a file that cannot be read or written fails the test by its message alone."""
    try:
        yield
    except StorageError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
