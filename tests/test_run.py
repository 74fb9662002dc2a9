"""One real run through the command line: what it leaves is whole, tidy, true to its seed, and can be used again."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from archbench import read_results
from archbench.results.metrics import METRICS
from command_line import archbench
from forked_children import ForkedCommand
from small_runs import UNCHECKED, losses, value, with_small_corpus


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = with_small_corpus(tmp_path_factory.mktemp("run"))
    done = archbench("run", "gpt1", *UNCHECKED, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def frame(finished: tuple[Path, str]) -> pd.DataFrame:
    return read_results(finished[0] / "results")


def test_the_summary_fits_a_screen_and_says_what_to_type_next(finished: tuple[Path, str]) -> None:
    summary = finished[1]
    for text in ("bits per byte", "perplexity", "zlib", "peak memory", "archbench generate gpt1 --run", ".parquet"):
        assert text in summary
    assert "Scored: the last 10.0% of the bytes of" in summary
    assert len(summary.splitlines()) <= 40


def test_every_promised_metric_of_every_phase_is_there(frame: pd.DataFrame) -> None:
    only_elsewhere = {("train", "diverged"), ("train", "flops_counted_on")}
    only_of_several = ("communication_share", "fsdp_blocks", "one_device_step_seconds", "scaling_efficiency")
    only_elsewhere |= {
        ("train", one) for one in (*only_of_several, "shared_step_seconds", "tokens_per_second_per_device")
    }
    only_elsewhere |= {("train", one) for one in ("graph_captured", "capture_seconds", "asked_step_seconds")}
    # Of a GPU, and of a CPU whose energy counters may be read.
    only_of_gpus = ("attention_measured", "joules_per_token")
    only_elsewhere |= {(m.phase, m.metric) for m in METRICS if m.metric.startswith(only_of_gpus)}
    promised = {
        (m.phase, m.metric) for m in METRICS if m.phase in ("train", "quality", "prefill", "decode")
    } - only_elsewhere
    assert promised - set(zip(frame.phase, frame.metric, strict=True)) == set()


def test_what_ran_is_in_every_row(frame: pd.DataFrame) -> None:
    measured = frame[frame.phase != "environment"]
    assert set(frame.host) == {socket.gethostname()}
    assert frame.driver.isna().all()
    for column in (
        "attention",
        "products",
        "device_name",
        "threads",
        "torch_version",
        "config_hash",
        "malloc",
        "parameters",
    ):
        assert measured[column].notna().all(), column
    assert set(measured.contaminated.dropna()) <= {True, False}
    assert (frame.config_hash.nunique(), frame.run_id.nunique()) == (1, 1)
    assert frame.plugin_revision.equals(frame.git_revision.rename("plugin_revision")), "one repository"
    assert frame.role.isna().all(), "no study runs it"


def test_each_step_is_a_row_and_the_first_is_kept_apart(frame: pd.DataFrame) -> None:
    train = frame[frame.phase == "train"]
    assert sorted(train[train.metric == "first_step_seconds"]["repeat"]) == [0]
    assert sorted(train[train.metric == "step_seconds"]["repeat"]) == [1, 2, 3, 4, 5]
    assert train[train.metric == "loss"].tokens_seen.max() == 6 * 4 * 32


def test_quality_numbers_agree_with_each_other(frame: pd.DataFrame) -> None:
    import math

    loss, tokens, size = (value(frame, "quality", name) for name in ("loss", "tokens_scored", "bytes_scored"))
    assert value(frame, "quality", "perplexity") == pytest.approx(math.exp(loss))
    assert value(frame, "quality", "bits_per_byte") == pytest.approx(loss * tokens / math.log(2) / size)
    assert tokens == size, "the byte tokenizer makes one token a byte"
    assert set(frame[frame.phase == "quality"].tokens_seen) == {6 * 4 * 32}


def test_per_document_scores_add_up_to_the_whole(finished: tuple[Path, str], frame: pd.DataFrame) -> None:
    documents = pd.read_parquet(finished[0] / "results" / frame.run_id.iloc[0] / "documents.parquet")
    assert documents.bytes.sum() == value(frame, "quality", "bytes_scored")
    assert documents.nats.sum() / documents.tokens.sum() == pytest.approx(value(frame, "quality", "loss"))


def test_the_last_validation_in_training_is_the_quality_phases_loss(frame: pd.DataFrame) -> None:
    validations = frame[(frame.phase == "train") & (frame.metric == "validation_loss")].sort_values("repeat")
    assert validations.value.iloc[-1] == pytest.approx(value(frame, "quality", "loss"), abs=1e-9)


def test_cache_bytes_agree_with_the_closed_form_and_with_what_is_allocated(
    finished: tuple[Path, str], frame: pd.DataFrame
) -> None:
    model = json.loads((finished[0] / "results" / f"{frame.run_id.iloc[0]}.json").read_text())["model"]
    keys_and_values = 2 * model["n_layer"] * model["d_model"] * 4
    assert value(frame, "decode", "cache_bytes_per_token") == keys_and_values
    decode = frame[frame.phase == "decode"]
    computed, measured = (
        decode[decode.metric == name].value.to_list() for name in ("cache_bytes", "cache_bytes_measured")
    )
    assert computed == measured


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(
    finished: tuple[Path, str], frame: pd.DataFrame
) -> None:
    folder, _ = finished
    seeds = ("--seed", "0", "--seed", "7")
    done = archbench("run", "gpt1", *UNCHECKED, "--phases", "train", *seeds, "--out", "seeds", cwd=folder)
    assert done.returncode == 0, done.stderr
    for seed, rows in read_results(folder / "seeds").groupby("seed"):
        assert (losses(rows) == losses(frame)) == (seed == 0)


def test_generate_continues_from_the_trained_weights(finished: tuple[Path, str], frame: pd.DataFrame) -> None:
    done = archbench(
        "generate", "gpt1", "--run", frame.run_id.iloc[0], "--prompt", "ROMEO:", "--max-new-tokens", "5",
        "--top-p", "0.9", "--temperature", "0.8", cwd=finished[0],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ROMEO:")


def test_a_finished_run_is_not_resumed(finished: tuple[Path, str]) -> None:
    done = archbench("run", "gpt1", "--resume", "last", cwd=finished[0])
    assert done.returncode == 2
    assert "--resume" in done.stderr or "run" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_killed_in_training_goes_on_with_the_same_losses(finished: tuple[Path, str], frame: pd.DataFrame) -> None:
    folder, _ = finished
    often = ("--config", "training.checkpoint_every=1")
    command = ["run", "gpt1", *UNCHECKED, "--phases", "train", *often, "--out", "killed"]
    run = ForkedCommand(*command, cwd=folder)
    _wait_for(folder, "killed/*/checkpoints/step-*")
    run.process.kill()
    assert run.finished().returncode == -signal.SIGKILL
    done = archbench("run", "gpt1", "--resume", "last", "--out", "killed", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert losses(read_results(folder / "killed")) == losses(frame)


def test_an_interrupted_run_ends_at_once_and_says_how_to_go_on(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    command = ["run", "gpt1", *UNCHECKED, "--phases", "train", "--steps", "100000", "--out", "interrupted"]
    run = ForkedCommand(*command, cwd=folder)
    _wait_for(folder, "interrupted/*/checkpoints/step-*")
    run.process.send_signal(signal.SIGINT)
    done = run.finished()
    assert done.returncode == 130
    assert "archbench run gpt1 --resume" in done.stderr
    assert "Traceback" not in done.stderr


def _wait_for(folder: Path, pattern: str) -> None:
    for _ in range(600):
        if any(folder.glob(pattern)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{pattern} never appeared")


def test_a_diverged_run_says_so_in_a_row_and_in_words(tmp_path: Path) -> None:
    hopeless = ("--lr", "1e30", "--config", "training.grad_clip=null")
    done = archbench("run", "gpt1", *UNCHECKED, *hopeless, cwd=with_small_corpus(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "diverged" in done.stdout
    frame = read_results(tmp_path / "results")
    assert value(frame, "train", "diverged") > 0
    assert set(frame.phase) == {"train", "environment"}, "nothing else is measured on a model that is no longer one"


def test_a_user_file_as_corpus_with_bpe_and_the_rows_as_json_lines(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    options = ("--phases", "train", "--corpus", "my.txt", "--tokenizer", "bpe:280", "--json")
    done = archbench("run", "gpt1", *UNCHECKED, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    frame = read_results(tmp_path / "results")
    assert set(frame.tokenizer) == {"bpe:280"}
    assert frame.lossless.all()
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == len(frame)


BAD: dict[str, tuple[Sequence[str], str]] = {
    "unknown architecture": (["run", "gptt1"], "Did you mean 'gpt1'"),
    "unknown profile": (["run", "gpt1", "--profile", "smok"], "Did you mean 'smoke'"),
    "unknown preset": (["run", "gpt1", "--preset", "nanoo"], "Did you mean 'nano'"),
    "unknown field": (["run", "gpt1", "--set", "n_layers=3"], "Did you mean 'n_layer'"),
    "wrong type": (["run", "gpt1", "--set", "n_layer=three"], "n_layer"),
    "not an assignment": (["run", "gpt1", "--set", "n_layer"], "NAME=VALUE"),
    "unknown configuration field": (["run", "gpt1", "--config", "training.schedul=wsd"], "Did you mean 'schedule'"),
    "two budgets": (["run", "gpt1", "--steps", "3", "--tokens", "3"], "exactly one"),
    "missing corpus": (["run", "gpt1", "--corpus", "nowhere.txt"], "nowhere.txt"),
    "empty corpus": (["run", "gpt1", "--corpus", "empty.txt"], "empty.txt"),
    "corpus shorter than a context": (["run", "gpt1", "--corpus", "short.txt", "--tokenizer", "byte"], "context"),
    "binary corpus": (["run", "gpt1", "--corpus", "binary.txt"], "binary.txt"),
    "vocabulary too small": (["run", "gpt1", "--set", "vocab_size=100"], "vocab_size"),
    "no CUDA": (["run", "gpt1", "--device", "cuda"], "--device cpu"),
    "unknown device": (["run", "gpt1", "--device", "tpu"], "tpu"),
    "float16 on a CPU": (["run", "gpt1", "--device", "cpu", "--dtype", "float16"], "bfloat16"),
    "unknown phase": (["run", "gpt1", "--phases", "train,fly"], "fly"),
    "prompt too long": (["run", "gpt1", "--config", "speed.prompt_lengths=[999]"], "999"),
    "missing plugin": (["run", "gpt1", "--plugin", "nowhere.py"], "nowhere.py"),
    "missing weights": (["run", "gpt1", "--weights", "nowhere.st", "--tokenizer", "byte"], "nowhere.st"),
    "weights without their tokenizer": (["run", "gpt1", "--weights", "."], "--tokenizer"),
    "output is a file": (["run", "gpt1", "--out", "short.txt/results"], "short.txt"),
    "unknown run to resume": (["run", "gpt1", "--resume", "20200101T000000-abcdef"], "20200101T000000-abcdef"),
    "option beside resume": (["run", "gpt1", "--resume", "last", "--steps", "9"], "--steps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_paragraph_and_leaves_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    from archbench.cli import main

    if case == "no CUDA" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("Too short to train on, twice over, by far. " * 2)
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 8)
    arguments, expected = BAD[case]
    assert main(list(arguments)) not in (0, None)
    printed = capfd.readouterr()
    assert expected in " ".join(printed.err.split())
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not (tmp_path / "results").exists() or not any((tmp_path / "results").iterdir())
