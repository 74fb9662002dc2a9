"""Numbers, nesting and patterns that no machine can serve end as errors in no time, before anything is measured."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from archbench.cli.app import main

HUGE = ["1000000000000", "100000000000000000000", "1e30", "1e400", "nan", "inf", "-1", "1" * 400, "1" * 5000, "0x10"]
OPTIONS: dict[str, list[str]] = {
    "run gpt1": [
        "--batch-size", "--steps", "--threads", "--accumulation", "--seed", "--config=training.validate_every",
        "--config=speed.repeats", "--config=speed.batch_sizes", "--config=speed.new_tokens", "--config=quality.stride",
        "--config=time_limit", "--config=training.betas", "--set=n_layer", "--set=context_length", "--set=d_model",
    ],
    "compare gpt1 llama": ["--seeds", "--jobs", "--steps", "--batch-size", "--threads"],
    "scale gpt1": ["--seeds", "--jobs", "--threads"],
    "probe gpt1": ["--seeds", "--jobs", "--threads", "--updates", "--examples"],
    "kernels": ["--repeats", "--threads", "--lengths", "--losses", "--groups", "--windows", "--batch-size", "--heads"],
    "check gpt1": ["--seed", "--set=n_layer", "--set=d_model"],
    "show gpt1": ["--set=n_layer", "--set=d_model", "--set=d_ff", "--set=vocab_size", "--set=context_length"],
    "generate gpt1": ["--max-new-tokens", "--seed", "--temperature", "--top-k", "--top-p"],
    "regress HEAD HEAD": ["--rounds", "--max-rounds", "--limit"],
}  # fmt: skip
CASES = [(command, option, value) for command, options in OPTIONS.items() for option in options for value in HUGE]


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the error that the command ends with."""
    code = main(arguments)
    shown = capsys.readouterr()
    assert code in (2, 3, 5, 7), f"{code}: {shown.err[-400:]}"
    assert "Traceback" not in shown.err
    assert shown.out == ""
    return shown.err


@pytest.mark.parametrize("command", OPTIONS)
def test_an_absurd_number_is_an_error_at_once(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for option, value in itertools.product(OPTIONS[command], HUGE):
        name, equals, field = option.partition("=")
        words = [*command.split(), *([name, f"{field}={value}"] if equals else [f"{name}={value}"]), "--quiet"]
        if command.split()[0] in ("show", "generate"):
            words.remove("--quiet")
        error = error_of(words, capsys)
        assert len(error) < 16_000
    assert list(tmp_path.iterdir()) == [], "nothing was measured, not even begun"
