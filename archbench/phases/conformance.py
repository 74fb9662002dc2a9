"""What the phase ``check`` found: ``RUN_ID/check.json``, and what a run makes of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from archbench.errors import ConformanceError
from archbench.phases.folder import RunFolder, open_run, write_text
from archbench.results.schema import UNCHECKED
from archbench.testing.checks import LEVEL

FILE = "check.json"


@dataclass(frozen=True)
class Findings:
    """The checks of a run's architecture that are done.

    Attributes:
        level: version of the set of checks.
        context_length: T of the models that were looked at; None in files older than this field.
        results: :class:`archbench.testing.checks.Result` as plain values, in the order they were run.
        running: the check that is being run; None when all are done.
        taken_from: the run of the same model that was checked in this one's stead.
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
            OSError: it cannot be written.
        """
        write_text(run.path / FILE, json.dumps(asdict(self), indent=2) + "\n")


def take_over(checked: Path, run: RunFolder) -> None:
    """Let the checks of an earlier run stand for ``run``'s, where both are of one model by one plugin on one device.

    Of any other run, or one whose checks did not end, nothing is taken: then ``run`` is checked itself.
    """
    other = open_run(checked.parent, checked.name)
    same = all(
        getattr(other.config, name) == getattr(run.config, name) for name in ("architecture", "plugins", "device")
    )
    same &= other.model == run.model
    same &= all(other.facts[name] == run.facts[name] for name in ("plugin_package", "plugin_version", "versions"))
    findings = read_findings(other)
    if not same or findings is None or findings.running is not None or not other.rows_file("check").exists():
        return
    replace(findings, taken_from=other.run_id).write(run)
    run.write_rows("check", other.read_rows("check"))


def read_findings(run: RunFolder) -> Findings | None:
    """What is known of the run's architecture; None before the first check."""
    file = run.path / FILE
    return Findings(**json.loads(file.read_text())) if file.exists() else None


def conformance(run: RunFolder) -> str | None:
    """The column of that name: the level passed, ``unchecked``, or what failed; None where the checks did not end."""
    if not run.config.checked:
        return UNCHECKED
    findings = read_findings(run)
    if findings is None or findings.running is not None:
        return None
    if findings.failed:
        return f"failed: {', '.join(result['name'] for result in findings.failed)}"
    return str(findings.level)


def require_conformance(run: RunFolder) -> None:
    """Nothing, if the run's architecture passed the checks.

    Raises:
        ConformanceError: it did not; the message has each failed check's evidence.
    """
    findings = read_findings(run)
    assert findings is not None, "the phase check leaves its findings before its rows"
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
