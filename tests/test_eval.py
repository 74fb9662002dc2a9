"""``archbench eval``: lm-evaluation-harness asks any model, with its own definitions, and ties are not wins."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from archbench import ModelConfig, read_results
from archbench.data.byte_tokenizer import ByteTokenizer
from archbench.data.dataset import EncodedDocument
from archbench.measure.scoring import score
from archbench.plugin.registry import load
from archbench.runs.models import loaded
from command_line import archbench
from eval_files import CAPITALS, write_published, write_tasks
from small_runs import UNCHECKED, with_small_corpus

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'archbench[eval]'")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small GPT-1, trained for six steps, and the folder ``tasks``."""
    folder = with_small_corpus(tmp_path_factory.mktemp("trained"))
    text = (folder / "small.txt").read_text()
    write_tasks(folder, text)
    done = archbench("run", "gpt1", *UNCHECKED, "--tokenizer", "byte", "--phases", "train", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def asked(folder: Path, tasks: str, *options: str) -> list[dict[str, Any]]:
    """The rows that ``archbench eval`` prints."""
    done = archbench("eval", "last", "--tasks", tasks, "--data", "tasks", "--json", "--quiet", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def the(rows: list[dict[str, Any]], task: str, metric: str) -> dict[str, Any]:
    (found,) = (row for row in rows if (row["corpus"], row["metric"]) == (task, metric))
    return found


def test_scores_join_the_runs_rows_and_every_question_is_kept_beside_them(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "copy")
    before = read_results(folder / "results")
    rows = asked(folder, "capitals,texts", "--limit", "3")
    acc = the(rows, "capitals", "acc")
    assert (acc["phase"], acc["shots"], acc["unit"]) == ("eval", 0, "1")
    assert acc["task_version"].startswith("1.5 (lm_eval ")
    assert 0 <= acc["value"] <= 1
    assert acc["standard_error"] is not None
    assert the(rows, "capitals", "questions")["value"] == 3
    after = read_results(folder / "results")
    assert len(after) == len(before) + len(rows)
    assert set(after.run_id) == set(before.run_id)
    (run_id,) = set(before.run_id)
    samples = (folder / "results" / run_id / "samples-capitals-0.jsonl").read_text().splitlines()
    questions = [one for one in map(json.loads, samples) if "doc" in one]
    assert [one["doc"]["question"] for one in questions] == [one["question"] for one in CAPITALS[:3]]

    again = asked(folder, "capitals", "--shots", "1")  # other shots: other rows; the same shots: in place of those
    assert the(again, "capitals", "acc")["shots"] == 1
    assert len(read_results(folder / "results")) == len(after) + len(again)
    asked(folder, "capitals", "--shots", "1")
    assert len(read_results(folder / "results")) == len(after) + len(again)
    checked = archbench("fsck", "results", cwd=folder)
    assert checked.returncode == 0, checked.stdout


def test_the_table_fits_eighty_columns_and_is_on_the_page(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of the harness's, nor of its libraries', stands beside it, while data are prepared and asked."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "empty")
    folder = shutil.copytree(trained, tmp_path / "copy")
    done = archbench(
        "eval", "last", "--tasks", "capitals,texts", "--data", "tasks", "--quiet", cwd=folder, env={"COLUMNS": "80"}
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert said.startswith("Warning: 3 requests were longer"), "archbench's own warning, and nothing else"
    assert said.endswith("than those of models with longer contexts.")
    assert said.count(":") == 2
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    table = [line for line in done.stdout.splitlines() if "acc" in line or "bits_per_byte" in line]
    assert len(table) == 3
    assert max(map(len, table)) <= 80
    made = archbench("report", "-o", "page.html", "--md", "page.md", cwd=folder)
    assert made.returncode == 0, made.stderr
    page = (folder / "page.md").read_text()
    assert "Downstream tasks" in page
    assert "capitals" in page
    assert "Other text: one corpus (" in (folder / "page.html").read_text(), "a task is no corpus of the run's"


def test_warnings_that_nobody_knows_are_not_silenced(caplog: pytest.LogCaptureFixture) -> None:
    from archbench.evaluation.harness_noise import KNOWN, without_noise

    with without_noise():
        for name, parts in KNOWN.items():
            for part in (*parts, "something is wrong"):
                logging.getLogger(name).warning("[some] %s [thing]", part)
    assert [record.getMessage() for record in caplog.records] == ["[some] something is wrong [thing]"] * len(KNOWN)


def test_bits_per_byte_by_the_harness_are_those_of_quality(trained: Path) -> None:
    from lm_eval.evaluator import evaluate

    from archbench.evaluation.harness_model import HarnessModel
    from archbench.evaluation.harness_tasks import load_tasks

    found = loaded(out=trained / "results", device="cpu")
    architecture, model, tokenizer = found.architecture, found.model, found.tokenizer
    asked = HarnessModel(architecture, model, tokenizer, model.config, batch_size=3)
    scores = evaluate(asked, load_tasks(["texts"], None, str(trained / "tasks")), bootstrap_iters=0)
    texts = [json.loads(line)["text"] for line in (trained / "tasks" / "texts.jsonl").read_text().splitlines()]
    documents = [EncodedDocument(str(n), tokenizer.encode(text), len(text.encode())) for n, text in enumerate(texts)]
    ours = score(model, documents, separator=tokenizer.separator, context_length=model.config.context_length)
    # The same windows in other batches: a matrix product of another shape rounds otherwise.
    assert scores["results"]["texts"]["bits_per_byte,none"] == pytest.approx(ours.bits_per_byte, abs=1e-8)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    return write_published(tmp_path)


def test_loglikelihoods_and_answers_are_those_of_hflm_item_by_item(published: Path) -> None:
    pytest.importorskip("accelerate", reason="lm-eval's HFLM needs accelerate")
    import transformers
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from archbench.data.tokenizers import load_tokenizer
    from archbench.evaluation.harness_model import HarnessModel
    from archbench.training.checkpoints import load_weights

    (published.parent / "small.txt").unlink()
    model = transformers.AutoModelForCausalLM.from_pretrained(published)
    tokenizer = transformers.AutoTokenizer.from_pretrained(published)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu")
    architecture = load(f"hf:{published}")
    config = architecture.import_config(json.loads((published / "config.json").read_text()))
    own = architecture.build(config)
    own.load_state_dict(architecture.import_weights(load_weights(published), config))
    ours = HarnessModel(architecture, own, load_tokenizer(f"file:{published / 'tokenizer.json'}"), config, batch_size=4)

    pairs = [(one["question"], f" {choice}") for one in CAPITALS for choice in one["choices"]]
    pairs += [("", " Paris"), ("ends in spaces  ", "word"), ("long " * 40, "and cut"), ("naïve é", "語")]
    pairs += [(one["question"], letter) for one in CAPITALS for letter in "ABCD"]  # choices of one token

    def requests(kind: str, arguments: list[Any]) -> list[Instance]:
        return [Instance(kind, {}, argument, number) for number, argument in enumerate(arguments)]

    found, expected = (one.loglikelihood(requests("loglikelihood", pairs)) for one in (ours, theirs))
    # Theirs sums float32 in float32, and pads other batches: 1e-4 nats of up to 100.
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert ours.cut == 1
    settings = {"until": [" the", "\n"], "max_gen_toks": 20, "do_sample": False}
    prompts = [(one["question"], settings) for one in CAPITALS]
    for prompt in prompts:  # one at a time: HFLM pads prompts on the left, which changes rotary angles
        (mine,), (yours,) = (one.generate_until(requests("generate_until", [prompt])) for one in (ours, theirs))
        assert mine == yours
    assert ours.generate_until(requests("generate_until", prompts)) == [
        ours.generate_until(requests("generate_until", [prompt]))[0] for prompt in prompts
    ]


@pytest.mark.parametrize("begins", [True, False])
def test_contexts_of_a_gguf_tokenizer_begin_as_hflms_do(tmp_path: Path, begins: bool) -> None:
    """HFLM reads the same file; transformers does not look at the file's add_bos_token, so it is told."""
    pytest.importorskip("accelerate", reason="lm-eval's HFLM needs accelerate")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    from lm_eval.models.huggingface import HFLM

    from archbench.data.tokenizers import load_tokenizer
    from archbench.evaluation.harness_model import HarnessModel
    from gguf_files import VOCABULARY, published_llama, write_llama

    first = VOCABULARY["tokens"].index("<|begin|>")
    model = published_llama()
    metadata = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.bos_token_id": first}
    file = write_llama(tmp_path / "a.gguf", model, metadata={**metadata, "tokenizer.ggml.add_bos_token": begins})
    theirs = HFLM(
        pretrained=model,
        tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name, add_bos_token=begins),
        device="cpu",
    )
    config = ModelConfig(vocab_size=model.config.vocab_size, context_length=64)
    saved = tmp_path / "saved"
    load_tokenizer(f"gguf:{file}").save(saved)
    for name in (f"gguf:{file}", f"saved:{saved}"):
        ours = HarnessModel(load("llama"), model, load_tokenizer(name), config)
        for context, answer in (("The capital is", " Paris"), ("ends in spaces  ", "word"), ("naïve é", "語")):
            assert ours._encode_pair(context, answer) == theirs._encode_pair(context, answer)
        assert ours.tok_encode("a text") == theirs.tok_encode("a text")
        assert (ours.tok_encode("a text")[0] == first) == begins


class Constant(nn.Module):
    """The same logits at every position: it knows nothing."""

    config = ModelConfig(vocab_size=257, context_length=64)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, 257)


@pytest.mark.parametrize(("task", "metric"), [("capitals", "acc"), ("capitals", "acc_norm"), ("lengths", "acc_norm")])
def test_a_model_that_knows_nothing_scores_chance_where_the_harness_says_more(
    trained: Path, task: str, metric: str
) -> None:
    from lm_eval.evaluator import evaluate

    from archbench.evaluation.answer_ties import FairChoices
    from archbench.evaluation.harness_model import HarnessModel
    from archbench.evaluation.harness_tasks import load_tasks

    tasks = load_tasks([task], None, str(trained / "tasks"))
    fair = FairChoices(tasks["tasks"][task])
    asked = HarnessModel(load("gpt1"), Constant(), ByteTokenizer(), Constant.config)
    found = evaluate(asked, tasks, bootstrap_iters=0)
    assert found["results"][task][f"{metric},none"] == pytest.approx(1 / 3)
    if task == "capitals":
        assert fair.differing()[metric] == 2 / 4, "the first choice is right in two of four"
    assert fair.ties[metric] == 4


def test_a_tie_is_closer_than_float32_can_tell() -> None:
    from archbench.evaluation.answer_ties import best

    assert best([-3.0, -2.0, -2.0000001]) == {1, 2}
    assert best([-3.0, -2.0, -2.001]) == {1}
    assert best([float("-inf")] * 2) == {0, 1}
    assert best([float("nan"), -1.0]) == set()


def test_a_published_folder_is_asked_as_it_is(published: Path, trained: Path) -> None:
    shutil.copytree(trained / "tasks", published.parent / "tasks")
    done = archbench(
        "eval", f"hf:{published}", "--tasks", "capitals", "--data", "tasks", "--json", "--quiet", cwd=published.parent
    )
    assert done.returncode == 0, done.stderr
    frame = read_results(published.parent / "results")
    assert set(frame.phase) == {"check", "eval"}
    assert frame.architecture.iloc[0].startswith("hf:")


def test_the_harness_itself_loads_a_run_by_the_name_archbench(trained: Path) -> None:
    from lm_eval.api.registry import get_model

    import archbench.evaluation.harness_model  # noqa: F401  which registers it

    (run,) = (trained / "results").glob("*/config.json")
    made = get_model("archbench").create_from_arg_string(f"run={run.parent}", {"batch_size": 1, "device": "cpu"})
    assert (made.max_length, made.batch_size) == (32, 1)
    assert made.architecture.name == "gpt1"


@pytest.mark.slow  # the harness's own command indexes 14,000 tasks
def test_the_harnesss_command_scores_a_run(trained: Path) -> None:
    import subprocess
    import sys

    (run,) = (trained / "results").glob("*/config.json")
    done = subprocess.run(
        [
            sys.executable, "-m", "archbench.evaluation.harness_model", "run", "--model", "archbench",
            "--model_args", f"run={run.parent}", "--tasks", "capitals", "--include_path", ".", "--device", "cpu",
        ],
        cwd=trained / "tasks", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "|acc " in line)
    assert "capitals" in line


@pytest.mark.parametrize(
    ("options", "code", "culprits"),
    [
        (["--tasks", "capitls"], 2, ["'capitls'", "'capitals'"]),
        (["--tasks", "capitals,no_data"], 4, ["not_there.jsonl", "--data"]),
        (["--tasks", "long"], 2, ["gpt1", "32", "64"]),
        (["--tasks", ""], 2, ["archbench eval"]),
        (["--tasks", "capitals", "--batch-size", "many"], 2, ["--batch-size many"]),
        (["--tasks", "capitals,capitals.yaml"], 4, ["capitals.yaml"]),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    trained: Path, options: list[str], code: int, culprits: list[str]
) -> None:
    before = {path.name for path in (trained / "results").rglob("*")}
    done = archbench("eval", "last", "--data", "tasks", *options, "--quiet", cwd=trained)
    assert done.returncode == code, done.stderr
    assert all(culprit in done.stderr for culprit in culprits), done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in (trained / "results").rglob("*")} - before <= {"lock"}


def test_a_run_without_weights_is_refused(tmp_path: Path) -> None:
    options = [*UNCHECKED, "--tokenizer", "byte", "--phases", "quality"]
    assert archbench("run", "gpt1", *options, cwd=with_small_corpus(tmp_path)).returncode == 0
    done = archbench("eval", "last", "--tasks", "hellaswag", "--quiet", cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    assert "no weights" in done.stderr


def test_without_the_extra_the_command_says_how_to_get_it(trained: Path) -> None:
    code = "import sys; sys.modules['lm_eval'] = None; from archbench.cli import main; sys.exit(main())"
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code, "eval", "last", "--tasks", "capitals"],
        cwd=trained, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "archbench[eval]" in done.stderr
