"""What the golden files hold, each computed from the archbench that is installed: plain values, the same anywhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from archbench.study import records
from golden import adapters

HERE = Path(__file__).parent
REFERENCE = HERE.parents[1] / "results" / "reference"
PLUGINS = ("--plugin", "left.py", "--plugin", "right.py")
"""Given from :data:`HERE`, so that no key depends on where the repository is."""

LARGEST = 20_000
"""Characters of an output that is kept whole; of a larger one its digest, first and last line."""

_MACHINE = ("--device", "cpu", "--threads", "2", "--jobs", "2")
_BOTH = ("golden-left", "golden-right", *PLUGINS, *_MACHINE)

COMMAND_LINES: tuple[tuple[str, ...], ...] = (
    ("run", "gpt1", "--device", "cpu"),
    ("run", "gpt1", "--device", "cpu", "--profile", "smoke", "--seed", "3", "--steps", "7", "--out", "elsewhere"),
    ("run", "gpt1", "--device", "cpu", "--profile", "standard", "--preset", "nano", "--tokens", "5000", "--unchecked"),
    ("run", "llama", "--device", "cpu", "--profile", "paper", "--dtype", "float32", "--attention", "sdpa"),
    ("run", "llama", "--device", "cpu", "--set", "n_layer=2", "--lr", "0.01", "--optimizer", "muon"),
    ("run", "llama", "--device", "cpu", "--phases", "train,quality,positions", "--schedule", "wsd", "--compile"),
    ("run", "gpt2", "--device", "cpu", "--corpus", "python", "--tokenizer", "bpe:512", "--accumulation", "2"),
    ("run", "gpt2", "--device", "cpu", "--flops", "1e12", "--batch-size", "4", "--threads", "3"),
    ("run", "gpt2", "--device", "cpu", "--seconds", "5", "--config", "training.grad_clip=null"),
    ("run", "gpt2", "--device", "cpu", "--config", "speed.batch_sizes=[1, 2]", "--config", "time_limit=60"),
    ("run", "golden-left", "--device", "cpu", *PLUGINS),
    ("run", "--device", "cpu", "--file", "run.toml"),
    ("run", "--device", "cpu", "--file", "run.toml", "--seed", "5", "--steps", "3"),
    ("compare", *_BOTH),
    ("compare", *_BOTH, "--match", "params", "--baseline", "golden-right", "--profile", "smoke", "--seeds", "3"),
    ("compare", *_BOTH, "--match", "tokens", "--no-tuning", "--sweeps", "1", "--contexts", "1,2", "--margin", "1"),
    ("compare", *_BOTH, "--match", "state", "--tokens", "20000", "--set", "n_layer=3", "--contexts", "none"),
    ("compare", "gpt1", "llama", "--match", "time", "--device", "cpu", "--threads", "2", "--corpus", "python"),
    ("compare", "gpt1", "llama", *_MACHINE, "--config", "training.schedule=wsd", "--out", "elsewhere"),
    ("tune", *_BOTH),
    ("tune", "golden-left", *PLUGINS, *_MACHINE, "--profile", "smoke", "--dtype", "bfloat16", "--tokenizer", "byte"),
    ("probe", "gpt1", "llama", "--device", "cpu", "--jobs", "2"),
    ("probe", "gpt1", "--device", "cpu", "--jobs", "1", "--task", "recall", "--seeds", "2", "--updates", "50"),
    ("probe", "gpt1", "--device", "cpu", "--jobs", "1", "--parameters", "0", "--learning-rate", "0.01", "--unchecked"),
    ("scale", *_BOTH),
    ("scale", *_BOTH, "--sizes", "20k,10k", "--budgets", "5k,10k", "--seeds", "2", "--no-tuning"),
    ("scale", *_BOTH, "--profile", "smoke", "--preset", "nano", "--config", "training.schedule=constant"),
    ("kernels", "--device", "cpu"),
    ("kernels", "--device", "cpu", "--lengths", "64,128", "--heads", "4", "--groups", "1,2", "--windows", "none,32"),
    ("kernels", "--device", "cpu", "--operations", "loss", "--losses", "64x32x100", "--repeats", "2", "--seed", "1"),
)
"""Commands that measure: what each is understood as is kept."""

COMPARED = (13, 14, 15, 16)
SCALED = (25,)
"""Of :data:`COMMAND_LINES`: the plans whose cells are kept."""

PRINTED: dict[str, tuple[str, ...]] = {
    "show": ("show", "golden-left", *PLUGINS, "--json"),
    "show with fields set": ("show", "golden-right", *PLUGINS, "--set", "n_layer=1", "--json"),
    "list": ("list", *PLUGINS, "--json"),
    "tasks": ("probe", "--list", "--json"),
    "results of a run": ("results", "REFERENCE/20261123T112407-da218d.parquet", "--json"),
    "results of a run as CSV": ("results", "REFERENCE/20261123T112407-da218d.parquet", "--csv", "-"),
    "results of a folder": ("results", "REFERENCE", "--json", "--where", "phase=decode"),
    "quality of a comparison": (
        "results", "REFERENCE/compare-nano/runs.parquet", "--json", "--where", "phase=quality",
    ),
    "scores of a ladder": ("results", "REFERENCE/scale-nano/runs.parquet", "--json", "--where", "phase=quality"),
    "scores of a probe": ("results", "REFERENCE/probe-mini/runs.parquet", "--json"),
    "two newest runs of a probe": ("results", "REFERENCE/probe-mini/runs.parquet", "--json", "--limit", "2"),
    "files of version 1": ("results", "TESTS/results_of_version_1", "--json"),
    "files of version 2": ("results", "TESTS/results_of_version_2", "--json"),
}  # fmt: skip


def versions() -> dict[str, str]:
    """That keys of cells depend on."""
    return {"archbench": records.__version__, "torch": metadata.version("torch")}


def command_lines() -> dict[str, Any]:
    """What each command line is understood as: every field of the plan, its digest, and where its results go."""
    found = {}
    for command in COMMAND_LINES:
        plan, folder = adapters.handed_over(*command)
        values: dict[str, Any] = {"plan": plan.model_dump(mode="json")}
        for name in ("digest", "config_hash"):
            if hasattr(plan, name):
                values[name] = getattr(plan, name)()
        found[" ".join(command)] = values if folder is None else {**values, "folder": folder.as_posix()}
    return found


def cell_keys() -> dict[str, Any]:
    """Keys of cells and trials, which name the folders of what an earlier session measured."""
    found: dict[str, Any] = {"versions": versions()}
    for numbers, cells in ((COMPARED, adapters.compare_cells), (SCALED, adapters.scale_cells)):
        for number in numbers:
            command = COMMAND_LINES[number]
            found[" ".join(command)] = cells(adapters.plan_of(command))
    tasks = ("recall", "copying", "state-s3")
    for name, values in {"probe": {}, "probe of fewer updates": {"updates": 10, "learning_rates": (1e-3,)}}.items():
        plan = adapters.probe_plan(architectures=("golden-left",), tasks=tasks, plugins=("left.py",), **values)
        found[name] = adapters.probe_trials(plan)
    return found


def parquet_schema() -> list[dict[str, Any]]:
    """Columns of a run's file, in order."""
    return [{"name": one.name, "type": str(one.type), "nullable": one.nullable} for one in adapters.SCHEMA]


def printed() -> dict[str, Any]:
    """What commands print as JSON or CSV of the committed results and of the plugins here."""
    found = {}
    for name, command in PRINTED.items():
        given = [text.replace("REFERENCE", str(REFERENCE)).replace("TESTS", str(HERE.parent)) for text in command]
        code, out, error = adapters.output(*given)
        assert code == 0, error
        found[name] = _kept(out)
    return found


def reread_outcomes() -> dict[str, list[str]]:
    """Fields that the models of the outcomes read, each of which has in the model the value that the file has."""
    found = {}
    for name, read in adapters.READERS.items():
        file = REFERENCE / name
        model = read(file.parent).as_json()
        found[name] = sorted(_equal_fields(model, json.loads(file.read_text())))
    return found


def reference_files() -> dict[str, str]:
    """SHA-256 of the committed results: nobody edits a measurement."""
    return {
        file.relative_to(REFERENCE).as_posix(): measured(file)
        if file.suffix == ".parquet"
        else hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(REFERENCE.rglob("*"))
        if file.suffix in (".json", ".jsonl", ".parquet")
    }


def measured(file: Path) -> str:
    """SHA-256 of every value that a table had in version 3: of the version and form of its file it is independent."""
    table = pq.read_table(file, partitioning=None)
    later = pc.if_else(pc.equal(table["phase"], "quality"), None, table["tokens_seen"])
    table = table.set_column(table.column_names.index("tokens_seen"), "tokens_seen", later)
    digest = hashlib.sha256()
    for name in table.column_names:
        if name in ("plugin_revision", "role"):
            continue
        column = table[name].combine_chunks().dictionary_encode()
        values, indices = column.dictionary, pc.fill_null(column.indices, -1)
        digest.update(values.to_numpy() if name == "value" else f"{name}: {values.to_pylist()}".encode())
        digest.update(indices.to_numpy())
    return digest.hexdigest()


SNAPSHOTS: dict[str, Callable[[], Any]] = {
    "command_lines": command_lines,
    "cell_keys": cell_keys,
    "parquet_schema": parquet_schema,
    "printed": printed,
    "reread_outcomes": reread_outcomes,
    "reference_files": reference_files,
    "faults_found": adapters.faults,
}
"""File -> what makes its contents."""


def golden(name: str) -> Any:
    """The contents of a golden file."""
    return json.loads((HERE / f"{name}.json").read_text())


def current(name: str) -> Any:
    """The same as it is now; the working directory has to be :data:`HERE`."""
    assert Path.cwd() == HERE
    assert "ARCHBENCH_PLUGINS" not in os.environ
    return json.loads(json.dumps(SNAPSHOTS[name]()))


def _kept(text: str) -> Any:
    text = text.replace(str(HERE), "GOLDEN").replace(str(REFERENCE), "REFERENCE")
    lines = [_without_prose(line) for line in text.splitlines()]
    lines = [line for line in lines if line is not None]
    whole = "\n".join(lines)
    if len(whole) <= LARGEST:
        return lines
    digest = hashlib.sha256(whole.encode()).hexdigest()
    return {"lines": len(lines), "sha256": digest, "first": lines[0], "last": lines[-1]}


def _without_prose(line: str) -> str | None:
    """A line of JSON without sentences that may be reworded; None of a built-in architecture, which has a version."""
    if not line.startswith("{"):
        return line
    values = json.loads(line)
    if values.get("packages", ["GOLDEN"])[0].startswith("archbench "):
        return None
    if "meaning" in values:
        values["meaning"] = list(values["meaning"])
    if "conditions" in values:
        del values["summary"], values["source"]
    return json.dumps(values, ensure_ascii=False)


def _equal_fields(model: Any, content: Any, path: str = "") -> set[str]:
    """Paths of the leaves of ``model``; those of lists' elements as ``*``.

    Raises:
        AssertionError: ``content`` has another value at one of them.
    """
    if isinstance(model, dict):
        assert isinstance(content, dict), path
        found: set[str] = set()
        for name, value in model.items():
            if name not in content:
                assert value in (None, [], {}), f"{path}.{name} is made up: {value!r}"
                continue
            found |= _equal_fields(value, content[name], f"{path}.{name}" if path else name)
        return found
    if isinstance(model, list):
        assert isinstance(content, list), path
        assert len(model) == len(content), path
        pairs = zip(model, content, strict=True)
        return set().union(*(_equal_fields(one, other, f"{path}.*") for one, other in pairs))
    assert _plain(model) == _plain(content), f"{path}: {model!r} instead of {content!r}"
    return {path}


def _plain(value: Any) -> Any:
    """Times are written with Z or +00:00."""
    return value.replace("+00:00", "Z") if isinstance(value, str) else value
