"""Serving: the definitions of vLLM's benchmark by hand, the queue, traces and their errors, and trained weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from archbench import read_results
from archbench.cli.summary import print_serving
from archbench.data.request_trace import Request, read_trace
from archbench.errors import DataError
from archbench.presentation.tables import Table
from archbench.report.contents import read
from archbench.report.serving_percentiles import latency_table, throughput_table
from archbench.runs.folder import open_run
from archbench.runs.rows import Rows
from archbench.runs.serving import _add, serve, served_config, static_shapes, static_size
from archbench.runs.speed import prepared
from archbench.training.checkpoints import latest_checkpoint, load_weights
from command_line import archbench, printed
from small_runs import UNCHECKED, value, with_small_corpus
from test_results_schema import write

BURSTS = Path(__file__).parents[1] / "docs" / "how-to" / "bursts.jsonl"
TIMED = ["--repeats", "2", "--warmup", "0", "--quiet"]


def requests(*of: tuple[float, int, int]) -> list[Request]:
    return [Request(arrival_seconds=at, prompt_tokens=P, output_tokens=new) for at, P, new in of]


def respond(batch: Sequence[Request]) -> list[float]:
    """A tenth of a second a token of the prompt, and a fifth for each further token."""
    return [0.1 * batch[0].prompt_tokens + 0.2 * n for n in range(max(one.output_tokens for one in batch))]


WORKED = serve(requests((0, 4, 3), (0, 4, 1), (0.5, 8, 2), (0.6, 4, 2)), 2, respond)


def test_the_example_of_the_manual_worked_by_hand() -> None:
    assert [one.batch_requests for one in WORKED] == [2, 2, 1, 1]
    assert [one.queue_seconds for one in WORKED] == pytest.approx([0, 0, 0.3, 1.2])
    assert [one.to_first_token for one in WORKED] == pytest.approx([0.4, 0.4, 1.1, 1.6])
    assert [one.latency for one in WORKED] == pytest.approx([0.8, 0.4, 1.3, 1.8])
    assert [one.per_output_token for one in WORKED] == [pytest.approx(0.2), None, *2 * [pytest.approx(0.2)]]
    assert [one.gaps for one in WORKED] == [pytest.approx(one) for one in ([0.2, 0.2], [], [0.2], [0.2])]


def test_its_rows_and_tables_have_the_percentiles_and_throughputs_of_the_manual(tmp_path: Path) -> None:
    rows = Rows("serve")
    _add(rows, [WORKED], {"batch_size": 2})
    frame = read_results(write(tmp_path, *rows.finished()))
    first, *_ = [line for line in _lines(latency_table(frame)) if "TTFT" in line[1]]
    assert first[2:] == pytest.approx([0.875, 0.75, 1.45, 1.585, 4])
    (speeds,) = _lines(throughput_table(frame))
    assert speeds[1:] == pytest.approx([4 / 2.4, 8 / 2.4, 28 / 2.4, 1.5, 1])
    assert {line[1]: line[-1] for line in _lines(latency_table(frame))} == {
        "first token (TTFT)": 4, "output token (TPOT)": 3, "between tokens (ITL)": 4, "whole answer (E2EL)": 4,
        "in the queue": 4,
    }  # fmt: skip


def _lines(made: Table | None) -> list[list[Any]]:
    assert made is not None
    return [[cell.value if cell.value is not None else cell.text for cell in row] for row in made.rows]


def test_equal_lengths_that_have_arrived_join_the_oldest_until_the_batch_is_full() -> None:
    waiting = requests((0, 4, 1), (0.1, 8, 1), (0.1, 4, 1), (0.2, 8, 1), (0.3, 8, 1), (9, 4, 1))
    served = serve(waiting, 2, respond)
    assert [(one.request.arrival_seconds, one.batch_requests) for one in served] == [
        (0, 1), (0.1, 2), (0.2, 2), (0.1, 1), (0.3, 1), (9, 1),
    ]  # fmt: skip
    assert served[-1].queue_seconds == 0, "time jumps to an arrival when nobody waits"
    alone = serve(waiting, 1, respond)
    assert [one.request for one in alone] == waiting, "first come, first served"


def test_traces_are_sorted_begin_at_zero_and_may_be_azures(tmp_path: Path) -> None:
    lines = ['{"arrival_seconds": 7.5, "prompt_tokens": 3, "output_tokens": 2, "user": 1}', "", WHOLE]
    (tmp_path / "trace.jsonl").write_text("\n".join(lines))
    assert read_trace(tmp_path / "trace.jsonl", 8) == tuple(requests((0, 4, 4), (2.5, 3, 2)))
    (tmp_path / "azure.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    first, second = read_trace(tmp_path / "azure.csv", 1000)
    assert (first.arrival_seconds, first.prompt_tokens, first.output_tokens) == (0, 374, 44)
    assert second.arrival_seconds == pytest.approx(4.314579, abs=1e-5)
    assert len(read_trace(BURSTS, 128)) == 24


def test_batches_of_static_steps_have_few_sizes_and_each_is_decoded_before() -> None:
    assert [static_size(requests, 6) for requests in range(1, 7)] == [1, 2, 4, 4, 6, 6]
    trace = requests((0, 8, 9), (0, 4, 3), (1, 100, 200), (2, 130, 3))  # 16, 6, 299 and 132 positions
    assert static_shapes(trace, {1, 4}, 512) == [(4, 1, 13), (4, 4, 13), (100, 1, 200), (100, 4, 200),
                                                 (130, 1, 3), (130, 4, 3)]  # fmt: skip
    assert static_shapes(trace, {1}, 256)[1:] == [(100, 1, 200)], "a cache holds no more than the context"


WHOLE = '{"arrival_seconds": 5, "prompt_tokens": 4, "output_tokens": 4}'


@pytest.mark.parametrize(
    ("name", "text", "culprit"),
    [
        ("a.jsonl", f"{WHOLE}\n{WHOLE[:-1]}", "line 2"),
        ("a.jsonl", f'{WHOLE}\n\n["a list"]', "line 3"),
        ("a.jsonl", WHOLE.replace("5", "-1"), "line 1"),
        ("a.jsonl", WHOLE.replace("5", "NaN"), "line 1"),
        ("a.jsonl", WHOLE.replace("4}", "0}"), "line 1"),
        ("a.jsonl", f"{WHOLE}\n" + WHOLE.replace("4}", "5}"), "line 2"),  # 4 + 5 tokens, of 8
        ("a.jsonl", "\n \n", "a.jsonl"),
        ("a.csv", "arrival_seconds,prompt_tokens,output_tokens\n1,2,3\n1,two,3\n", "line 3"),
        ("a.csv", "arrival_seconds,prompt_tokens,output_tokens\n1,2\n", "line 2"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-13-01 00:00:00,2,3\n", "line 2"),
        ("a.csv", "", "a.csv"),
    ],
)
def test_a_wrong_trace_is_named_with_its_line(name: str, text: str, culprit: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_trace(tmp_path / name, 8)
    assert name in caught.value.culprit
    assert culprit in caught.value.culprit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run that trained a little, one that served random weights, and one that served the first one's."""
    folder = with_small_corpus(tmp_path_factory.mktemp("served"))
    (folder / "trace.jsonl").write_text(
        "".join(f'{{"arrival_seconds": {at}, "prompt_tokens": {P}, "output_tokens": {new}}}\n' for at, P, new in TRACE)
    )
    trained = archbench("run", "gpt1", *UNCHECKED, "--phases", "train", "--out", "trained", cwd=folder)
    assert trained.returncode == 0, trained.stderr
    small = [one for one in UNCHECKED if one not in ("--steps", "6", "--batch-size", "4")]
    small = [one for one in small if one != "--config" and not one.startswith("training.")]
    random = archbench(
        "serve-bench", "gpt1", *small, *TIMED, "--batch", "1,3", "--prompt", "4,8", "--new", "5", "--out", "random",
        cwd=folder, env={"COLUMNS": "80"},
    )  # fmt: skip
    assert random.returncode == 0, random.stderr
    assert max(map(len, random.stdout.splitlines())) <= 80
    assert "random weights" in random.stdout
    served = archbench(
        "serve-bench", "last", "--in", "trained", "--trace", "trace.jsonl", "--batch", "2", *TIMED, "--out", "served",
        cwd=folder,
    )  # fmt: skip
    assert served.returncode == 0, served.stderr
    assert "trained weights" in served.stdout
    return folder


TRACE = ((0, 4, 6), (0, 4, 2), (0, 4, 1), (1e9, 8, 3))


def test_every_request_and_gap_of_every_case_is_a_row(folder: Path) -> None:
    rows = read_results(folder / "random", {"phase": "serve"})
    sizes = rows[rows.prompt_length.notna()].groupby(["batch_size", "prompt_length", "metric"]).size()
    for B in (1, 3):
        for P in (4, 8):
            of = sizes[B, P]
            assert (of["seconds_to_first_token"], of["latency_seconds"], of["requests_per_second"]) == (2 * B, 2 * B, 2)
            assert (of["seconds_per_output_token"], of["seconds_between_tokens"]) == (2 * B, 2 * B * 4)
    assert (rows[rows.metric == "queue_seconds"].value == 0).all()
    wide = rows[rows.metric.isin(["seconds_to_first_token", "seconds_per_output_token", "latency_seconds"])]
    one = wide.pivot(index=["batch_size", "prompt_length", "repeat"], columns="metric", values="value")
    left = one.latency_seconds - one.seconds_to_first_token
    assert left.to_numpy() == pytest.approx(4 * one.seconds_per_output_token.to_numpy())
    assert value(rows, "serve", "trained") == 0
    assert value(rows, "serve", "audit_passed") == 1


def test_a_trace_of_a_runs_weights_is_served_in_virtual_time(folder: Path) -> None:
    rows = read_results(folder / "served", {"phase": "serve"})
    assert value(rows, "serve", "trained") == 1
    of = {str(metric): own.value.to_list() for metric, own in rows.groupby("metric")}
    assert of["batch_requests"] == [2, 2, 1, 1] * 2
    assert [one > 0 for one in of["queue_seconds"]] == [False, False, True, False] * 2
    assert of["requests_per_second"] == pytest.approx([4 / 1e9] * 2), "thirty years have passed"
    assert len(of["seconds_per_output_token"]) == 2 * 3, "an answer of one token has none"


def test_what_is_served_are_the_weights_that_the_run_trained(folder: Path) -> None:
    served = open_run(folder / "served", "last")
    rows = Rows("serve")
    _, model = prepared(served, torch.device("cpu"), rows)
    newest = latest_checkpoint(open_run(folder / "trained", "last").checkpoints)
    assert newest is not None
    for name, weight in load_weights(newest).items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_a_run_without_weights_is_refused_by_its_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "trained", tmp_path / "trained")
    for checkpoints in (tmp_path / "trained").glob("*/checkpoints"):
        shutil.rmtree(checkpoints)
    for out, code in ((tmp_path / "trained", 6), (folder / "random", 2)):
        run = open_run(out, "last")
        refused = archbench("serve-bench", run.path, cwd=tmp_path)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (code, "", 1)
        assert f"run {run.run_id}" in refused.stderr
    again, source = served_config(folder / "served", "last", {})
    assert (again.speed.trained, source.path.parent.name) == (str(source.path), "trained"), "not a copy of a copy"
    refused = archbench("serve-bench", source.path, "--set", "n_layer=2", cwd=tmp_path)
    assert (refused.returncode, "--set" in refused.stderr) == (2, True)


@pytest.mark.parametrize(("kind", "captured"), [("static", None), ("graph", 1)])
def test_how_steps_are_taken_is_chosen_and_said(kind: str, captured: int | None, folder: Path, tmp_path: Path) -> None:
    options = ("--trace", "trace.jsonl", "--batch", "2", *TIMED, "--decoding", kind, "--out", tmp_path)
    served = archbench("serve-bench", "last", "--in", "trained", *options, cwd=folder)
    assert served.returncode == 0, served.stderr
    rows = read_results(tmp_path, {"phase": "serve"})
    assert value(rows, "serve", "audit_passed") == 1
    assert rows[rows.metric == "batch_requests"].value.to_list() == [2, 2, 1, 1] * 2
    of_graphs = rows[rows.metric == "graph_captured"]
    assert of_graphs.value.to_list() == ([] if captured is None else [captured])
    assert ("one replay of a captured step" in served.stdout) == (captured is not None)


def test_a_generated_text_does_not_depend_on_how_its_steps_are_taken(folder: Path) -> None:
    texts = {}
    for kind, said in (("eager", ""), ("static", "Decoding: static"), ("graph", "Decoding: graph")):
        options = ("--out", "trained", "--seed", "3", "--prompt", "a", "--max-new-tokens", "6", "--decoding", kind)
        code, out, error = printed("generate", "gpt1", *options, cwd=folder)
        assert code == 0, error
        assert said in str(error)
        texts[kind] = out
    assert texts["eager"] == texts["static"] == texts["graph"]
    code, _, error = printed("generate", "gpt1", "--out", "trained", "--decoding", "grahp", cwd=folder)
    assert (code, "Did you mean 'graph'" in str(error)) == (2, True)


@pytest.mark.parametrize("disturbed", [True, False])
def test_what_other_work_disturbed_is_said(disturbed: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_serving(read_results(folder / "random").assign(contaminated=disturbed), "random")
    assert ("contaminated" in capsys.readouterr().out) == disturbed


def test_the_page_has_the_percentiles_a_figure_and_what_it_does_not_show(folder: Path) -> None:
    (part,) = read([str(folder / "random")])
    keys = [made.key for made in part.tables]
    assert keys[:2] == ["serving", "throughput"]
    assert [figure.key for figure in part.figures] == ["latencies"]
    assert len(part.figures[0].panels[0].series) == 4
    assert "random weights" in part.said
    assert any("continuous batching" in limit for limit in part.limits)
    assert not any("learning rates" in limit for limit in part.limits)
