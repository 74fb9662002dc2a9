"""Studies that the old archbench finished: their folders are in ``studies/``, without what no study reads again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from archbench.files.seal import unsealed
from golden import adapters

HERE = Path(__file__).parent
STUDIES = HERE / "studies"

BOTH = ("golden-left", "golden-right", "--plugin", "left.py", "--plugin", "right.py")
ONE_THREAD = ("--device", "cpu", "--threads", "1", "--jobs", "1", "--profile", "smoke", "--quiet", "--json")
COMPARE = ("compare", *BOTH, *ONE_THREAD, "--seeds", "2", "--no-tuning", "--sweeps", "1", "--contexts", "1")
SCALE = (
    "scale", "golden-left", *BOTH[2:], *ONE_THREAD, "--sizes", "10k,20k", "--budgets", "2k,4k", "--no-tuning",
)  # fmt: skip
PROBE: dict[str, Any] = {
    "architectures": ("golden-left", "golden-right"),
    "tasks": ("recall", "state-parity"),
    "plugins": ("left.py", "right.py"),
    "updates": 20,
    "examples": 40,
    "seeds": 2,
    "learning_rates": (1e-3, 3e-3),
    "parameters": 15000,
}
OUTCOMES = {"comparison": "comparison.json", "ladder": "scale.json", "probe": "probe.json"}

INCIDENTAL = ("archbench_version", "command", "finished", "git_revision", "machine", "seconds")
"""Of an outcome: when, where and by which version it was written."""

PROSE = ("cause", "matched_on", "note", "reason", "source", "summary", "unranked")
"""Sentences, which may be reworded."""

UNFINISHED = ("947549df1423cd39", "eef0c9396ffd4548", "b87083092da2299f", "a56c12aee35d6558", "13c8568cff462aee")
"""Cells of the comparison that its first session did not get to: a seed, two turns of speed, two context lengths."""


def written_again(study: str, folder: Path) -> dict[str, Any]:
    """The outcome of the same command in the study's folder, where every cell is known; ``folder`` is a new one."""
    shutil.copytree(STUDIES / study, folder)
    if study == "probe":
        adapters.probed(adapters.probe_plan(**PROBE), folder)
    else:
        command = COMPARE if study == "comparison" else SCALE
        code, out, error = adapters.output(*command, "--out", str(folder))
        assert code == 0, error
        assert json.loads(out) == unsealed(json.loads((folder / OUTCOMES[study]).read_text()))
    return outcome_in(folder, study)


def outcome_in(folder: Path, study: str) -> dict[str, Any]:
    """What a study's outcome says of what was measured."""
    outcome = unsealed(json.loads((folder / OUTCOMES[study]).read_text()))
    return {name: _without_prose(value) for name, value in outcome.items() if name not in INCIDENTAL}


def interrupted(folder: Path) -> Path:
    """The comparison's folder as it was left by a session that was interrupted."""
    shutil.copytree(STUDIES / "comparison", folder)
    for key in UNFINISHED:
        (folder / "cells" / f"{key}.json").unlink()
        shutil.rmtree(folder / "runs" / key)
    for name in ("comparison.json", "runs.parquet"):
        (folder / name).unlink()
    plan = json.loads((folder / "plan.json").read_text())
    del plan["looks"]
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def _without_prose(value: Any) -> Any:
    """Of each sentence only whether there is one."""
    if isinstance(value, list):
        return [_without_prose(one) for one in value]
    if isinstance(value, dict):
        return {name: one is not None if name in PROSE else _without_prose(one) for name, one in value.items()}
    return value
