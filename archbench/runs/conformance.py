"""The findings of the phase ``check`` (``RUN_ID/check.json``), and what they mean for the run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from archbench.errors import ConformanceError
from archbench.files.writing import write_text
from archbench.results.schema import UNCHECKED
from archbench.runs.folder import RunFolder, open_run
from archbench.testing.evaluation import LEVEL

CHECK = "check"
"""The phase."""

FILE = "check.json"


@dataclass(frozen=True)
class Findings:
    """The finished checks of a run's architecture.

    Attributes:
        results: :class:`archbench.testing.evaluation.Result` as plain values, in the order they were run.
        running: the check that did not end; None when all are done.
        level: version of the set of checks.
        context_length: T of the checked models; None in files older than this field.
        taken_from: the run of the same model from which these findings were copied.
    """

    results: Sequence[dict[str, Any]] = ()
    running: str | None = None
    level: int = LEVEL
    context_length: int | None = None
    taken_from: str | None = None

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [result for result in self.results if result["status"] == "failed"]

    def write(self, run: RunFolder) -> None:
        """Keep them in the run's folder.

        Raises:
            StorageError: it cannot be written.
        """
        with run.storing(run.path / FILE):
            write_text(run.path / FILE, json.dumps(asdict(self), indent=2) + "\n")


def take_over(checked: Path, run: RunFolder) -> None:
    """Copy the findings of a run of the same model, plugin and device, if its checks ended and are of this level.

    Otherwise nothing is copied, and ``run`` is checked itself.
    """
    other = open_run(checked.parent, checked.name)
    same = all(
        getattr(other.config, name) == getattr(run.config, name) for name in ("architecture", "plugins", "device")
    )
    same &= other.model == run.model
    same &= all(other.facts[name] == run.facts[name] for name in ("plugin_package", "plugin_version", "versions"))
    findings = read_findings(other)
    ended = findings is not None and findings.running is None and other.rows_file(CHECK).exists()
    if not same or not ended or findings is None or findings.level != LEVEL:
        return
    replace(findings, taken_from=other.run_id).write(run)
    run.write_rows(CHECK, other.read_rows(CHECK))


def read_findings(run: RunFolder) -> Findings | None:
    """What the checks found; None before they have run."""
    file = run.path / FILE
    return Findings(**json.loads(file.read_text())) if file.exists() else None


def conformance(run: RunFolder) -> str | None:
    """The column ``conformance``: the level passed, ``unchecked``, or what failed; None if the checks did not end."""
    if not run.config.checked:
        return UNCHECKED
    findings = read_findings(run)
    if findings is None or findings.running is not None:
        return None
    if findings.failed:
        return f"failed: {', '.join(result['name'] for result in findings.failed)}"
    return str(findings.level)


def require_conformance(run: RunFolder) -> None:
    """Refuse a run whose architecture failed the checks.

    Raises:
        ConformanceError: naming the failed checks, with the evidence of the first.
    """
    findings = read_findings(run)
    assert findings is not None, "the findings are written before the rows of the phase check"
    if not findings.failed:
        return
    config = run.config
    plugins = [f" --plugin {shlex.quote(path)}" for path in config.plugins]
    error = ConformanceError(
        f"architecture {config.architecture} (preset {config.preset})",
        _cause(findings.failed),
        f"Correct it (archbench check {config.architecture}{''.join(plugins)} shows all), "
        "or measure it all the same with --unchecked",
    )
    for result in findings.failed:
        if result["trace"]:
            error.add_note(f"in the check {result['name']}:\n{result['trace']}")
    raise error


def _cause(failed: Sequence[dict[str, Any]]) -> str:
    """All failed checks by name, and the evidence of the first: the others often follow from it."""
    first, *others = failed
    evidence = first["evidence"].rstrip(". ")
    if not others:
        return f"it fails the conformance check {first['name']}: {evidence}"
    names = ", ".join(result["name"] for result in others)
    return f"it fails the conformance checks {first['name']}, {names}. The first: {evidence}"
