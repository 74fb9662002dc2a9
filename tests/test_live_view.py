"""The live view of long work: what is measured corrects the time left, and a log gets no control characters."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest

from archbench.cli.progress import StudyProgress
from archbench.presentation.live_view import LiveView, Moment
from archbench.study.contract import Quality
from archbench.study.outcome import Record
from archbench.study.time_left import Predicted, TimeLeft


class Cell:
    def __init__(self, key: str, architecture: str, stage: str = "seed") -> None:
        self.key, self.architecture, self.stage = key, architecture, stage


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def described(cell: Cell) -> str:
    return f"{cell.architecture}, cell {cell.key}"


def record(key: str, outcome: str = "ok", seconds: float = 0.0) -> Record:
    cause = "it is broken" if outcome == "failed" else None
    return Record(key=key, run_id=None, outcome=outcome, cause=cause, seconds=seconds)  # type: ignore[arg-type]


def followed(progress: StudyProgress) -> None:
    """A study of three cells, of which one fails and one runs on."""
    left = TimeLeft([([Predicted("seed", 100.0)] * 4, 1)])
    progress.piloting(0)
    progress.began(400, left, 4, 0)
    cells = [Cell(str(number), name) for number, name in enumerate(["gpt1", "llama", "gpt1", "llama"])]
    left.stage({cell.key: Predicted("seed", 100.0) for cell in cells}, 1)
    for cell, bits in zip(cells[:2], (2.5, 2.25), strict=True):
        left.started(cell.key, Predicted("seed", 100.0))
        progress.started(cell)
        left.finished(cell.key, 300.0)
        progress.finished(cell, record(cell.key, seconds=300.0), Quality(bits, "bit/byte", "fresh seeds"))
    left.started("2", Predicted("seed", 100.0))
    progress.started(cells[2])
    left.finished("2", None)
    progress.finished(cells[2], record("2", "failed"), None)
    left.started("3", Predicted("seed", 100.0))
    progress.started(cells[3])


def test_the_time_left_is_what_cells_took_and_not_what_was_predicted() -> None:
    tune, seed = Predicted("tune", 10.0), Predicted("seed", 40.0)
    left = TimeLeft([([tune] * 4, 2), ([seed] * 2, 1)])
    left.stage({str(number): tune for number in range(4)}, 2)
    assert left.is_guess
    assert left.seconds() == 2 * 10 + 2 * 40
    for key in ("0", "1"):
        left.started(key, tune)
        left.finished(key, 30.0)
    assert left.seconds() == pytest.approx(30 + 2 * 120)  # no seed has been measured: corrected as the others are
    assert left.is_guess
    left.stage({"4": seed, "5": seed}, 1)  # two trials fewer than planned
    assert left.cells == 2
    left.started("4", seed)
    assert left.cells == 2
    left.finished("4", 20.0)
    assert left.cells == 1
    assert left.seconds() == pytest.approx(20)
    assert not left.is_guess
    left.started("5", seed)
    left.finished("5", None)  # it failed, which says nothing about the others
    assert left.seconds() == 0


def test_cells_of_earlier_sessions_correct_the_prediction_and_spare_ones_count_until_their_stage_is_over() -> None:
    tune, seed = Predicted("tune", 10.0), Predicted("seed", 40.0)
    left = TimeLeft([([seed], 1)], [tune, tune], [(tune, 5.0)])
    assert left.seconds() == pytest.approx(2 * 5 + 20)
    assert left.cells == 1
    left.stage({"a": tune}, 1)
    assert left.cells == 2  # a search goes on
    assert left.seconds() == pytest.approx(2 * 5 + 20)
    left.started("a", tune)
    left.finished("a", 5.0)
    left.stage({"b": seed}, 1)
    assert left.seconds() == pytest.approx(20)


def test_a_log_gets_a_line_with_the_time_for_each_cell_and_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):  # as a CI service sets them
        monkeypatch.setenv(name, "1")
    with StudyProgress(tmp_path, "archbench compare", quiet=False, describe=described) as progress:
        followed(progress)
    lines = capsys.readouterr().err.splitlines()
    assert "\x1b" not in "".join(lines)
    for line in lines:
        time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")
    ended = [line[21:] for line in lines if line[21:].startswith("[")]
    assert ended[0] == "[1/4] gpt1, cell 0: ok, 300 s, 2.5000 bit/byte; about 15 min left"
    assert [line.partition(";")[0] for line in ended[1:]] == [
        "[2/4] llama, cell 1: ok, 300 s, 2.2500 bit/byte", "[3/4] gpt1, cell 2: failed, 0 s",
    ]  # fmt: skip
    assert any("it is broken" in line for line in lines)


def test_a_silent_log_gets_a_heartbeat_with_all_that_the_view_shows(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveView(lambda: Moment("1 of 2 done", "3 s", 0.5, {"running": ["gpt1", "llama"]}), heartbeat=0.01):
        while not (text := capsys.readouterr().err):
            time.sleep(0.01)
    assert text.splitlines()[0].endswith("1 of 2 done; 3 s; running: gpt1; llama")


@pytest.mark.parametrize("width", [50, 80, 120])
def test_a_terminal_shows_counts_time_left_running_cells_and_the_best_in_its_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with StudyProgress(tmp_path, "archbench compare", quiet=False, describe=described) as progress:
        followed(progress)
        print("a child says \x1b]0;something", file=sys.stderr)
    shown = terminal.getvalue()
    last = shown[: shown.rindex("best")].rindex("2 done, 1 running, 1 failed of 4")
    rows = shown[last:].split("\n")
    beside = 0 if width > 50 else 1  # a narrow one has the times in a row of their own
    assert "about 5 min left" in rows[beside]
    assert "running  llama, cell 3, 0 s" in rows[beside + 1]
    assert "llama 2.2500, gpt1 2.5000" in " ".join(" ".join(rows[beside + 2 :]).split())
    assert "a child says" in shown
    assert "\x1b]" not in shown


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with StudyProgress(tmp_path, "archbench compare", quiet=False, describe=described) as progress:
        followed(progress)
    assert "\x1b" not in terminal.getvalue()
    assert "[2/4] llama, cell 1: ok" in terminal.getvalue()


def test_nothing_is_redrawn_while_speed_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr("archbench.presentation.live_view.SECONDS_BETWEEN_REDRAWS", 0.01)

    def redrawn_after(stage: str) -> bool:
        progress.started(Cell("0", "gpt1", stage))
        shown = len(terminal.getvalue())
        time.sleep(0.2)
        return len(terminal.getvalue()) > shown

    with StudyProgress(tmp_path, "archbench compare", quiet=False, describe=described) as progress:
        progress.piloting(2)
        assert [redrawn_after(stage) for stage in ("seed", "speed", "cost", "tune")] == [True, False, False, True]
