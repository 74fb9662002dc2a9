"""A run that an error ended is stored with what it had finished and why it ended, and can be resumed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from archbench import read_results
from command_line import archbench
from forked_children import ForkedCommand
from small_runs import losses, with_small_corpus

EXAMPLE = Path(__file__).parent / "example_plugins" / "bigram.py"
OPTIONS = [
    "--profile", "smoke", "--corpus", "small.txt", "--steps", "3", "--phases", "train,decode", "--unchecked",
    "--threads", "1", "--quiet",
]  # fmt: skip
GENERATE = "    return decode_without_cache("
STEP = "    return next_token_step("


def write_plugin(folder: Path, place: str, code: str) -> None:
    source = EXAMPLE.read_text().replace('"bigram"', '"bad"')
    assert place in source
    (folder / "bad.py").write_text("import time\nfrom pathlib import Path\n" + source.replace(place, code + place))


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A folder with a run whose decoding raised, for as long as there is a file called stop; and the run's rows."""
    folder = with_small_corpus(tmp_path_factory.mktemp("failed"))
    stop = folder / "stop"
    stop.touch()
    write_plugin(folder, GENERATE, f"    if Path({str(stop)!r}).exists():\n        raise OSError('no\\nluck')\n")
    done = archbench("run", "bad", "--plugin", "bad.py", *OPTIONS, cwd=folder)
    assert done.returncode == 3, done.stderr
    return folder, read_results(folder / "results")


def test_it_keeps_what_it_had_finished_and_says_in_one_row_why_it_ended(failed: tuple[Path, pd.DataFrame]) -> None:
    folder, frame = failed
    assert len(losses(frame)) == 3
    assert frame[frame.phase == "train"].status.eq("ok").all()
    (row,) = frame[frame.phase == "decode"].to_dict("records")
    assert (row["metric"], row["unit"], row["parameters"]) == ("failed", "1", 257 * 257)
    assert pd.isna(row["value"]), "it counts in no statistic"
    plugin = f"plugin 'bad' ({folder / 'bad.py'})"
    assert row["status"].startswith(f"HookFailedError: {plugin}: ")
    assert row["status"].endswith("OSError: no luck")


def test_it_is_gone_on_with_by_the_same_plugin_and_replaces_its_own_record(failed: tuple[Path, pd.DataFrame]) -> None:
    folder, before = failed
    (folder / "stop").unlink()
    source = (folder / "bad.py").read_text()
    (folder / "bad.py").write_text(source + "\n\nCHANGED = True\n")
    refused = archbench("run", "bad", "--resume", "last", "--quiet", cwd=folder)
    assert refused.returncode == 12, "a file of another content is another file"
    refused = archbench("run", "bad", "--resume", "last", "--quiet", "--trust", cwd=folder)
    assert refused.returncode == 2
    assert "sha256:" in refused.stderr
    (folder / "bad.py").write_text(source)
    done = archbench("run", "bad", "--resume", "last", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    after = read_results(folder / "results")
    assert losses(after) == losses(before)
    assert set(after.run_id) == set(before.run_id)
    assert set(after.status) == {"ok"}
    assert "seconds_per_token" in set(after.metric)
    assert archbench("run", "bad", "--resume", "last", "--quiet", cwd=folder).returncode == 2, "it is finished"


def test_one_run_at_a_time_is_resumed(failed: tuple[Path, pd.DataFrame]) -> None:
    done = archbench("run", "bad", "gpt1", "--resume", "last", cwd=failed[0])
    assert done.returncode == 2
    assert "--resume" in done.stderr


def test_an_unknown_name_costs_the_others_nothing_and_its_exit_code_is_kept(tmp_path: Path) -> None:
    options = [*OPTIONS, "--phases", "train", "--plugin", str(EXAMPLE)]
    done = archbench("run", "gpt9", "bigram", *options, cwd=with_small_corpus(tmp_path))
    assert done.returncode == 2
    assert "architecture 'gpt9'" in done.stderr
    assert "gpt9 (exit code 2)" in done.stderr.splitlines()[-1]
    assert set(read_results(tmp_path / "results").architecture) == {"bigram"}


def test_of_several_seeds_each_that_failed_is_named(tmp_path: Path) -> None:
    done = archbench("run", "gpt9", *OPTIONS, "--seed", "0", "--seed", "1", cwd=with_small_corpus(tmp_path))
    assert done.returncode == 2
    for seed in (0, 1):
        assert f"gpt9 seed {seed} (exit code 2)" in done.stderr.splitlines()[-1]


def test_a_typo_that_concerns_all_stops_at_once(tmp_path: Path) -> None:
    done = archbench("run", "gpt1", "bigram", "--phases", "trian", "--plugin", str(EXAMPLE), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_plugin_that_ignores_interrupts_does_not_hold_one_up(tmp_path: Path) -> None:
    started = with_small_corpus(tmp_path) / "started"
    stubborn = f"    Path({str(started)!r}).write_text(str(__import__('os').getpid()))\n"
    stubborn += "    while True:\n        try:\n            time.sleep(60)\n"
    stubborn += "        except KeyboardInterrupt:\n            pass\n"
    write_plugin(tmp_path, STEP, stubborn)
    with (tmp_path / "bad.py").open("a") as plugin:
        plugin.write("\n\nfrom archbench.child import process\n\nprocess.GRACE = 0.5\n")  # 5 s would do as well
    run = ForkedCommand("run", "bad", "--plugin", "bad.py", *OPTIONS, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not started.exists() or not started.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: its foreground processes, all of them
    done = run.finished()
    assert done.returncode == 130
    assert "archbench run bad --resume" in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert set(read_results(tmp_path / "results").metric) == {"interrupted"}, "it is no failure of the architecture's"
