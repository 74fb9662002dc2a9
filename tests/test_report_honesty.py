"""Every page, table and figure says what its numbers rest on: samples, spread, disturbance, checks; the best leads."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from archbench.presentation.tables import Table
from archbench.report.basis import basis, basis_of
from archbench.report.contents import Contents, read
from archbench.report.run_tables import measurement_table, run_table, side_by_side, summary_table
from archbench.report.vega import chart
from archbench.results.reading import read_results

REFERENCE = Path(__file__).parent.parent / "results" / "reference"
(RUN,) = REFERENCE.glob("*.parquet")
PAGES = ("compare-nano", "scale-nano", "probe-mini", RUN.name)


@pytest.fixture(scope="module")
def pages() -> dict[str, Contents]:
    return {name: read([str(REFERENCE / name)])[0] for name in PAGES}


@pytest.fixture
def frame() -> pd.DataFrame:
    frame = read_results(RUN)
    return frame.assign(name=frame.architecture)


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_and_table_of_numbers_says_samples_disturbance_and_checks(
    pages: dict[str, Contents], name: str
) -> None:
    page = pages[name]
    assert page.figures
    said = {figure.key: figure.basis for figure in page.figures}
    said |= {table.key: table.notes for table in page.tables if table.key != "lost"}
    for key, sentences in said.items():
        text = " ".join(sentences)
        assert "From " in text or "Number of runs" in text, key
        assert "other work" in text.lower(), key
        assert "conformance" in text.lower(), key


def test_contamination_is_told_by_the_number_of_runs(frame: pd.DataFrame) -> None:
    runs = [frame.assign(run_id=f"run {number}", contaminated=number < 2) for number in range(3)]
    text = " ".join(basis(pd.concat(runs)))
    assert "From 3 runs" in text
    assert "2 of 3 runs" in text
    assert "No other work" in " ".join(basis(frame))
    assert "not recorded" in " ".join(basis(frame.assign(contaminated=pd.NA)))


def test_checks_that_were_left_out_are_told_by_name(frame: pd.DataFrame) -> None:
    other = frame.assign(name="other", conformance="unchecked", run_id="another")
    text = " ".join(basis(pd.concat([frame, other])))
    assert "left out (other)" in text
    assert "level 1 were passed (gpt1)" in text


def test_tables_of_runs_mark_what_was_disturbed_and_count_samples(frame: pd.DataFrame) -> None:
    frame = frame.assign(contaminated=frame.phase == "decode")
    for table in (measurement_table(frame), summary_table(frame)):
        titles = [column.title for column in table.columns]
        marked = {row[0].text for row in table.rows if "contaminated" in row[-1].text or row[0].text.endswith("*")}
        assert {phase.removesuffix(" *") for phase in marked} == {"decode"}
        counts = {row[titles.index("n")].value for row in table.rows}
        assert max(value for value in counts if isinstance(value, int)) > 100
    assert "contaminated" in " ".join(summary_table(frame).notes)
    assert not summary_table(frame.assign(contaminated=frame.phase == "quality")).notes
    notes = " ".join(side_by_side([frame, frame.assign(run_id="b")]).notes)
    assert "1 runs" not in notes
    assert "disturbed every run" in notes


def cells(table: Table, title: str) -> list[object]:
    index = [column.title for column in table.columns].index(title)
    return [row[index].value for row in table.rows]


def test_the_best_leads_and_the_baseline_is_marked(pages: dict[str, Contents]) -> None:
    verdict, sizes, matrix, costs, *_ = pages["compare-nano"].tables
    for table in (verdict, sizes, matrix):
        scores = [score for score in cells(table, "bits per byte") if isinstance(score, float)]
        assert scores == sorted(scores)
    assert [row[0].text for row in sizes.rows if "baseline" in row[0].text] == ["gpt1 (baseline)"]
    first = costs.rows[0][0].text
    medians = [row[2].value for row in costs.rows if row[0].text == first]
    assert medians == sorted(medians)  # type: ignore[type-var]


def test_costs_are_multiples_of_the_lowest_and_grey_where_the_baseline_differs_as_much_from_itself(
    pages: dict[str, Contents],
) -> None:
    outcome = json.loads((REFERENCE / "compare-nano" / "comparison.json").read_text())
    matrix = next(table for table in pages["compare-nano"].tables if table.key == "matrix")
    metrics = list(dict.fromkeys(row["label"] for row in outcome["costs"]))
    assert [column.title for column in matrix.columns[2:]] == metrics
    for index, label in enumerate(metrics, start=2):
        own = {row["architecture"]: row for row in outcome["costs"] if row["label"] == label}
        lowest = min(row["value"] for row in own.values())
        for line in matrix.rows:
            row, cell = own[str(line[0].value)], line[index]
            assert cell.value == pytest.approx(row["value"] / lowest)
            floor = [row["floor_low"], row["floor_high"]]
            alike = None not in floor and 1 < row["value"] / lowest <= max(floor[1], 1 / floor[0])
            assert (cell.look == "noise") == alike == ("≈" in cell.text), (label, line[0].text)
    looks = {cell.look for line in matrix.rows for cell in line[2:]}
    assert {"noise", "lowest"} < looks  # and shades


def test_two_lengths_have_error_bars_and_no_line(pages: dict[str, Contents]) -> None:
    context = next(figure for figure in pages[RUN.name].figures if figure.key == "context")
    decoding = context.panels[0].series[0]
    assert decoding.drawn == "points"
    for low, middle, high in zip(decoding.low, decoding.y, decoding.high, strict=True):
        assert low < middle < high
    assert all("sample" in note for note in decoding.notes)


def test_the_times_of_a_comparison_have_error_bars(pages: dict[str, Contents]) -> None:
    context = next(figure for figure in pages["compare-nano"].figures if figure.key == "context")
    assert all(len(series.low) == len(series.x) for series in context.panels[0].series)


def test_guessing_is_pale_and_chance_stands_beside_every_row(pages: dict[str, Contents]) -> None:
    figure = next(figure for figure in pages["probe-mini"].figures if figure.key == "probes")
    spec = chart(figure.panels[0], height=500)
    rows = spec["data"]["values"]
    parity = [row["value"] for row in rows if row["row"] == "state-parity, length 32"]
    assert len(parity) == 5
    assert max(parity) < 0.05
    axis = spec["encoding"]["y"]["axis"]
    assert axis["labelOverlap"] is False
    assert '"state-parity, length 32": "chance 0.5"' in axis["labelExpr"]
    assert len({row["row"] for row in rows}) == 16


def test_a_probe_says_what_was_matched(pages: dict[str, Contents]) -> None:
    verdict = pages["probe-mini"].verdict
    assert verdict is not None
    assert "100,000 non-embedding active parameters within 2 %" in " ".join(verdict.matched)


def test_an_architecture_has_one_look_on_every_page(pages: dict[str, Contents]) -> None:
    looks: dict[str, set[object]] = {}
    for page in pages.values():
        for name, style in page.styles.items():
            looks.setdefault(name, set()).add(style)
    assert len(looks) >= 10
    assert all(len(found) == 1 for found in looks.values())


def test_a_law_without_a_floor_is_never_zero_with_an_interval_of_nothing(pages: dict[str, Contents]) -> None:
    page = pages["scale-nano"]
    laws = page.tables[0]
    titles = [column.title for column in laws.columns]
    for row in laws.rows:
        if not row[titles.index("E")].value:
            assert row[titles.index("E")].text == "no floor found"
            assert "[0.000" not in row[titles.index("E") + 1].text
    assert page.verdict is not None
    assert page.verdict.headline.count("at most") == 2


def test_the_table_of_runs_leads_with_the_best_of_a_text() -> None:
    from archbench.report.evidence import of_runs

    rows = read_results(REFERENCE / "compare-nano" / "runs.parquet", where={"phase": "quality"})
    made = run_table(of_runs(rows, ("here",)))
    assert made is not None
    scores = [score for score in cells(made, "bits per byte") if isinstance(score, float)]
    assert scores == sorted(scores)


def test_a_table_of_learning_rates_rests_on_the_trials() -> None:
    rows = read_results(REFERENCE / "compare-nano" / "runs.parquet", trials=True)
    trials = rows[(rows.role == "trial") & (rows.architecture == "gpt1")].run_id.nunique()
    text = " ".join(basis_of("tuning", rows.assign(name=rows.architecture)))
    assert f"gpt1 {trials}" in text or f"From {trials} runs" in text
    assert "other work" in text
