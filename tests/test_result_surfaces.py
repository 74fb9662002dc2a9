"""One number on every surface: the committed comparison's page, Markdown, terminal, JSON and rows, by each recipe."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from archbench.cli.outcomes import print_comparison
from archbench.report.contents import read
from archbench.report.markdown import markdown
from archbench.study.comparison_outcome import ComparisonOutcome

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results" / "reference" / "compare-nano"
RECIPES = re.findall(r"```python\n(.*?)```", (ROOT / "results" / "README.md").read_text(), flags=re.DOTALL)


@pytest.fixture
def _at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)


def recipe(module: str) -> dict[str, Any]:
    """The variables of the one recipe of the data dictionary that imports ``module``, run as it stands."""
    pytest.importorskip(module, reason=f"no {module} (pip install 'archbench[test]')")
    (code,) = (code for code in RECIPES if f"import {module}\n" in code or (module == "pandas" and "table = s" in code))
    variables: dict[str, Any] = {}
    exec(code, variables)  # as a reader does
    return variables


def shown(text: str) -> dict[str, str]:
    """First word of each line -> the line, of lines with a number of three decimals; the first of each word."""
    lines = [line for line in text.splitlines() if re.search(r"\d\.\d{3}", line)]
    return {words[0].strip("`*|"): line for line in reversed(lines) if (words := line.strip("| │").split())}


@pytest.mark.usefixtures("_at_the_root")
def test_bits_per_byte_are_the_same_on_page_markdown_terminal_json_and_by_recipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = {row["architecture"]: row for row in json.loads((FOLDER / "comparison.json").read_text())["quality"]}
    print_comparison(ComparisonOutcome.read(FOLDER), FOLDER)
    rows = re.findall(r"<tr>(.*?)</tr>", (FOLDER / "report.html").read_text(), flags=re.DOTALL)
    page = "\n".join(" ".join(html.unescape(re.sub(r"<[^>]*>", " ", row)).split()) for row in rows)
    surfaces = {
        "terminal": shown(capsys.readouterr().out),
        "page": shown(page),
        "Markdown": shown(markdown(read([str(FOLDER)]), [{}])),
    }
    by_pandas = recipe("pandas")["table"]
    assert set(by_pandas.index) == set(said)
    for name, row in said.items():
        for where, lines in surfaces.items():
            numbers = re.findall(r"\d+\.\d{3,}", lines[name])
            assert any(number == f"{row['bits_per_byte']:.{len(number) - 2}f}" for number in numbers), where
        assert by_pandas["mean"][name] == pytest.approx(row["bits_per_byte"], rel=1e-12)
        assert by_pandas["std"][name] == pytest.approx(row["sd"], rel=1e-9)
        assert by_pandas["count"][name] == row["seeds"]
    assert list(by_pandas.index) == sorted(said, key=lambda name: said[name]["bits_per_byte"])


@pytest.mark.usefixtures("_at_the_root")
def test_the_recipe_for_duckdb_gives_what_the_one_for_pandas_gives() -> None:
    table = recipe("duckdb")["table"].df().set_index("architecture")
    expected = recipe("pandas")["table"]
    assert list(table.index) == list(expected.index)
    for column in expected.columns:
        assert table[column].to_list() == pytest.approx(expected[column].to_list(), rel=1e-12)


@pytest.mark.usefixtures("_at_the_root")
def test_the_recipe_for_a_plot_draws_every_architecture() -> None:
    curves = recipe("vl_convert")["curves"]
    drawing = Path("curves.svg").read_text()
    assert curves.architecture.nunique() == 10
    assert all(f">{name}<" in drawing for name in curves.architecture.unique())
