"""Every printed table in 80 columns: no name is broken, no line is wider, and what is left out is named."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest

from archbench.cli import doctor
from archbench.presentation.quantities import ratio_interval
from archbench.presentation.tables import Column, Table
from archbench.presentation.tables import table as table_of
from archbench.presentation.terminal import WIDE, show
from archbench.regression.verdict_table import Row, row_table
from archbench.report.comparison_tables import cost_table, lost_table, size_table, tuning_table, verdict_table
from archbench.report.kernel_tables import kernel_tables
from archbench.report.ladder_tables import loss_table
from archbench.report.probe_tables import score_table
from archbench.report.run_tables import measurement_table, raw_table, side_by_side, summary_table
from archbench.results.reading import read_results
from archbench.study.comparison_outcome import ComparisonOutcome
from archbench.study.probe_outcome import ProbeOutcome
from archbench.study.scale_outcome import ScaleOutcome
from command_line import archbench

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
RUN = REFERENCE / "20261123T112407-da218d.parquet"
BUILT_IN = ("gated-deltanet", "gemma", "gpt1", "gpt2", "hybrid", "llama", "mamba2", "mistral", "mixtral", "rwkv7")
METRICS = ("first_step_seconds", "validation_bits_per_byte", "model_flops_per_second", "cache_bytes_per_token_measured")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["list"], [*BUILT_IN, "attention", "recurrent"]),
        (["show", "gpt1"], ["embd_dropout", "blocks.*.feed_forward.down", "SelfAttention", "forward FLOP/token"]),
        (["results", RUN], [*METRICS, "8 × 96", "tokens/s"]),
        (["results", RUN, "--raw", "--where", "phase=decode"], ["cache_bytes_per_token_measured", "gpt1"]),
        (["where"], ["architecture gpt1", "gpt1.py"]),
        (["probe", "--list"], ["selective-copying", "memorisation"]),
        (["fsck", "results/reference"], ["configuration", "unverified"]),
    ],
    ids=lambda one: one[0] if isinstance(one, list) and one else "",
)
def test_a_command_breaks_no_name_and_fills_no_more_than_the_terminal(arguments: list[str], names: list[str]) -> None:
    done = archbench(*arguments, cwd=ROOT, env={"COLUMNS": "80"})
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    for name in names:
        assert any(name in line for line in done.stdout.splitlines()), name


def test_an_error_breaks_no_name(tmp_path: Path) -> None:
    folder = f"{'long/' * 11}folder"
    done = archbench("results", folder, cwd=tmp_path, env={"COLUMNS": "80"})
    assert done.returncode == 7
    assert [line for line in done.stderr.splitlines() if len(line) > 80] == []
    assert any(folder in line for line in done.stderr.splitlines())
    assert len(done.stderr.splitlines()) > 1
    piped = archbench("results", folder, cwd=tmp_path)
    assert len(piped.stderr.splitlines()) == 1


@cache
def made(tables: Callable[[], Iterable[Table | None]]) -> list[Table]:
    return [table for table in tables() if table is not None]


def shown(table: Table, columns: int | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    with monkeypatch.context() as patch, io.StringIO() as out:
        if columns is not None:
            patch.setenv("COLUMNS", str(columns))
        patch.setattr("sys.stdout", out)
        show(table)
        return out.getvalue().splitlines()


def comparison() -> ComparisonOutcome:
    return ComparisonOutcome.read(REFERENCE / "compare-nano")


def of_run() -> Iterable[Table | None]:
    frame = read_results(RUN)
    yield from (summary_table(frame), measurement_table(frame), raw_table(frame[frame.phase == "decode"].head(50)))
    yield side_by_side([frame, frame.assign(run_id="b")])


def of_comparison() -> Iterable[Table | None]:
    outcome = comparison()
    yield from (make(outcome) for make in (verdict_table, size_table, cost_table, lost_table, tuning_table))


def of_studies() -> Iterable[Table | None]:
    yield score_table(ProbeOutcome.read(REFERENCE / "probe-mini"))
    yield loss_table(ScaleOutcome.read(REFERENCE / "scale-nano"))


def of_regressions() -> Iterable[Table | None]:
    yield row_table([
        Row("gated-deltanet", "forward_flops_per_token", "FLOP/token", 1e9, 2e9, "FAIL", note="+1,000,000,000"),
        Row("gpt1", "saved_activation_bytes", "byte", 1e9, 1e9, "ok"),
    ])  # fmt: skip


def of_doctor() -> Iterable[Table | None]:
    yield doctor._environment_table(list(doctor._environment("cpu")))
    yield doctor._plugin_table(list(doctor._plugins([])))
    yield doctor._extra_table(list(doctor._extras()))


@pytest.mark.parametrize("tables", [of_run, of_comparison, of_studies, of_regressions, of_doctor])
@pytest.mark.parametrize("columns", [80, 120])
def test_a_table_breaks_no_name_and_names_what_it_leaves_out(
    tables: Callable[[], Iterable[Table | None]], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in made(tables):
        lines = shown(table, columns, monkeypatch)
        assert [line for line in lines if len(line) > columns] == [], table.key
        last = next((place for place, line in enumerate(lines) if line.startswith("Left out")), len(lines))
        left_out = " ".join(lines[last:])
        for index, column in enumerate(table.columns):
            if column.kind in ("name", "code", "verdict", "number") and column.title not in left_out:
                for row in table.rows:
                    assert any(row[index].text in line for line in [*lines, " ".join(lines)]), (
                        table.key,
                        column.title,
                        row[index].text,
                    )


def test_the_name_of_a_group_stands_beside_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["next token after the longest prompt", "training update"]
    columns = [Column("quantity", "text"), Column("architecture", "name"), Column("interval", "name")]
    rows = [(name, who, ratio_interval(1e-12, 1e12)) for name in names for who in ("gpt1", "llama", "mamba2")]
    lines = shown(table_of("costs", "", columns, rows, grouped=1), 49, monkeypatch)
    assert [line.split("  ")[0].strip() for line in lines[1:]] == [
        "next token", "after the", "longest prompt", "training update", "", "",
    ]  # fmt: skip
    assert all("[< 0.001, > 1,000]" in line for line in lines[1:])


@pytest.mark.parametrize("tables", [of_run, of_comparison])
def test_a_pipe_and_wide_have_every_column_and_each_row_in_one_line(
    tables: Callable[[], Iterable[Table | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in made(tables):
        piped = shown(table, None, monkeypatch)
        token = WIDE.set(True)
        try:
            wide = shown(table, 40, monkeypatch)
        finally:
            WIDE.reset(token)
        for row in table.rows:
            cells = [cell.text for cell in row[table.grouped :]]
            for lines in (piped, wide):
                assert any(all(text in line for text in cells) for line in lines), (table.key, cells)


def test_kernel_tables_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    case = {"context_length": 2048, "batch_size": 1, "query_heads": 12, "kv_heads": 4, "head_width": 64, "window": None,
            "model_width": None, "vocab_size": None, "phase": "kernel", "operation": "causal_attention"}  # fmt: skip
    metrics = {"forward_seconds": 0.0123, "backward_seconds": 0.0345, "forward_flops_per_second": 1.23e11,
               "backward_flops_per_second": 2.34e11, "peak_extra_bytes": 123456789.0, "output_error": 1e-7,
               "gradient_error": 1e-6}  # fmt: skip
    rows = [
        {
            **case,
            "attention": backend,
            "context_length": T,
            "metric": metric,
            "value": value * (1 + repeat),
            "repeat": repeat,
        }
        for backend in ("reference", "sdpa")
        for T in (512, 2048)
        for metric, value in metrics.items()
        for repeat in range(4)
    ]
    (table,) = kernel_tables(pd.DataFrame(rows))
    lines = shown(table, 80, monkeypatch)
    assert max(map(len, lines)) <= 80
    assert any("reference" in line for line in lines)


def test_wide_is_an_option_of_commands_that_print_tables() -> None:
    narrow, wide = (archbench("list", *option, cwd=ROOT, env={"COLUMNS": "80"}) for option in ([], ["--wide"]))
    assert "arXiv:2412.06464" not in narrow.stdout
    assert "Left out" in narrow.stdout
    assert "arXiv:2412.06464" in wide.stdout
    assert "Left out" not in wide.stdout


def test_a_suggestion_ends_with_its_question_mark_and_v_is_the_version() -> None:
    done = archbench("showw", cwd=ROOT)
    assert done.returncode == 2
    assert "'show'? See archbench --help." in done.stderr
    assert archbench("-V", cwd=ROOT).stdout == archbench("--version", cwd=ROOT).stdout
