"""A table reads the same in the terminal, as Markdown and on the page; a narrow terminal names what it leaves out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from archbench.presentation.quantities import ABSENT, spread
from archbench.presentation.tables import Cell, Column, Table, markdown, table
from archbench.presentation.terminal import show
from archbench.report.comparison_tables import cost_table, size_table, verdict_table
from archbench.study.comparison_outcome import ComparisonOutcome

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "compare-nano"


def small() -> Table:
    columns = (
        Column("task", "text"), Column("name", "name"), Column("time", unit="s"),
        Column("interval", show="[{:.1f}, {:.1f}]".format, priority=2), Column("p", show="{:.3f}".format, priority=1),
    )  # fmt: skip
    rows = [("recall", "gpt1", 0.0041, (1.0, 2.0), 0.04), ("recall", "llama", None, (2.0, 3.0), Cell("-", None))]
    return table("small", "Small", columns, rows, notes=["A note."], grouped=1)


def test_values_are_shown_by_unit_and_kept_beside_the_text() -> None:
    first, second = small().rows
    assert first == (
        Cell("recall", "recall"), Cell("gpt1", "gpt1"), Cell("4.10 ms", 0.0041), Cell("[1.0, 2.0]", 1.0),
        Cell("0.040", 0.04),
    )  # fmt: skip
    assert second[2] == Cell(ABSENT, None)


def test_a_narrow_terminal_leaves_out_columns_by_priority_and_names_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "38")
    show(small())
    shown = capsys.readouterr().out
    assert "0.040" in shown
    assert "[1.0, 2.0]" not in shown
    assert re.search("Left out.*: interval$", shown, re.MULTILINE | re.DOTALL)


def test_numbers_are_never_cut_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    show(small())
    assert "4.10 ms" in capsys.readouterr().out


def test_equal_neighbours_are_shown_once_in_a_terminal_and_always_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    show(small())
    assert capsys.readouterr().out.count("recall") == 1
    assert "\n".join(markdown(small())).count("recall") == 2


@pytest.mark.parametrize("build", [verdict_table, size_table, cost_table])
def test_a_pipe_has_every_cell_that_markdown_has(build: object, capsys: pytest.CaptureFixture[str]) -> None:
    made = build(ComparisonOutcome.read(REFERENCE))  # type: ignore[operator]
    show(made)
    shown = capsys.readouterr().out
    assert {cell.text for row in made.rows for cell in row} <= {
        part for line in shown.splitlines() for part in re.split(r"\s{2,}", line)
    }


def test_the_unit_of_a_range_is_said_once_where_it_is_the_same() -> None:
    assert spread(0.002, 0.004, "s") == "2 – 4 ms"
    assert spread(0.0009, 0.004, "s") == "900 µs – 4 ms"
