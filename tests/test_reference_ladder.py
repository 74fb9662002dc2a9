"""The reference ladder: the documentation, ``scale.json`` and the rows say the same, and its page can be made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import archbench
from archbench.report.ladder_tables import loss_table
from archbench.report.ladder_texts import law_sentences
from archbench.study.law import fit
from archbench.study.scale_outcome import ScaleOutcome
from installations import RunCLI

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "reference" / "scale-nano"


def test_it_has_at_least_twelve_points_of_gpt1_and_llama_each_that_are_those_of_the_rows() -> None:
    rows = archbench.read_results(FOLDER / "runs.parquet")
    losses = rows[(rows.phase == "quality") & (rows.metric == "loss")].set_index("run_id").value
    cells = json.loads((FOLDER / "scale.json").read_text())["cells"]
    ladder = ScaleOutcome.read(FOLDER)
    assert ladder.names == ("gpt1", "llama")
    for finding in ladder.findings:
        measured = {
            (cell["tokens"], cell["learning_rate"]): losses[cell["run_id"]]
            for cell in cells
            if cell["stage"] == "point" and cell["architecture"] == finding.architecture
        }
        assert len(finding.points) >= 12
        for point in finding.points:
            assert measured[point.budget, point.learning_rate] == point.loss


@pytest.mark.slow
def test_its_laws_are_had_again_from_its_points() -> None:
    for finding in ScaleOutcome.read(FOLDER).findings:
        largest = max(point.size for point in finding.points)
        assert finding.held_out is not None
        smaller = [point for point in finding.points if point.size < largest]
        for fitted, points in ((finding.fitted, finding.points), (finding.held_out.fitted, smaller)):
            assert fitted is not None
            again = fit([point.N for point in points], [point.D for point in points], [point.loss for point in points])
            assert again.converged
            assert again.objective == pytest.approx(fitted.objective, rel=1e-6)
            assert again.law.alpha == pytest.approx(fitted.law.alpha, rel=1e-3)
            assert again.law.beta == pytest.approx(fitted.law.beta, rel=1e-3)


def test_the_documentation_has_every_loss_and_every_sentence_of_it() -> None:
    text = (ROOT / "docs" / "explanation" / "scale.md").read_text()
    ladder = ScaleOutcome.read(FOLDER)
    for row in loss_table(ladder).rows:
        assert f"| `{row[0].text}` | {' | '.join(cell.text for cell in row[1:])} |" in text
    flowing = " ".join(text.replace("> ", "").split())
    for sentence in law_sentences(ladder):
        assert sentence in flowing
    assert ladder.command in text


@pytest.mark.slow
def test_its_page_has_the_figures(cli: RunCLI, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = cli("report", FOLDER, "-o", page, "--md", tmp_path / "page.md", "--png", tmp_path / "png")
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    for title in ("Loss against parameters", "Loss against training tokens", "Loss against compute"):
        assert title in text
    assert {file.stem for file in (tmp_path / "png").iterdir()} == {"size", "tokens", "compute"}
