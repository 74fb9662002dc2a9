"""The README.md of an exported folder: how to load it, what was measured of it, and what that does not show."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from archbench import __version__
from archbench.export.readers import reader_of
from archbench.presentation.quantities import count
from archbench.presentation.tables import Column, escaped, markdown, table
from archbench.report.basis import basis
from archbench.report.run_tables import checks, page_summary
from archbench.results.reading import read_results
from archbench.runs.models import count_parameters

if TYPE_CHECKING:
    from archbench.export.exported_run import ExportedRun

_CAVEATS = (
    "Times and memory are those of archbench's implementation on the machine named below, not of the library that "
    "reads this folder. Bits per byte, loss and perplexity are the model's own.",
    "A model trained to compare architectures: small, on little text, aligned with nothing. It is not for use.",
    "No licence is given: that depends on the text it was trained on, and on whoever trained it.",
)


def model_card(one: ExportedRun) -> str:
    """The card, in Markdown with the hub's metadata on top.

    Raises:
        StorageError: the run's results cannot be read.
    """
    run, reader = one.run, reader_of(one.config)
    folder, info = run.folder, run.architecture.info
    rows = read_results(folder.path.with_suffix(".parquet"), trials=True).assign(name=None)
    trained = "train" in folder.config.phases
    origin = (
        "trained from scratch" if folder.config.weights is None else f"from {_without_folders(folder.config.weights)}"
    )
    if folder.config.weights is not None:
        origin += ", trained further" if trained else ", not trained here"
    lines = [
        "---",
        f"library_name: {json.dumps(reader.library)}",
        "pipeline_tag: text-generation",
        f"tags: {json.dumps(['archbench', info.name])}",
        "---",
        "",
        f"# {escaped(info.name)}, {count(count_parameters(run.model))} parameters",
        "",
        f"{escaped(info.summary)} ({escaped(info.paper)}); {escaped(origin)}. Measured and exported by archbench "
        f"{__version__}.",
        "",
        *([escaped(reader.note), ""] if reader.note else []),
        f"```python\n{reader.code}\n```",
        "",
        f"Tokenizer: {escaped(_without_folders(folder.facts['tokenizer']))}. It adds nothing to a text. Each document "
        f"of the training text followed the separator, id {run.tokenizer.separator}, which is both bos and eos: begin "
        f"with it where a text begins. The model reads at most {run.config.context_length} positions.",
        "",
        *markdown(page_summary(rows)),
        *(f"- {escaped(sentence)}" for sentence in (*basis(rows), *_CAVEATS)),
        "",
        *markdown(table("facts", "The run", (Column("", "text"), Column("", "text")), _facts(one, rows))),
    ]
    return "\n".join(lines)


def _facts(one: ExportedRun, rows: Any) -> list[tuple[str, str]]:
    """What the run was: its text, budget, recipe and machine."""
    run, first = one.run.folder, rows.iloc[0]
    config, facts = run.config, run.facts
    training = config.training.model_dump(mode="json") if "train" in config.phases else {}
    versions, machine = facts["versions"], facts.get("machine") or {}
    machine = {name: one for name, one in machine.items() if name not in versions}
    lines = [
        ("run", f"{run.run_id}, {first.time_utc}"),
        ("architecture", f"{config.architecture} of {facts['plugin_package']} {facts['plugin_version'] or ''}".strip()),
        ("configuration", _pairs(run.model)),
        ("text", f"{facts['corpus']}, sha256 {str(facts.get('corpus_sha256'))[:12]}"),
        ("seed, dtype", f"{config.seed}, {config.dtype}"),
        *([("training", _pairs(training))] if training else []),
        ("conformance checks", checks(rows)),
        ("machine", f"{first.device_name}; {_pairs(machine)}"),
        ("versions", _pairs(versions)),
    ]
    return [(what, _without_folders(text)) for what, text in lines]


def _without_folders(text: str) -> str:
    """Paths of this machine by their last part: a card may be read by everybody."""
    return re.sub(r"(?<![\w.~/])[/~](?:[^/\s,()]+/)+", "", text)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
