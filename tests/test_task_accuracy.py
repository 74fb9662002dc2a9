"""``compare --eval``: a downstream task is judged over seeds and paired questions, with Holm's correction over all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from archbench.study.comparison_outcome import ComparisonOutcome
from archbench.study.task_accuracy import AccuracyRow, judged
from command_line import archbench
from small_runs import with_small_corpus

FAIR = """
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {test: letters.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: start
doc_to_target: answer
doc_to_choice: choices
target_delimiter: ""
metric_list:
  - metric: acc
"""


def answers(share: float, seed: int, hard: npt.NDArray[np.float64], seeds: int = 5) -> npt.NDArray[np.float64]:
    """Each question is as hard for every model; ``share`` is added to its chance of a right answer."""
    random = np.random.default_rng(seed)
    return (random.random((seeds, len(hard))) < np.clip(hard + share, 0, 1)).astype(np.float64)


def rows(*shares: float, seeds: int = 5, questions: int = 800, begin: int = 0) -> dict[str, AccuracyRow]:
    hard = np.random.default_rng(begin).random(questions)
    found = {
        f"m{n}": {"task": answers(share, 100_000 + begin + n, hard, seeds)} for n, share in enumerate((0.0, *shares))
    }
    return {row.architecture: row for row in judged(found, "m0")}


def test_a_difference_is_found_and_its_sign_is_right() -> None:
    found = rows(0.2, -0.2, 0.0)
    assert [found[name].verdict for name in ("m0", "m1", "m2", "m3")] == ["baseline", "better", "worse", "inconclusive"]
    better = found["m1"]
    assert better.difference == pytest.approx(better.accuracy - found["m0"].accuracy)
    assert better.low is not None
    assert better.high is not None
    assert better.low < better.difference < better.high


def test_equal_models_are_told_apart_no_more_often_than_promised() -> None:
    # Both parts contain the chance of one answer, so errors are rarer than 5 %: 3 of 200 is far above what is expected.
    wrong = sum(rows(0.0, begin=10 * n, questions=100)["m1"].verdict != "inconclusive" for n in range(200))
    assert wrong <= 10


def test_holm_covers_all_tasks_and_architectures() -> None:
    hard = np.random.default_rng(0).random(300)
    own = {f"t{n}": answers(0.0, n, hard) for n in range(3)}
    other = {f"t{n}": answers(0.06, 10 + n, hard) for n in range(3)}
    tested = [row for row in judged({"a": own, "b": other}, "a") if row.architecture == "b"]
    smallest = min(tested, key=lambda row: row.p or 0)
    assert smallest.p is not None
    assert smallest.p_holm == pytest.approx(min(1, 3 * smallest.p))


def test_two_seeds_are_no_verdict() -> None:
    row = rows(0.3, seeds=2)["m1"]
    assert (row.verdict, row.p) == ("no verdict", None)


@pytest.mark.slow  # six trainings, their checks and an import of the harness in each process
def test_a_comparison_judges_accuracy_beside_bits_per_byte(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'archbench[eval]'")
    folder = with_small_corpus(tmp_path)
    text = (folder / "small.txt").read_text()
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "letters.yaml").write_text(FAIR)
    questions = [
        {"start": text[at : at + 12], "choices": [text[at + 12], "\x01"], "answer": 0} for at in range(0, 8000, 200)
    ]
    (tasks / "letters.jsonl").write_text("\n".join(map(json.dumps, questions)))
    options = (
        "--profile", "smoke", "--corpus", "small.txt", "--seeds", "3", "--no-tuning", "--sweeps", "0",
        "--contexts", "none", "--match", "tokens", "--tokens", "6144", "--config", "training.batch_size=4",
        "--set", "n_layer=1",
        "--set", "context_length=32", "--tokenizer", "byte", "--out", "study", "--quiet",
    )  # fmt: skip
    asked = ("--eval", "letters", "--data", "tasks", "--limit", "30")
    done = archbench("compare", "gpt1", "llama", *options, *asked, cwd=folder)
    assert done.returncode == 0, done.stderr
    outcome = ComparisonOutcome.read(folder / "study")
    assert [(row.task, row.architecture, row.seeds, row.questions) for row in outcome.accuracy] == [
        ("letters", "gpt1", 3, 30), ("letters", "llama", 3, 30),
    ]  # fmt: skip
    assert outcome.accuracy[0].accuracy > 0.5, "a letter of the text against a character that it has not"
    assert outcome.accuracy[1].p_holm is not None
    assert "Downstream tasks" in done.stdout
    assert not list((folder / "study").rglob("*.safetensors")), "weights go when they have answered"
    made = archbench("report", "study", cwd=folder)
    assert made.returncode == 0, made.stderr
    (page,) = folder.rglob("*.html")
    assert "Downstream tasks" in page.read_text()
    again = archbench("compare", "gpt1", "llama", *options, *asked, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert ComparisonOutcome.read(folder / "study").accuracy == outcome.accuracy
