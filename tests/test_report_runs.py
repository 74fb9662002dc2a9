"""Pages of runs without a comparison: one run in full, beside limits and references; several by date and difference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archbench.errors import StorageError
from archbench.presentation.tables import Table
from archbench.report.contents import Contents, read
from archbench.report.figures import Figure, data_of
from archbench.report.run_limits import peaks_in
from archbench.results.reading import read_results
from archbench.results.schema import arrow_schema
from command_line import archbench

REFERENCES = Path(__file__).parent.parent / "results" / "reference"
(RUN,) = REFERENCES.glob("*.parquet")
PEAKS = {"matrix product, float32": 4e11, "memory bandwidth": 2e10}


def copied(folder: Path, name: str, training: Mapping[str, Any] | None = None, **columns: Any) -> Path:
    """The reference run under another name, with other columns and another configuration of its training."""
    rows = read_results(RUN).assign(run_id=name, **columns)
    folder.mkdir(exist_ok=True)
    table = pa.Table.from_pandas(rows, schema=arrow_schema(), preserve_index=False)
    pq.write_table(table.replace_schema_metadata(arrow_schema().metadata), folder / f"{name}.parquet")
    content = json.loads(RUN.with_suffix(".json").read_text())
    content["run"]["training"] |= training or {}
    described = {key: content[key] for key in ("run", "model")}
    (folder / f"{name}.json").write_text(json.dumps(described))
    return folder / f"{name}.parquet"


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return read_results(RUN)


@pytest.fixture(scope="module")
def alone() -> Contents:
    (part,) = read([str(RUN)], peaks=PEAKS)
    return part


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    folder = tmp_path_factory.mktemp("runs")
    rows = read_results(RUN)
    worse = rows.value.where(rows.metric != "bits_per_byte", 1.01 * rows.value)
    for day, rate, values in ((1, 0.001, rows.value), (2, 0.002, rows.value), (4, 0.002, worse)):
        when = pd.Timestamp(f"2026-11-{day:02}T12:00:00Z")
        run, revision = f"2026110{day}T120000-00000{day}", f"{day}" * 40
        copied(folder, run, {"learning_rate": rate}, time_utc=when, git_revision=revision, value=values)
    (part,) = read([str(folder)])
    return part


def table_of(part: Contents, key: str) -> Table:
    return next(table for table in part.tables if table.key == key)


def figure_of(part: Contents, key: str) -> Figure:
    return next(figure for figure in part.figures if figure.key == key)


def median(rows: pd.DataFrame, phase: str, metric: str, **case: int) -> float:
    own = rows[(rows.phase == phase) & (rows.metric == metric)]
    for column, value in case.items():
        own = own[own[column] == value]
    return float(own.value.median())


SEVERAL = "do not compare across them"


def test_runs_of_several_machines_say_so_on_the_page_and_in_the_terminal(tmp_path: Path, rows: pd.DataFrame) -> None:
    (device,) = set(rows.device_name)
    mine, other = {"host": "node1", "driver": "570.1"}, {"device_name": "A GPU", "host": "node1", "driver": "570.1"}
    for name, machines, said in (
        ("same", [{}, mine, mine], None),  # an earlier version did not say the host
        ("hosts", [mine, {**mine, "host": "node2"}], f"2 machines: {device} on 2 hosts."),
        ("devices", [mine, other], f"several devices or drivers: A GPU, {device}."),
        ("drivers", [mine, {**mine, "driver": "575.2"}], f"{device} with drivers 570.1 and 575.2."),
    ):
        folder = tmp_path / name
        for number, columns in enumerate(machines):
            copied(folder, f"2026112{number}T000000-abcdef", **columns)
        (part,) = read([str(folder)])
        table = " ".join(table_of(part, "runs").notes)
        printed = " ".join(archbench("results", folder, cwd=tmp_path).stdout.split())
        for text in (table, " ".join(part.limits), printed):
            assert (SEVERAL in text) == (said is not None), name
            assert said is None or said in text
        assert "node1" not in table, "a page may be published"


def test_one_run_says_in_a_sentence_what_it_reached(alone: Contents) -> None:
    assert alone.title == "gpt1, nano, seed 0"
    for number in ("2.5008 bits per byte of shakespeare", "1.00 M tokens", "15,788 tokens/s", "56% of the measured"):
        assert number in alone.said


def test_one_run_stands_beside_the_peaks_of_its_machine(alone: Contents, rows: pd.DataFrame) -> None:
    lines = {(line[0].text, line[2].text): line for line in table_of(alone, "limits").rows}
    own = lines["training", "matrix product of this run, float32"]
    assert own[4].value == pytest.approx(median(rows, "train", "mfu"))
    doctor = lines["training", "matrix product of archbench doctor, float32"]
    assert doctor[4].value == pytest.approx(median(rows, "train", "model_flops_per_second") / 4e11)
    case = {"batch_size": 8, "prompt_length": 96}
    read_a_step = 4 * rows.parameters.max() + median(rows, "decode", "cache_bytes", **case)
    decoding = lines["decoding after 96 tokens × 8", "memory bandwidth"]
    assert decoding[4].value == pytest.approx(read_a_step / median(rows, "decode", "seconds_per_token", **case) / 2e10)


def test_peaks_are_those_that_doctor_prints_and_a_file_without_them_is_named(tmp_path: Path) -> None:
    lines = [
        {"kind": "environment", "device": "cpu"},
        *({"kind": "peak", "what": what, "measured": value, "published": None} for what, value in PEAKS.items()),
        {"kind": "peak", "what": "matrix product, float16", "measured": None, "published": None},
    ]
    file = tmp_path / "peaks.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert peaks_in(file) == PEAKS
    file.write_text(json.dumps(lines[0]))
    with pytest.raises(StorageError) as caught:
        peaks_in(file)
    assert caught.value.culprit == str(file)


def test_memory_of_each_phase_is_split_into_what_was_there_and_what_is_new(alone: Contents, rows: pd.DataFrame) -> None:
    lines = {line[0].text: [cell.value for cell in line[1:4]] for line in table_of(alone, "memory").rows}
    start, peak = (median(rows, "train", f"{what}_memory_bytes") for what in ("baseline", "peak"))
    assert lines["train"] == [start, peak - start, peak]


def test_every_sample_of_every_time_is_drawn(alone: Contents, rows: pd.DataFrame) -> None:
    columns, points = data_of(figure_of(alone, "samples"))
    part = columns.index("part")
    timed = rows[rows.metric.isin(["seconds_to_first_token", "seconds_per_token"])]
    assert sum(point[part] == "update" for point in points) == (rows.metric == "step_seconds").sum()
    assert sum(point[part] == "sample" for point in points) == len(timed)


def test_the_loss_of_one_run_has_the_spread_of_the_updates_that_a_point_averages(alone: Contents) -> None:
    (curve,) = figure_of(alone, "loss").panels[0].series
    assert len(curve.low) == len(curve.y)
    assert all(low < y < high for low, y, high in zip(curve.low, curve.y, curve.high, strict=True))


def test_a_run_stands_beside_the_reference_of_its_kind_and_of_no_other(tmp_path: Path, rows: pd.DataFrame) -> None:
    slower = rows.value.where(rows.metric != "step_seconds", 2 * rows.value)
    (part,) = read([str(copied(tmp_path, "20261128T000000-abcdef", value=slower))], references=REFERENCES)
    lines = {line[0].text: line for line in table_of(part, "reference").rows if line[1].text == ""}
    assert lines["training update"][5].value == pytest.approx(2)
    assert lines["bits per byte"][5].value == pytest.approx(1)
    assert RUN.stem in " ".join(table_of(part, "reference").notes)
    longer = copied(tmp_path, "20261128T000001-abcdef", tokens_seen=2 * rows.tokens_seen)
    (part,) = read([str(longer)], references=REFERENCES)
    assert "a reference run of the same kind" in part.missing


def test_several_runs_have_a_history_by_date_with_their_revisions(history: Contents) -> None:
    figure = figure_of(history, "history")
    series = [one for panel in figure.panels for one in panel.series if panel.title == "bits per byte"]
    points = sorted((x, y, note) for one in series for x, y, note in zip(one.x, one.y, one.notes, strict=True))
    days = [pd.Timestamp(x, unit="s", tz="UTC").day for x, *_ in points]
    assert days == [1, 2, 4]
    assert [note.split(",")[0] for *_, note in points] == [f"git {str(day) * 12}" for day in days]


def test_several_runs_show_the_fields_that_differ_and_no_others(history: Contents) -> None:
    table = table_of(history, "differences")
    lines = {line[0].text: [cell.text for cell in line[1:]] for line in table.rows}
    assert lines["training.learning_rate"] == ["0.002", "0.002", "0.001"]  # the newest first
    assert [revision[0] for revision in lines["git_revision"]] == ["4", "2", "1"]
    numbers = {"bits per byte", "training update", "peak memory of training"}
    assert set(lines) == {"training.learning_rate", "git_revision", *numbers}
    assert lines["bits per byte"] == [
        "2.5258 bit/byte (+1.00\u00a0%)",
        "2.5008 bit/byte (+0.00\u00a0%)",
        "2.5008 bit/byte",
    ]


def test_a_damaged_configuration_is_a_difference_and_no_error(tmp_path: Path) -> None:
    for number in range(2):
        run = copied(tmp_path, f"20261128T000000-00000{number}")
    run.with_suffix(".json").write_text("{")
    (part,) = read([str(tmp_path)])
    lines = {line[0].text: [cell.text for cell in line[1:]] for line in table_of(part, "differences").rows}
    assert sorted(lines["configuration"]) == ["its file is damaged", "–"]


KINDS = ("scale-nano", "probe-mini", RUN.name, "gpt1-revisions", "kernels-cpu", "regressions.jsonl")
"""Of the comparison, whose page takes longest to read, tests/test_report.py says it."""


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_page_says_what_it_does_not_show(name: str) -> None:
    (part,) = read([str(REFERENCES / name)])
    limits = part.limits if part.verdict is None else part.verdict.limits
    assert len(limits) >= 2


def test_what_every_run_shares_is_said_once_and_needs_no_column(history: Contents) -> None:
    made = table_of(history, "runs")
    assert not {"preset", "corpus", "outcome"} & {column.title for column in made.columns}
    assert "corpus shakespeare" in made.notes[0]


def test_losses_share_a_panel_and_each_panel_has_the_lengths_of_its_own_points() -> None:
    (part,) = read([str(REFERENCES / "kernels-cpu")])
    *_, losses = (panel for panel in figure_of(part, "kernels").panels if "loss" in panel.title)
    assert {one.name for one in losses.series} == {"cross_entropy", "linear_cross_entropy"}
    assert losses.x.ticks == tuple({x for one in losses.series for x in one.x})
    assert [one.key for one in part.tables] == ["attention", "losses"]
    (why,) = (limit for limit in part.limits if limit.startswith("Not measured: triton"))
    assert "only on NVIDIA and AMD GPUs" in why, "the reason itself, not the name of a file that has it"
    assert part.limits.count(why) == 1
