"""Whole files of every kind that archbench reads, each with what reads it: tests/test_corruption.py damages them."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from archbench.config import DataConfig
from archbench.data.dataset import prepare
from archbench.errors import ArchbenchError
from archbench.plugin.discovery import project_plugin
from archbench.regression import baselines
from archbench.study.compare_results import unit_scores
from archbench.study.outcome import Record
from archbench.study.records import PlanFile, read_record, write_record
from archbench.trackers.feed import FEED, Feed, FeedReader
from archbench.training.checkpoints import load_latest
from archbench.training.weights import digest_of, read_weights
from command_line import archbench
from comparison_files import write_comparison
from gguf_files import published_llama, write_llama
from golden.studies import STUDIES
from small_runs import SMALL, with_small_corpus

PROBE = (
    "probe", "gpt1", "--task", "copying", "--seeds", "1", "--updates", "2", "--examples", "10", "--jobs", "1",
    "--parameters", "0", "--unchecked", "--quiet", "--out", "study",
)  # fmt: skip

Answer = tuple[int, str, str]
"""Exit code, what is printed or read, what is said."""


@dataclass
class Kind:
    """A kind of file.

    Attributes:
        file: the one that is damaged.
        read: the command that reads it, or what stands for it.
        header: bytes at its start that half of the damages are kept to.
        sealed: archbench wrote it, so altered data would be noticed; otherwise it may say anything that is no fault.
        anew: the reader makes a damaged one again, and says so in the log.
        called: how what is said names it; its name where this is empty.
        found: how often each verdict was given.
        memory: bytes that a damaged file took beyond the whole one.
    """

    name: str
    file: Path
    read: Callable[[], Answer]
    sealed: bool = True
    header: int = 0
    anew: bool = False
    called: str = ""
    found: Counter[str] = field(default_factory=Counter)
    memory: int = 0

    def is_named_in(self, said: str) -> bool:
        return (self.called or self.file.name) in said


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def called(function: Callable[[], Any]) -> Callable[[], Answer]:
    def read() -> Answer:
        log, said = logging.getLogger("archbench"), _Said()
        log.addHandler(said)
        try:
            return 0, repr(function()), "\n".join(said.lines)
        except ArchbenchError as error:
            return error.exit_code, "", "\n".join([*said.lines, str(error)])
        finally:
            log.removeHandler(said)

    return read


def command(*arguments: str, cwd: Path, before: Callable[[], object] = lambda: None) -> Callable[[], Answer]:
    def read() -> Answer:
        before()
        done = archbench(*arguments, cwd=cwd)
        return done.returncode, done.stdout, done.stderr

    return read


def corruptible(folder: Path) -> list[Kind]:
    """One whole file of each kind, in ``folder`` and in the cache folder."""
    with_small_corpus(folder)
    done = archbench("run", "gpt1", *SMALL, "--phases", "train,quality", "--tokenizer", "bpe:300", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = archbench(*PROBE, cwd=folder)
    assert done.returncode == 0, done.stderr
    run = next((folder / "results").glob("*/config.json")).parent
    return [*_of_a_run(folder, run), *_of_studies(folder, run), *_foreign(folder), *_caches(folder)]


def _of_a_run(folder: Path, run: Path) -> Iterator[Kind]:
    parquet, beside = run.with_suffix(".parquet"), run.with_suffix(".json")
    checkpoint = max(run.glob("checkpoints/step-*"))
    show = command("results", f"results/{parquet.name}", "--json", cwd=folder)
    verify = command("results", f"results/{beside.name}", "--verify", "--json", cwd=folder)
    generate = command("generate", "gpt1", "--seed", "1", "--max-new-tokens", "3", "--prompt", "the them", cwd=folder)
    again = command(
        "run", "gpt1", "--resume", "last", "--quiet", "--json", cwd=folder,
        before=lambda: parquet.unlink(missing_ok=True),
    )  # fmt: skip

    def resumed() -> object:
        found = load_latest(run / "checkpoints")
        assert found is not None
        return found.step, sorted(found.weights), sorted(found.training), found.training["tokens"]

    yield Kind("results: Parquet", parquet, show)
    yield Kind("results: JSON", beside, verify)
    yield Kind("run: config.json", run / "config.json", generate)
    for name in ("rows-train.jsonl", "rows-quality.jsonl", "check.json"):
        yield Kind(f"run: {name}", run / name, again)
    training = folder / "training"  # the feed of a run is gone once it has ended
    training.mkdir()
    with Feed(training) as feed:
        for step in range(6):
            feed.log(step, 128 * step, {"loss": 5.0 - step, "learning_rate": 1e-3})
    fed = called(lambda: list(FeedReader(training).read()))
    yield Kind("run: tracker's feed", training / FEED, fed, sealed=False)
    yield Kind("checkpoint: weights", checkpoint / "model.safetensors", generate)
    yield Kind("checkpoint: training", checkpoint / "training.pt", called(resumed))
    yield Kind("checkpoint: manifest", checkpoint / "manifest.json", generate)
    yield Kind("tokenizer: named", run / "tokenizer" / "archbench_tokenizer.json", generate)
    yield Kind("tokenizer: saved", run / "tokenizer" / "tokenizer.json", generate)


def _of_studies(folder: Path, run: Path) -> Iterator[Kind]:
    probe, study = command(*PROBE, cwd=folder), folder / "study"
    yield Kind("probe: plan", study / "probe-plan.json", probe)
    cells = sorted(study.glob("cells/*.json"), key=lambda file: file.stat().st_mtime_ns)
    yield Kind("probe: pilot", cells[0], probe)
    yield Kind("probe: cell", cells[-1], probe)
    yield Kind("probe: outcome", study / "probe.json", _page(folder, "study"))
    yield Kind("probe: rows", study / "runs.parquet", command("results", "study/runs.parquet", "--json", cwd=folder))
    write_comparison(folder / "comparison")
    outcome = folder / "comparison" / "comparison.json"
    yield Kind("comparison: outcome without a seal", outcome, _page(folder, "comparison"), sealed=False)

    scored = folder / "scored"
    record = Record(key="0123456789abcdef", run_id=run.name, outcome="ok")
    scores = scored / "runs" / record.key / run.name
    scores.mkdir(parents=True)

    def units() -> object:
        found, what = unit_scores(scored, {"gpt1": [record]})
        return found["gpt1"].bits_per_byte, found["gpt1"].unit_nats.tolist(), what

    for name in ("documents.parquet", "blocks.parquet"):
        shutil.copy(run / name, scores)
        yield Kind(f"comparison: {name}", scores / name, called(units))
    yield from _plans_and_cells(folder)


def _page(folder: Path, study: str) -> Callable[[], Answer]:
    page = command("report", study, "-o", "page.html", "--md", "page.md", cwd=folder)

    def read() -> Answer:
        for name in ("page.html", "page.md"):
            (folder / name).unlink(missing_ok=True)
        code, _, said = page()
        return code, (folder / "page.md").read_text() if code == 0 else "", said

    return read


def _plans_and_cells(folder: Path) -> Iterator[Kind]:
    """Those of two finished studies: as an earlier archbench wrote them, and as they are written now, with a seal."""
    for study, plan in (("comparison", "plan.json"), ("ladder", "scale-plan.json")):
        cell = min((STUDIES / study / "cells").glob("*.json"))
        for age in ("earlier", "now"):
            copy = folder / f"{study}-{age}"
            (copy / "cells").mkdir(parents=True)
            shutil.copy(STUDIES / study / plan, copy)
            shutil.copy(cell, copy / "cells")
            file, record = PlanFile(copy / plan), read_record(Record, copy, cell.stem)
            assert record is not None
            if age == "now":
                file.write(file.read())
                write_record(copy, record)

            def finished(copy: Path = copy, key: str = cell.stem) -> Record | None:
                return read_record(Record, copy, key)

            yield Kind(f"{study}: plan, {age}", file.path, called(file.read), sealed=age == "now")
            yield Kind(f"{study}: cell, {age}", copy / "cells" / cell.name, called(finished), sealed=age == "now")


def _foreign(folder: Path) -> Iterator[Kind]:
    """Files that others write: damaged ones may be read, as what they then are."""
    gguf, safetensors = folder / "model.gguf", folder / "model.safetensors"
    write_llama(gguf, published_llama())
    save_file({"a": torch.arange(64.0), "b": torch.ones(4, 4)}, safetensors)
    run_file = folder / "run.toml"
    run_file.write_text('profile = "smoke"\nseed = 3\nplugins = []\n[training]\nsteps = 7\nbetas = [0.9, 0.95]\n')
    project = folder / "project"
    (project / "tests").mkdir(parents=True)
    (project / "mine.py").write_text("")
    settings = project / "pyproject.toml"
    settings.write_text('[project]\nname = "mine"\nversion = "1"\n[project.entry-points."archbench"]\nmine = "mine"\n')

    def weights(path: Path) -> Callable[[], object]:
        return lambda: (sorted(read_weights(path)), digest_of(path))

    def configuration() -> object:
        from archbench.cli.run import configured, read_run_file

        return configured(read_run_file(str(run_file)), {"architecture": "gpt1"}, str(run_file)).config_hash()

    yield Kind("GGUF", gguf, called(weights(gguf)), sealed=False, header=2000)
    yield Kind("safetensors", safetensors, called(weights(safetensors)), sealed=False, header=120)
    yield Kind("run file", run_file, called(configuration), sealed=False)
    yield Kind("pyproject.toml", settings, called(lambda: project_plugin("mine", project / "tests")), sealed=False)


def _caches(folder: Path) -> Iterator[Kind]:
    data = DataConfig(corpus=str(folder / "small.txt"), tokenizer="bpe:300")

    def tokens() -> object:
        made = prepare(data)
        return hash(bytes(made.train.data)), [hash(bytes(one.tokens.data)) for one in made.validation], made.lossless

    tokens()
    cache = Path(os.environ["ARCHBENCH_CACHE"])
    array = max((cache / "tokens").glob("*.npy"), key=lambda file: file.stat().st_mtime_ns)
    (tokenizer,), (text,) = (cache / "tokenizers").glob("*.json"), (cache / "texts").glob("*.json")
    yield Kind("cache: tokens", array, called(tokens), anew=True)
    yield Kind("cache: record", array.with_suffix(".json"), called(tokens), anew=True, called=array.stem)
    yield Kind("cache: tokenizer", tokenizer, called(tokens), anew=True)
    yield Kind("cache: text", text, called(tokens), anew=True)
    with contextlib.suppress(ModuleNotFoundError):
        yield _tuned(folder)
    key = baselines.Key("CPU", "2.13.0", 1, "abc")
    exact: dict[str, Any] = {"parameters": 3, "flops": 1.5e9}
    base = baselines.save(folder / "baselines", baselines.Baseline(key, "mine", "", exact, {"decode": [0.1, 0.2]}))
    yield Kind("baseline", base, called(lambda: baselines.read(folder / "baselines", key, "mine")))


def _tuned(folder: Path) -> Kind:
    """What autotuning keeps in Triton's cache."""
    from archbench.kernels.fused import tuning

    file = folder / tuning.FILE
    whole = '{"fastest": 1, "seconds": {"0": 0.002, "1": 0.001}, "of": "a shape"}'
    file.write_text(whole)

    def fastest() -> object:
        if (found := tuning._chosen_before(str(file), 2)) is None:
            file.write_text(whole)  # they are timed again
            return 1
        return found

    return Kind("cache: autotuning", file, called(fastest), sealed=False, anew=True)
