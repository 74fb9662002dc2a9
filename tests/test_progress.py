"""Progress: plain lines where there is no terminal, a bar where there is one, and no more often than a person reads."""

from __future__ import annotations

import io
import re

import pytest

from archbench.measure.clock import CPUClock
from archbench.training.loop import train
from archbench.training.progress import Progress
from training_setup import new_state, recipe, sampler


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def trained(stream: io.StringIO, style: str = "auto", interval: float | None = 0.0, **values: object) -> str:
    config = recipe(**values)
    progress = Progress(style, label="gpt1 nano", stream=stream, interval=interval)  # type: ignore[arg-type]
    train(new_state(config), sampler(), config, clock=CPUClock(), progress=progress, validate=lambda model: 2.5)
    return stream.getvalue()


def test_plain_lines_say_loss_speed_and_time_left() -> None:
    lines = trained(io.StringIO(), steps=4, validate_every=2).splitlines()
    pattern = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  gpt1 nano +\d+%  step \d+  loss \d\.\d{3}  [\d,]+ tokens/s  ETA \d+ s"
    assert [bool(re.fullmatch(pattern, line)) for line in lines] == [True, True, False, True, True, False]
    assert lines[2][21:] == "gpt1 nano: validation loss 2.5000 nats/token after step 2"
    assert "\x1b" not in "".join(lines)


def test_lines_are_rare_but_the_last_update_is_shown() -> None:
    lines = [line for line in trained(io.StringIO(), interval=None, steps=50).splitlines() if " step " in line]
    assert [line for line in lines if "ETA" in line] == [lines[0]]
    assert "100%  step 50 " in lines[0]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    text = trained(Terminal(), steps=4)
    assert "━" in text
    assert "tokens/s" in text
    assert re.search(r"ETA \d+ s", text)  # at 80 columns nothing is cut


def test_silence_is_silent() -> None:
    assert trained(io.StringIO(), style="silent", steps=2) == ""


def test_progress_goes_to_stderr_and_leaves_stdout_to_results(capsys: pytest.CaptureFixture[str]) -> None:
    config = recipe(steps=2)
    train(new_state(config), sampler(), config, clock=CPUClock(), progress=Progress("plain"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step 2 " in captured.err


def test_divergence_is_announced() -> None:
    text = trained(io.StringIO(), steps=100, learning_rate=1e30, optimizer="sgd", grad_clip=None)
    assert "gpt1 nano: diverged at step" in text
