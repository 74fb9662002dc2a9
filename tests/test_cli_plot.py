"""``archbench plot`` draws any metric, in characters that fit the terminal and as an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from installations import RunCLI

REFERENCE = Path(__file__).parents[1] / "results" / "reference"
STUDY = REFERENCE / "compare-nano" / "runs.parquet"


@pytest.mark.parametrize("columns", ["80", "120"])
def test_bars_fit_the_terminal_and_are_as_long_as_their_values(cli: RunCLI, columns: str) -> None:
    done = cli("plot", "bits_per_byte", STUDY, env={"COLUMNS": columns})
    assert (done.returncode, done.stderr) == (0, "")
    title, *lines = done.stdout.splitlines()
    assert "bits_per_byte" in title
    assert max(map(len, lines)) <= int(columns)
    values = {line.split()[0]: float(line.split()[2]) for line in lines}
    lengths = {line.split()[0]: line.count("█") for line in lines}
    assert {"gpt1", "llama"} <= values.keys()
    best, worst = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    assert lengths[best] / lengths[worst] == pytest.approx(values[best] / values[worst], abs=0.05)


def test_what_changes_during_training_is_a_curve_that_falls(cli: RunCLI) -> None:
    done = cli("plot", "loss", REFERENCE, "--where", "phase=train", "--by", "seed", env={"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.partition("│")[2] for line in lines if "│" in line]
    first, last = ([row[: len(row)].find("o") for row in part if "o" in row] for part in (rows[:2], rows[-2:]))
    assert min(first) < min(last)
    assert "tokens seen" in done.stdout


@pytest.mark.parametrize("end", ["png", "svg", "pdf"])
def test_an_image_is_written(cli: RunCLI, tmp_path: Path, end: str) -> None:
    file = tmp_path / f"plot.{end}"
    done = cli("plot", "peak_memory_bytes", STUDY, "-o", file, "--where", "phase=train")
    assert (done.returncode, done.stdout.strip()) == (0, str(file)), done.stderr
    start = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}[end]
    assert file.read_bytes().startswith(start)
    if end == "svg":
        assert "llama" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "culprit"),
    [
        (["bits_per_bite"], 2, "Did you mean 'bits_per_byte'?\n"),
        (["bits_per_byte", "--by", "architectur"], 2, "architectur"),
        (["bits_per_byte", "--where", "architecture=gtp1"], 2, "Did you mean 'gpt1'?"),
        (["loss", "--where", "phase=decode", "--where", "metric=loss"], 7, str(REFERENCE)),
        (["bits_per_byte", "-o", "plot.gif"], 2, "plot.gif"),
        (["loss"], 2, "phase=train"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(cli: RunCLI, arguments: list[str], code: int, culprit: str) -> None:
    done = cli("plot", arguments[0], REFERENCE, *arguments[1:])
    assert (done.returncode, culprit in done.stderr) == (code, True), done.stderr
