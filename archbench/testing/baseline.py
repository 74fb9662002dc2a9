"""``--archbench-baseline``: what a pytest session measures of an architecture, saved or compared."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from archbench.errors import StorageError
from archbench.plugin.discovery import plugin_paths
from archbench.regression.baselines import Baseline, Key, key, missing, others, read, save
from archbench.regression.benchmark import Subject
from archbench.regression.comparison import Plan, compare_saved, levels_of
from archbench.regression.report import COLUMNS, as_json, cells, conclusion, markdown, write_summary
from archbench.regression.sides import Request, Side
from archbench.regression.verdicts import Row, exact_rows

WIDTH = 160


class BaselineSession:
    """One session's measurements, and its table.

    Attributes:
        mode: ``save``, ``compare``, or None: benchmarks that are compared with nothing.
        rows: what was compared.
    """

    def __init__(self, config: pytest.Config) -> None:
        option = config.getoption
        self.mode: str | None = option("archbench_baseline")
        self.device: str = option("archbench_device")
        self.folder = Path(config.rootpath, option("archbench_baseline_dir"))
        self.rows: list[Row] = []
        self.saved: dict[str, Path] = {}
        self._required: bool = option("require_baseline")
        self._judged = self.device == "cpu" or bool(option("archbench_exclusive"))
        self._report_file: str | None = option("archbench_report")
        self._plugins = plugin_paths(option("archbench_plugin"))
        self._preset: str = option("archbench_preset") or "nano"
        rounds = option("archbench_rounds")
        self._plan = Plan(rounds=rounds, max_rounds=2 * rounds)
        self._baselines: dict[str, Baseline] = {}
        self._timed: dict[str, dict[str, Row]] = {}
        self._subjects: dict[str, Subject] = {}

    @property
    def key(self) -> Key:
        """Of this machine, at these options."""
        return key(self.device, preset=self._preset)

    def subject(self, architecture: str) -> Subject:
        """The architecture, loaded once in this process."""
        if architecture not in self._subjects:
            self._subjects[architecture] = Subject.load(architecture, self._plugins, self._preset)
        return self._subjects[architecture]

    def exact(self, architecture: str, costs: dict[str, float | None]) -> list[Row]:
        """Counts, saved or compared."""
        if self.mode == "save":
            self._baseline(architecture).exact = costs
            self._save(architecture)
            return []
        if self.mode is None:
            return []
        baseline = read(self.folder, self.key, architecture)
        rows = exact_rows(architecture, None if baseline is None or not baseline.exact else baseline.exact, costs)
        return self._kept(architecture, rows)

    def timed(self, architecture: str, metric: str) -> list[Row]:
        """A time, saved or compared; fresh processes measure all three times when the first is asked for."""
        if self.mode is None:
            return []
        side = Side(architecture, Request([architecture], self._plugins, self._preset, {}, self.device))
        if self.mode == "save":
            baseline = self._baseline(architecture)
            if not baseline.timed:
                baseline.timed = {metric: levels for (_, metric), levels in levels_of(side, self._plan).items()}
                self._save(architecture)
            return []
        if architecture not in self._timed:
            saved = read(self.folder, self.key, architecture)
            base = {} if saved is None else saved.timed
            rows = compare_saved(base, side, self._plan, architecture, judged=self._judged)
            self._timed[architecture] = {row.metric: row for row in rows}
        return self._kept(architecture, [self._timed[architecture][metric]])

    def check(self, rows: list[Row]) -> None:
        """Fail the test that these are of, if one of them is a failure."""
        bad = [row for row in rows if row.verdict == "FAIL" or (row.verdict == "NEW" and self._required)]
        if bad:
            lines = ["  ".join(filter(None, cells(row))) for row in bad]
            pytest.fail("\n".join(lines), pytrace=False)

    def report(self, terminal: pytest.TerminalReporter) -> None:
        """The table, the job's summary, the JSON file, and what was saved where."""
        for architecture, path in self.saved.items():
            terminal.write_line(f"baseline of {architecture}: {path}")
        if self.mode != "compare":
            return
        from rich.console import Console
        from rich.table import Table

        made = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold")
        for row in self.rows:
            made.add_row(*cells(row))
        text = io.StringIO()
        Console(file=text, width=WIDTH, markup=False, highlight=False).print(made)
        terminal.section("archbench: compared with the baseline")
        terminal.write_line(text.getvalue().rstrip())
        terminal.write_line(f"{conclusion(self.rows)}.")
        write_summary(markdown(self.rows, "archbench: compared with the baseline", conclusion(self.rows)))
        if self._report_file:
            lines = [as_json(row) for row in self.rows]
            Path(self._report_file).write_text(json.dumps(lines, indent=1, ensure_ascii=False) + "\n")

    def _kept(self, architecture: str, rows: list[Row]) -> list[Row]:
        if any(row.verdict == "NEW" for row in rows) and read(self.folder, self.key, architecture) is None:
            why = missing(others(self.folder, self.key, architecture))
            rows = [replace(row, note=f"no baseline of this machine: {why}") for row in rows]
        self.rows += rows
        return rows

    def _baseline(self, architecture: str) -> Baseline:
        if architecture not in self._baselines:
            found = self.subject(architecture).architecture
            self._baselines[architecture] = Baseline(self.key, architecture, f"{found.package} {found.version}")
        return self._baselines[architecture]

    def _save(self, architecture: str) -> None:
        try:
            self.saved[architecture] = save(self.folder, self._baselines[architecture])
        except StorageError as error:
            pytest.fail(str(error), pytrace=False)
