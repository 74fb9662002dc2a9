"""Whatever is damaged, the command that reads it ends in an error, or prints what it prints of the whole file.

``ARCHBENCH_CORRUPTIONS`` is the number of damaged files, shared out among the kinds; ``-s`` shows the table.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from archbench.config import DataConfig, RunConfig
from archbench.data.dataset import prepare
from archbench.errors import ArchbenchError
from archbench.regression import baselines
from archbench.training.checkpoints import load_latest
from archbench.training.weights import digest_of, read_weights
from command_line import archbench
from comparison_files import write_comparison
from damages import DAMAGES
from gguf_files import published_llama, write_llama
from json_damages import mutated
from small_runs import SMALL, with_small_corpus

NUMBER = int(os.environ.get("ARCHBENCH_CORRUPTIONS", 24))
MOST_MEMORY = 1 << 30
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
    """

    name: str
    file: Path
    read: Callable[[], Answer]
    sealed: bool = True
    header: int = 0
    found: Counter[str] = field(default_factory=Counter)


def called(function: Callable[[], Any]) -> Callable[[], Answer]:
    def read() -> Answer:
        try:
            return 0, repr(function()), ""
        except ArchbenchError as error:
            return error.exit_code, "", str(error)

    return read


def command(*arguments: str, cwd: Path, before: Callable[[], object] = lambda: None) -> Callable[[], Answer]:
    def read() -> Answer:
        before()
        done = archbench(*arguments, cwd=cwd)
        return done.returncode, done.stdout, done.stderr

    return read


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Kind]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield _kinds(tmp_path_factory.mktemp("corrupted"))


def _kinds(folder: Path) -> list[Kind]:
    with_small_corpus(folder)
    done = archbench("run", "gpt1", *SMALL, "--phases", "train,quality", "--tokenizer", "bpe:300", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = archbench(*PROBE, cwd=folder)
    assert done.returncode == 0, done.stderr
    run = next((folder / "results").glob("*/config.json")).parent
    parquet, kept = run.with_suffix(".parquet"), folder / "kept.parquet"
    shutil.copy(parquet, kept)
    checkpoint = max(run.glob("checkpoints/step-*"))

    show = command("results", f"results/{parquet.name}", "--json", cwd=folder)
    generate = command("generate", "gpt1", "--seed", "1", "--max-new-tokens", "3", "--prompt", "the them", cwd=folder)
    again = command(
        "run", "gpt1", "--resume", "last", "--quiet", "--json", cwd=folder,
        before=lambda: parquet.unlink(missing_ok=True),
    )  # fmt: skip
    probe = command(*PROBE, cwd=folder)
    study = folder / "study"
    found = [
        Kind("results: Parquet", parquet, show),
        Kind("results: JSON", run.with_suffix(".json"), show),
        Kind("run: config.json", run / "config.json", generate),
        Kind("run: rows-train.jsonl", run / "rows-train.jsonl", again),
        Kind("run: rows-quality.jsonl", run / "rows-quality.jsonl", again),
        Kind("run: check.json", run / "check.json", again),
        Kind("checkpoint: weights", checkpoint / "model.safetensors", generate),
        Kind("checkpoint: training", checkpoint / "training.pt", called(lambda: _resumed(run))),
        Kind("checkpoint: manifest", checkpoint / "manifest.json", generate),
        Kind("tokenizer: named", run / "tokenizer" / "archbench_tokenizer.json", generate),
        Kind("tokenizer: saved", run / "tokenizer" / "tokenizer.json", generate),
        Kind("study: plan", study / "probe-plan.json", probe),
        *(Kind(f"study: cell {number}", file, probe) for number, file in enumerate(sorted(study.glob("cells/*")))),
    ]
    comparison = folder / "comparison"
    write_comparison(comparison)
    page = command("report", "comparison", "-o", "page.html", "--md", "page.md", cwd=folder)

    def report() -> Answer:
        for name in ("page.html", "page.md"):
            (folder / name).unlink(missing_ok=True)
        code, _, said = page()
        return code, (folder / "page.md").read_text() if code == 0 else "", said

    found += [
        Kind("study: outcome without a seal", comparison / "comparison.json", report, sealed=False),
        Kind("study: rows", study / "runs.parquet", command("results", "study/runs.parquet", "--json", cwd=folder)),
    ]
    found += _foreign(folder)
    found += _caches(folder)
    return found


def _resumed(run: Path) -> object:
    """What training would continue from."""
    found = load_latest(run / "checkpoints")
    assert found is not None
    return found.step, sorted(found.weights), sorted(found.training), found.training["tokens"]


def _foreign(folder: Path) -> list[Kind]:
    """Files that others write: damaged ones may be read, as what they then are."""
    gguf, safetensors = folder / "model.gguf", folder / "model.safetensors"
    write_llama(gguf, published_llama())
    save_file({"a": torch.arange(64.0), "b": torch.ones(4, 4)}, safetensors)
    run_file = folder / "run.toml"
    run_file.write_text('profile = "smoke"\nseed = 3\nplugins = []\n[training]\nsteps = 7\nbetas = [0.9, 0.95]\n')

    def weights(path: Path) -> Callable[[], object]:
        return lambda: (sorted(read_weights(path)), digest_of(path))

    def configured() -> object:
        from archbench.cli.run import read_run_file
        from archbench.config import filled

        return RunConfig(**filled(read_run_file(str(run_file)), {"architecture": "gpt1"})).config_hash()

    return [
        Kind("GGUF", gguf, called(weights(gguf)), sealed=False, header=2000),
        Kind("safetensors", safetensors, called(weights(safetensors)), sealed=False, header=120),
        Kind("run file", run_file, called(configured), sealed=False),
    ]


def _caches(folder: Path) -> list[Kind]:
    data = DataConfig(corpus=str(folder / "small.txt"), tokenizer="byte")

    def tokens() -> object:
        made = prepare(data)
        return hash(bytes(made.train.data)), [hash(bytes(one.tokens.data)) for one in made.validation], made.lossless

    tokens()
    cache = Path(os.environ["ARCHBENCH_CACHE"]) / "tokens"
    array = max(cache.glob("*.npy"), key=lambda file: file.stat().st_mtime_ns)
    key = baselines.Key("CPU", "2.13.0", 1, "abc")
    exact: dict[str, Any] = {"parameters": 3, "flops": 1.5e9}
    base = baselines.save(folder / "baselines", baselines.Baseline(key, "mine", "", exact, {"decode": [0.1, 0.2]}))
    return [
        Kind("cache: tokens", array, called(tokens)),
        Kind("cache: record", array.with_suffix(".json"), called(tokens)),
        Kind("baseline", base, called(lambda: baselines.read(folder / "baselines", key, "mine"))),
    ]


def damaged_copies(
    content: bytes, number: int, seed: int, *, is_json: bool, header: int = 0
) -> Iterator[tuple[str, bytes]]:
    """Name and content of each; half are changes to bytes, half (of JSON) changes to values."""
    made = 0
    for attempt in range(seed * 1_000_003, seed * 1_000_003 + 50 * number):
        draw = random.Random(attempt)
        if is_json and made % 2:
            reseal = draw.random() < 0.5
            name, changed = f"value{' sealed anew' if reseal else ''}", mutated(content, draw, reseal=reseal)
        else:
            name = draw.choice(["flipped_bit", *DAMAGES])
            end = header if header and made % 2 else len(content)
            changed = DAMAGES[name](content[:end], draw) + content[end:]
        if changed != content:
            yield f"{name} {attempt}", changed
            made += 1
        if made == number:
            return


def examine(kind: Kind, number: int, seed: int) -> list[str]:
    """Damage the file ``number`` times; what went wrong, in words."""
    whole = kind.file.read_bytes()
    code, clean, said = kind.read()
    assert code == 0, f"{kind.name}: {said}"
    whole = kind.file.read_bytes()
    wrong = []
    is_json = kind.file.suffix in (".json", ".jsonl")
    for name, content in damaged_copies(whole, number, seed, is_json=is_json, header=kind.header):
        if not kind.file.parent.exists():
            kind.file.parent.mkdir(parents=True)
        kind.file.write_bytes(content)
        code, printed, said = kind.read()
        kind.file.write_bytes(whole)
        allowed = not kind.sealed or "sealed anew" in name
        if "Traceback" in said or code == 70:
            verdict = "traceback"
        elif code != 0:
            verdict = "error"
        elif printed == clean:
            verdict = "equal"
        else:
            verdict = "as written" if allowed else "altered"
        kind.found[verdict] += 1
        if verdict in ("traceback", "altered"):
            wrong.append(f"{kind.name}, {name}: {verdict} {said[-300:]}")
    return wrong


def test_no_damage_is_read_as_data_or_ends_in_a_traceback(kinds: list[Kind]) -> None:
    each = max(1, round(NUMBER / len(kinds)))
    wrong: list[str] = []
    for kind in kinds:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wrong += examine(kind, each, seed=1 + len(kind.name))
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
        if more > MOST_MEMORY:
            wrong.append(f"{kind.name}: {more >> 20} MiB more than the whole file takes")
    columns = ("error", "equal", "as written", "altered", "traceback")
    print(f"\n{'kind':32}" + "".join(f"{column:>12}" for column in columns))
    for kind in kinds:
        print(f"{kind.name:32}" + "".join(f"{kind.found[column]:12}" for column in columns))
    assert not wrong, "\n".join(wrong)
