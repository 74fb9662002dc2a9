"""``archbench kernels`` leaves one whole run and says what it means; bad input is one paragraph and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from archbench import read_results
from archbench.errors import UsageError
from command_line import archbench
from forked_children import ForkedCommand
from installations import RunCLI

pytest.importorskip("vl_convert", reason="needs archbench[plot]")

SMALL = [
    "kernels", "--device", "cpu", "--lengths", "32,64", "--heads", "4", "--head-widths", "16,32", "--groups", "1,2",
    "--windows", "none,8", "--backends", "triton,sdpa,reference", "--losses", "64x32x128",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("kernels")
    done = archbench(*SMALL, "--plot", "plot.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def frame(finished: tuple[Path, object]) -> pd.DataFrame:
    return read_results(finished[0] / "results")


def test_one_run_is_one_file_with_its_configuration_beside_it(finished: tuple[Path, object]) -> None:
    parquet, settings = sorted((finished[0] / "results").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert (parquet.suffix, settings.suffix) == (".parquet", ".json")
    assert parquet.stem == settings.stem
    content = json.loads(settings.read_text())
    assert content["kernel"]["lengths"] == [32, 64]
    assert {(one["candidate"], one["what"]) for one in content["facts"]["left_out"]} == {
        ("triton", "forward and backward")
    }


def test_every_case_and_repeat_is_a_row_and_none_is_lost(frame: pd.DataFrame) -> None:
    samples = frame[frame.metric == "forward_seconds"]
    attention = samples[samples.operation == "causal_attention"]
    keys = ["context_length", "kv_heads", "head_width", "window", "attention"]
    counts = attention[attention.attention != "triton"].groupby(keys, dropna=False).value.count()
    assert len(counts) == 2 * 2 * 2 * 2 * 2
    assert set(counts) == {10}
    absent = attention[attention.attention == "triton"]
    assert len(absent) == 16
    assert absent.value.isna().all()
    losses = samples[samples.operation != "causal_attention"]
    assert losses.groupby("operation").value.count().to_dict() == {"cross_entropy": 10, "linear_cross_entropy": 10}
    assert losses.attention.isna().all()


def test_what_ran_is_in_every_row(frame: pd.DataFrame) -> None:
    assert set(frame.phase) == {"kernel", "environment"}
    assert set(frame.architecture) == {"none"}
    assert frame.contaminated.notna().all()
    assert set(frame.torch_version) == {torch.__version__}
    assert set(frame["dtype"]) == {"float32"}


def test_the_table_says_how_flops_are_counted_and_what_did_not_run(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    stdout, stderr = finished[1].stdout, finished[1].stderr
    assert "causal counts half" in stdout
    assert "triton, forward and backward (16 cases)" in stdout
    for heading in ("forward", "backward", "TFLOP/s", "memory", "gradient error", "linear_cross_entropy"):
        assert heading in stdout
    assert stderr.count("attention B 1") == 16


def test_the_plot_is_a_picture(finished: tuple[Path, object]) -> None:
    content = (finished[0] / "plot.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000
    assert [path.name for path in finished[0].iterdir() if path.name.startswith(".")] == []


def test_results_shows_the_run_as_the_same_tables(finished: tuple[Path, object], cli: RunCLI, tmp_path: Path) -> None:
    shown = cli("results", finished[0] / "results").stdout
    assert "kernels · " in shown.splitlines()[0]
    assert "linear_cross_entropy" in shown
    assert "causal counts half" in shown
    assert "triton, forward and backward (16 cases): the Triton kernel runs only on NVIDIA and AMD GPUs" in shown
    (file,) = (finished[0] / "results").glob("*.json")
    alone = shutil.copy(file.with_suffix(".parquet"), tmp_path)
    assert f"triton, forward (16 cases): without {file.name} " in cli("results", alone).stdout
    chosen = cli(
        "results", finished[0] / "results", "--where", "attention=sdpa", "--where", "metric=output_error", "--raw"
    ).stdout
    assert len(chosen.splitlines()) == 1 + 16
    assert "sdpa T 32 B 1 H 4 G 2 D 16 W 8" in chosen


def test_results_older_than_the_kernel_columns_are_still_read() -> None:
    frame = read_results(Path(__file__).with_name("results_of_version_1"))
    assert set(frame.schema_version) == {1}
    assert frame[["operation", "query_heads", "kv_heads", "head_width", "window"]].isna().all(axis=None)


def test_json_prints_every_row(tmp_path: Path) -> None:
    done = archbench(
        "kernels", "--device", "cpu", "--operations", "loss", "--losses", "16x8x32", "--json", "--quiet", cwd=tmp_path
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["operation"] for row in rows if row["phase"] == "kernel"} == {"linear_cross_entropy", "cross_entropy"}
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "phrases"),
    [
        (["--backends", "sdpa,tritn"], 2, ["'tritn'", "Did you mean 'triton'?"]),
        (["--operations", "attentoin"], 2, ["'attentoin'", "Did you mean 'attention'?"]),
        (["--device", "mps"], 5, ["does not measure mps"]),
        (["--lengths", "abc"], 2, ["--lengths abc", "valid integer"]),
        (["--lengths", ""], 2, ["--lengths", "at least 1"]),
        (["--windows", "0"], 2, ["--windows 0", "greater than 0"]),
        (["--windows", "wide"], 2, ["--windows wide", "valid integer"]),
        (["--head-widths", "64,300"], 2, ["--head-widths 64,300", "less than or equal to 256"]),
        (["--heads", "12", "--groups", "5"], 2, ["groups of 5", "12 query heads"]),
        (["--repeats", "0"], 2, ["--repeats 0"]),
        (["--losses", "16x8"], 2, ["--losses 16x8", "NxCxV"]),
        (["--dtype", "float8"], 2, ["dtype", "float8"]),
        (["--plot", "plot.jpeg"], 2, [".jpeg", ".png"]),
        (["--plot", "no/such/folder/plot.png"], 7, ["no folder"]),
        (["--plot", "p.png", "--operations", "loss"], 2, ["--plot p.png", "attention"]),
        (["--out", "/proc"], 7, ["/proc: results cannot be written there"]),
        (
            ["--backends", "triton", "--operations", "attention"],
            5,
            ["nothing could be measured", "NVIDIA and AMD GPUs"],
        ),
        (["--chip", "sm_90"], 2, ["--chip", "Add --static"]),
        (["--static", "--lengths", "64"], 2, ["--lengths", "--static runs nothing"]),
        (
            ["--static", "--plugin", "mine.py", "--dtype", "bfloat16"],
            2,
            ["--dtype", "plugin's launches have their own sizes"],
        ),
        (["--static", "--chip", "sm_91"], 2, ["'sm_91'", "Did you mean"]),
        (["--static", "--plugin", "nowhere.py"], 2, ["nowhere.py", "no such file"]),
    ],
)
def test_bad_input_is_one_paragraph_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], code: int, phrases: list[str]
) -> None:
    done = archbench(
        "kernels", "--quiet", *([] if "mps" in arguments else ["--device", "cpu"]), *arguments, cwd=tmp_path
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for phrase in phrases:
        assert phrase in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_a_gpu_that_is_not_there_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    done = archbench("kernels", "--device", "cuda", cwd=tmp_path)
    assert done.returncode == 5
    assert "--device cuda: torch" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_plot_without_what_draws_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from archbench.cli import kernels_plot
    from archbench.report import files

    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--plot.*archbench\[plot\]"):
        kernels_plot.check_plot("plot.png")


PLUGIN = """
import torch
import triton
import triton.language as tl

from archbench.kernels.launch import Launch


@triton.jit
def clean(x, out, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at))


@triton.jit
def racing(x, out, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out + at % 2, tl.load(x + at))


def launches(chip):
    x = torch.empty(4096, device="meta")
    kernel = KERNEL
    return [Launch("copy", kernel, (4,), {"x": x, "out": torch.empty_like(x), "BLOCK": 1024}, {"num_warps": 4})]
"""


@pytest.mark.parametrize(("kernel", "code"), [("clean", 0), ("racing", 1)])
def test_static_figures_of_a_plugins_kernels_are_printed_and_faults_are_the_exit_code(
    tmp_path: Path, cli: RunCLI, kernel: str, code: int
) -> None:
    pytest.importorskip("triton", reason="compiles Triton kernels")
    (tmp_path / "mine.py").write_text(PLUGIN.replace("KERNEL", kernel))
    done = cli("kernels", "--static", "--plugin", tmp_path / "mine.py", "--chip", "sm_90", "--quiet")
    assert done.returncode == code, done.stderr
    assert "nothing was run" in done.stdout
    assert "TFLOP" not in done.stdout
    assert sum(line.startswith("sm_90") for line in done.stdout.splitlines()) == 1
    assert ("atomic instruction" in done.stdout) == bool(code)
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_plugin_without_launches_says_what_to_define(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="compiles Triton kernels")
    (tmp_path / "mine.py").write_text("")
    done = archbench("kernels", "--static", "--plugin", "mine.py", "--chip", "sm_90", cwd=tmp_path)
    assert done.returncode == 2
    assert "launches(chip" in done.stderr


LONG = (*SMALL, "--lengths", "1024", "--plot", "plot.png")


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files, in which a command that fails leaves nothing, and nothing beside it."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    yield folder
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list(folder.iterdir()) == []


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, temporary: Path) -> None:
    run = ForkedCommand(*LONG, cwd=tmp_path, env={"TMPDIR": str(temporary)})
    while "[1/" not in run.said():
        assert psutil.pid_exists(run.process.pid), run.finished().stderr
        time.sleep(0.01)
    run.process.send_signal(signal.SIGINT)
    done = run.finished()
    assert done.returncode == 130
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "Interrupted"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_measuring_process_that_is_killed_is_an_error_with_a_next_step(tmp_path: Path, temporary: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "archbench", *LONG],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    while "[1/" not in child.stderr.readline():
        assert child.poll() is None
    (measurer,) = psutil.Process(child.pid).children()
    measurer.kill()
    _, stderr = child.communicate()
    assert child.returncode == 8
    assert "--lengths" in stderr
