"""Hostile and clumsy plugins cost their own run only: a clear line, a row with a status, and the others are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from archbench import read_results
from forked_children import ForkedCommand
from small_runs import with_small_corpus

EXAMPLE = Path(__file__).parent / "example_plugins" / "bigram.py"
OPTIONS = [
    "--profile", "smoke", "--corpus", "small.txt", "--steps", "1", "--set", "context_length=16", "--threads", "1",
    "--quiet",
]  # fmt: skip

IMPORTS = "from torch import nn\n"
INIT = "        self.config = config\n"
BUILD = "    return Bigram(config)"
STEP = "    return next_token_step("
GENERATE = "    return decode_without_cache("
FORWARD = INIT + "\n    def forward(self, tokens):\n"

# What each does: the line of the example plugin that is replaced, and by what.
HOSTILE: dict[str, list[tuple[str, str]]] = {
    "raises": [
        (IMPORTS, IMPORTS + "\n__import__('os').environ['OMP_NUM_THREADS'] = '3'\n"),
        (BUILD, "    raise KeyError('no such thing')"),
    ],
    "exits": [(STEP, "    raise SystemExit(0)\n" + STEP)],
    "vanishes": [(GENERATE, "    __import__('os')._exit(0)\n" + GENERATE)],
    "forks": [(INIT, FORWARD + "        __import__('os').fork()\n        return super().forward(tokens)\n")],
    "threads": [(STEP, "    import torch\n    torch.set_num_threads(torch.get_num_threads() + 1)\n" + STEP)],
    "nan": [(INIT, FORWARD + "        return super().forward(tokens) * float('nan')\n")],
    "vocabulary": [("(config.vocab_size, config.vocab_size)", "(config.vocab_size, 300)")],
    "mutates": [
        (STEP + "state, batch)", "    loss = next_token_step(state, batch)\n    batch.inputs.zero_()\n    return loss")
    ],
    "reseeds": [(BUILD, "    __import__('torch').manual_seed(0)\n" + BUILD)],
    "sleeps": [(GENERATE, "    import time\n    while True:\n        time.sleep(1)\n" + GENERATE)],
    "lingers": [(STEP, "    from threading import Thread, Event\n    Thread(target=Event().wait).start()\n" + STEP)],
    "prints": [
        (IMPORTS, IMPORTS + "\nprint('imported')\n"),
        ("    presets =", "    print('described')\n    presets ="),
        (BUILD, "    print('built')\n" + BUILD),
        (INIT, FORWARD + "        __import__('os').write(1, b'forward\\n')\n        return super().forward(tokens)\n"),
    ],
}


def run(
    folder: Path, *architectures: str, more: tuple[str, ...], besides: bool = True
) -> tuple[int, str, dict[str, str]]:
    """``archbench run ARCHITECTURES gpt1``: exit code, standard output, and the error line of each that has one.

    Args:
        besides: whether gpt1 runs too.
    """
    plugins = []
    for name in architectures:
        source = EXAMPLE.read_text().replace('"bigram"', f'"{name}"')
        for line, instead in HOSTILE[name]:
            assert line in source
            source = source.replace(line, instead)
        (folder / f"{name}.py").write_text(source)
        plugins += ["--plugin", f"{name}.py"]
    good = ["gpt1"] if besides else []
    options = [*plugins, *OPTIONS, *more]
    done = ForkedCommand("run", *architectures, *good, *options, cwd=with_small_corpus(folder)).finished()
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in done.stderr
    of = {name: line for line in errors for name in architectures if f"/{name}.py" in line or f"({name})" in line}
    return done.returncode, done.stdout, of


def status(frame: pd.DataFrame, architecture: str) -> str:
    (failed,) = frame[(frame.architecture == architecture) & (frame.status != "ok")].status
    return str(failed)


def assert_whole(results: Path, phases: set[str]) -> None:
    gpt1 = read_results(results, {"architecture": "gpt1"})
    assert set(gpt1.phase) == {*phases, "environment"}
    assert set(gpt1.status) == {"ok"}
    assert 3 not in set(gpt1.threads), "what one plugin makes of the environment is not the others'"
    run = json.loads((results / f"{gpt1.run_id.iloc[0]}.json").read_text())["run"]
    assert run["plugins"] == [], "no other plugin's code is in its processes"


CAUGHT = {
    "raises": "KeyError: 'no such thing'",
    "vanishes": "exit code 0",
}
MORE_CAUGHT = {
    "forks": "forked",
    "exits": "SystemExit: 0",
    "threads": "number of threads",
    "nan": " nan",
    "vocabulary": "300",
    "mutates": "train_step changed",
    "reseeds": "seed",
}
"""What the evidence has to say."""


@pytest.mark.parametrize(
    "caught", [CAUGHT, pytest.param(MORE_CAUGHT, marks=pytest.mark.slow)], ids=["most hostile", "others"]
)
def test_the_checks_end_their_runs_before_anything_is_measured(caught: dict[str, str], tmp_path: Path) -> None:
    code, stdout, errors = run(tmp_path, *caught, more=("--phases", "decode", "--json"))
    assert code == 9
    frame = read_results(tmp_path / "results")
    for name, evidence in caught.items():
        assert evidence in errors[name]
        assert status(frame, name).split(":")[0] == ("PhaseError" if name == "vanishes" else "ConformanceError")
        assert set(frame[frame.architecture == name].phase) == {"check"}
    assert_whole(tmp_path / "results", {"check", "decode"})
    assert {json.loads(line)["architecture"] for line in stdout.splitlines()} == {"gpt1"}


ENDED = {
    "raises": "HookFailedError: plugin 'raises'",
    "exits": "HookFailedError: plugin 'exits'",
    "forks": "PluginError: plugin 'forks'",
    "threads": "PluginError: plugin 'threads'",
}


@pytest.mark.parametrize(
    ("ended", "others"),
    [
        (("raises", "forks"), ("prints",)),
        (("exits", "threads"), ("nan", "lingers")),
    ],
    ids=["most hostile", "others"],
)
@pytest.mark.slow
def test_unchecked_they_still_cost_only_themselves(
    ended: tuple[str, ...], others: tuple[str, ...], tmp_path: Path
) -> None:
    code, stdout, errors = run(tmp_path, *ended, *others, more=("--phases", "train", "--unchecked", "--json"))
    assert code == 3
    assert errors.keys() == set(ended)
    frame = read_results(tmp_path / "results")
    for name in ended:
        assert status(frame, name).startswith(ENDED[name])
    if "nan" in others:
        assert "diverged" in set(frame[frame.architecture == "nan"].metric)
    assert_whole(tmp_path / "results", {"train"})
    rows = [json.loads(line) for line in stdout.splitlines()]
    assert {row["architecture"] for row in rows} == {*others, "gpt1"}, "pure JSON, whatever was printed"


@pytest.mark.parametrize(
    ("more", "where", "seconds"),
    [
        (("--unchecked",), "phase decode", 2),
        pytest.param((), "in the check generate", 20, marks=pytest.mark.slow),
    ],
    ids=["unchecked", "checked"],
)
def test_one_that_never_ends_is_ended(tmp_path: Path, more: tuple[str, ...], where: str, seconds: int) -> None:
    code, _, errors = run(
        tmp_path, "sleeps", more=("--phases", "decode", "--config", f"time_limit={seconds}", *more), besides=not more
    )
    assert code == 8
    assert f"{seconds} s" in errors["sleeps"]
    assert where in errors["sleeps"]
    assert "time_limit=" in errors["sleeps"]
    assert f"{seconds} s" in status(read_results(tmp_path / "results"), "sleeps")
    if not more:
        assert_whole(tmp_path / "results", {"check", "decode"})
