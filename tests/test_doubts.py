"""Bits per byte far below the best compressor's, and an audit that failed, are said wherever the number stands."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archbench import read_results
from archbench.cli.outcomes import print_comparison
from archbench.report.contents import of_evidence, read
from archbench.report.evidence import of_runs
from archbench.report.markdown import markdown
from archbench.report.run_tables import side_by_side
from archbench.results.doubts import doubts
from archbench.results.schema import arrow_schema
from archbench.study.comparison_outcome import ComparisonOutcome
from comparison_files import ARCHITECTURES, edit, write_comparison
from installations import RunCLI

REFERENCE = next((Path(__file__).parents[1] / "results" / "reference").glob("*.parquet"))
"""gpt1's run: 3.17 bits per byte, where bz2 needs 2.588."""


def changed(metric: str, value: float) -> pd.DataFrame:
    """The reference run, with another value of a quality metric; an audit's is added."""
    frame = read_results(REFERENCE)
    if not (frame.metric == metric).any():
        frame = pd.concat([frame, frame[(frame.phase == "quality")].head(1).assign(metric=metric)], ignore_index=True)
    return frame.assign(value=frame.value.where((frame.metric != metric) | (frame.phase != "quality"), value))


@pytest.mark.parametrize(("bits", "believed"), [(2.588, True), (0.7, True), (0.179, False)])
def test_less_than_a_quarter_of_the_best_compressors_is_doubted(bits: float, believed: bool) -> None:
    found = doubts(changed("bits_per_byte", bits))
    assert (found == []) is believed
    assert all(text in line for line in found for text in ("gpt1", f"{bits:.3f}", "bz2, 2.588"))


def test_a_failed_audit_is_doubted() -> None:
    (found,) = doubts(changed("audit_passed", 0.0))
    assert "gpt1's phase quality" in found
    assert doubts(changed("audit_passed", 1.0)) == []


def test_the_doubt_stands_in_the_terminal_and_in_the_tables_and_pages_of_runs(
    cli: RunCLI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from archbench.cli.summary import print_summary

    frame = changed("bits_per_byte", 0.179)
    (doubt,) = doubts(frame)
    pq.write_table(pa.Table.from_pandas(frame, schema=arrow_schema(), preserve_index=False), tmp_path / "run.parquet")
    assert doubt in cli("results", str(tmp_path / "run.parquet")).stdout.replace("\n", " ")
    assert doubt in side_by_side([frame, frame]).notes
    contents = of_evidence(of_runs(frame, ("run.parquet",)))
    assert doubt in contents.tables[0].notes
    assert doubt in markdown([contents], [{}])
    print_summary(frame[frame.metric != "bytes_scored"], str(REFERENCE.parent))  # it has no folder here
    assert " ".join(doubt.split()) in " ".join(capsys.readouterr().out.split())


def test_the_doubt_stands_in_a_comparison_on_every_surface(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_comparison(tmp_path / "comparison", ARCHITECTURES[:2], probes=False, kernels=False)
    assert "doubts" not in ComparisonOutcome.read(folder).as_json(), "an older file has none, and stays as it is"
    edit(folder, doubts=["Not to be believed: 0.179."])
    outcome = ComparisonOutcome.read(folder)
    assert json.loads((folder / "comparison.json").read_text())["doubts"] == outcome.as_json()["doubts"]
    print_comparison(outcome, folder)
    assert "Not to be believed: 0.179." in capsys.readouterr().out
    assert "Not to be believed: 0.179." in markdown(read([str(folder)]), [{}])
