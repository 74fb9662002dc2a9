"""The tidy table: one measurement per row, base units only, an explicit type for every column.

Source: Wickham 2014, "Tidy Data" (each variable a column, each observation a row). The end of the data dictionary
in ``results/README.md`` is generated from here by :func:`data_dictionary`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from archbench.errors import did_you_mean
from archbench.results.metrics import METRICS

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 8
"""Increased if a column is added or changes its name, type or meaning; readers reject newer files and upgrade older
ones. 2: the columns that distinguish the cases of the phase ``kernel``. 3: ``conformance`` and ``status``.
4: ``role`` and ``plugin_revision``, and ``tokens_seen`` in quality rows. 5: the columns of the phase ``eval``.
6: ``host`` and ``driver``. 7: ``products``. 8: float8 in ``products``."""

OK = "ok"
"""``status`` of every row that is a measurement."""

UNCHECKED = "unchecked"
"""``conformance`` of a run without checks (``--unchecked``)."""

FAILED = "failed"
"""``metric`` of the row of the error that ended a run; its ``status`` is the error, its value null."""

INTERRUPTED = "interrupted"
"""``metric`` of the row of the signal that ended a run; the same, and ``--resume`` replaces it."""

ENDED = (FAILED, INTERRUPTED)

Role = Literal["trial", "confirm", "timing", "cost", "pilot"]
"""What a run of a study is for."""

ROLES: dict[str, Role] = {
    "pilot": "pilot", "tune": "trial", "seed": "confirm", "point": "confirm", "speed": "timing", "cost": "cost",
}  # fmt: skip
"""Stage of a study's cell -> the role of its rows."""

TRIALS: tuple[Role, ...] = ("trial", "pilot")
"""Roles of runs that choose and predict, and are compared with nothing: readers leave their rows out."""

ROWS = "runs.parquet"
"""The rows of all cells of a study; the file lies beside its outcome."""

OUTCOMES = ("comparison.json", "tuning.json", "scale.json", "probe.json")
"""The outcomes of studies."""

TypeName = Literal["string", "int64", "double", "bool", "timestamp"]


@dataclass(frozen=True)
class Column:
    """One column of the tidy table.

    Attributes:
        name: as in the file and in the data frame.
        type: the Arrow type; ``timestamp`` is microseconds, UTC.
        unit: unit of the values, or "" if none.
        description: what it holds.
        nullable: whether it may be null.
    """

    name: str
    type: TypeName
    unit: str
    description: str
    nullable: bool = False


COLUMNS: tuple[Column, ...] = (
    Column("run_id", "string", "", "the run: start time in UTC and six random hex digits; also the file's name"),
    Column("time_utc", "timestamp", "", "when the run started"),
    Column("schema_version", "int64", "", "version of this table's layout"),
    Column("architecture", "string", "", "the architecture's name; none: a run of kernels"),
    Column("plugin_package", "string", "", "package or file the architecture came from"),
    Column("plugin_version", "string", "", "version of that package", nullable=True),
    Column(
        "plugin_revision",
        "string",
        "",
        "commit of the repository that has the plugin's file, when the run starts, -dirty if changed; null: none has",
        nullable=True,
    ),
    Column("preset", "string", "", "named size of the architecture; none: a run of kernels"),
    Column("config_hash", "string", "", "12 hex digits: equal for runs that differ only in seed and output folder"),
    Column("seed", "int64", "", "seed of weights, batches and sampling"),
    Column(
        "role",
        "string",
        "",
        "what a study's run is for: trial (of a learning rate, on a share of the budget), pilot (a few updates, to "
        "predict the time), confirm (what is compared: a fresh seed, a point of a ladder, a probe's chosen rate), "
        "timing, cost; null: a run of its own",
        nullable=True,
    ),
    Column(
        "phase",
        "string",
        "",
        "what was measured: check, train, quality, prefill, decode, eval, kernel, environment ...",
    ),
    Column("metric", "string", "", "which quantity; see the metrics below"),
    Column("unit", "string", "", "unit of value; 1 for a plain number"),
    Column("value", "double", "see unit", "the measurement; null: unknown on this machine", nullable=True),
    Column("standard_error", "double", "see unit", "phase eval: of value, over the questions; null: none", True),
    Column("repeat", "int64", "", "number of the repeat, step or gap, from 0"),
    Column("device", "string", "", "cpu or cuda, as torch names it"),
    Column("device_name", "string", "", "model of the CPU or GPU"),
    Column("host", "string", "", "name of the machine, as its network knows it; null: before version 6", nullable=True),
    Column("driver", "string", "", "version of the NVIDIA driver; null: no such GPU, or unknown", nullable=True),
    Column("dtype", "string", "", "dtype the matrix products ran in"),
    Column(
        "attention",
        "string",
        "",
        "attention backends that ran, joined by +; -autotuned: not from the table",
        nullable=True,
    ),
    Column(
        "products",
        "string",
        "",
        "what computed layers' products, joined by +: of float32 ones on a CPU torch (its own choice, MKL on x86), "
        "onednn, torch-batched (one row by MKL's batched product), packed (few rows in a decoding step by oneDNN, from "
        "a copy of the weight, which is in peak memory); float8-head, float8-layers, on a CPU -emulated (in float32: "
        "no speed of it means anything); none; null: torch's on other devices, and before version 7",
        nullable=True,
    ),
    Column("compile", "bool", "", "whether the model ran under torch.compile"),
    Column("threads", "int64", "", "CPU threads torch used"),
    Column("world_size", "int64", "", "processes that train or score together"),
    Column("batch_size", "int64", "sequences", "B, sequences at a time", nullable=True),
    Column("context_length", "int64", "tokens", "T, positions the model reads at once", nullable=True),
    Column("prompt_length", "int64", "tokens", "P, tokens of the prompt", nullable=True),
    Column(
        "operation",
        "string",
        "",
        "phase kernel: the function measured; probe: the condition; eval: the filter; decode: why no graph",
        True,
    ),
    Column("query_heads", "int64", "", "phase kernel: H, query heads", nullable=True),
    Column("kv_heads", "int64", "", "phase kernel: G, key/value heads", nullable=True),
    Column("head_width", "int64", "", "phase kernel: D, head width", nullable=True),
    Column("window", "int64", "tokens", "phase kernel: W, positions that each sees, including itself; null: all", True),
    Column("model_width", "int64", "", "phase kernel: C, width of the hidden states that a loss reads", nullable=True),
    Column("vocab_size", "int64", "", "phase kernel: V, classes of a loss", nullable=True),
    Column("parameters", "int64", "", "trained numbers in the model, tied ones counted once", nullable=True),
    Column("corpus", "string", "", "name of the text; phases probe and eval: of the task", nullable=True),
    Column(
        "task_version", "string", "", "phase eval: the version that the task's file says, and that of lm_eval", True
    ),
    Column("shots", "int64", "", "phase eval: examples before each question", nullable=True),
    Column("tokenizer", "string", "", "name of the tokenizer", nullable=True),
    Column("lossless", "bool", "", "whether the tokens' bytes add up to the text's bytes", nullable=True),
    Column(
        "tokens_seen",
        "int64",
        "tokens",
        "training tokens of this run before this measurement; null: not counted",
        nullable=True,
    ),
    Column("contaminated", "bool", "", "whether something else disturbed the phase; null: unknown", nullable=True),
    Column(
        "conformance",
        "string",
        "",
        "level of the conformance checks that the architecture passed before the run; unchecked: not checked "
        "(--unchecked); failed: with the names of the failed ones; null: unknown",
        nullable=True,
    ),
    Column("status", "string", "", "ok: a measurement; otherwise the error that ended the run, in this phase", True),
    Column("malloc", "string", "", "configuration of the memory allocator", nullable=True),
    Column("archbench_version", "string", "", "version of archbench"),
    Column("torch_version", "string", "", "version of torch"),
    Column("triton_version", "string", "", "version of triton; null: not installed", nullable=True),
    Column("python_version", "string", "", "version of Python"),
    Column(
        "git_revision", "string", "", "commit of the archbench checkout, -dirty if changed; null: no checkout", True
    ),
)
"""Every column, in file order."""

_VERSION_KEY = b"archbench_schema_version"


@cache
def arrow_schema() -> pa.Schema:
    """The Arrow schema of a results file; its metadata carries :data:`SCHEMA_VERSION`."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int64": pa.int64(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    fields = [pa.field(column.name, types[column.type], nullable=column.nullable) for column in COLUMNS]
    return pa.schema(fields, metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()})


def file_version(schema: pa.Schema) -> int | None:
    """The schema version in a file; None: archbench did not write it, or it is damaged."""
    text = (schema.metadata or {}).get(_VERSION_KEY)
    return int(text) if text is not None and re.fullmatch(rb"0|[1-9][0-9]{0,8}", text) else None


def did_you_mean_column(name: str) -> str:
    """The next step after an unknown column."""
    return did_you_mean(name, [column.name for column in COLUMNS])


def data_dictionary() -> str:
    """Every column and every metric of the tidy table, as Markdown."""
    lines = [
        f"Schema version {SCHEMA_VERSION}.",
        "",
        "## Columns",
        "",
        "| column | type | unit | null | meaning |",
        "|---|---|---|---|---|",
    ]
    for column in COLUMNS:
        null = "yes" if column.nullable else "no"
        lines.append(f"| {column.name} | {column.type} | {column.unit} | {null} | {column.description} |")
    lines += [
        "",
        "## Metrics",
        "",
        "A third-party phase may add its own. Each metric has one unit, which the writer enforces. "
        "The phase `environment` has one set of rows for each phase of the run: `repeat` is its number in the "
        "run's list of phases, from 0.",
        "",
        f"A run that an error ended keeps the rows of its finished phases, and has one more row: the metric "
        f"`{FAILED}` of the failed phase, without a value, whose `status` is the error. If a signal ended the run, "
        f"the metric is `{INTERRUPTED}`. All others have `{OK}`.",
        "",
        "| phase | metric | unit | definition |",
        "|---|---|---|---|",
    ]
    lines += [f"| {m.phase} | {m.metric} | {m.unit} | {m.definition} |" for m in METRICS]
    return "\n".join(lines) + "\n"
