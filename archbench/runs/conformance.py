"""The findings of the phase ``check`` (``RUN_ID/check.json``), and what they mean for the run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from archbench.errors import ConformanceError, StorageError
from archbench.files.loader import read_model, validated
from archbench.files.seal import Sealing, sealed
from archbench.files.writing import write_text
from archbench.results.schema import UNCHECKED
from archbench.runs.folder import RunFolder, open_run
from archbench.testing.evaluation import LEVEL, Result

CHECK = "check"
"""The phase."""

FILE = "check.json"


@dataclass(frozen=True)
class Findings:
    """The finished checks of a run's architecture.

    Attributes:
        results: in the order they were run.
        running: the check that did not end; None when all are done.
        level: version of the set of checks.
        context_length: T of the checked models; None in files older than this field.
        taken_from: the run of the same model that was checked, from which these findings were copied.
    """

    results: Sequence[Result] = ()
    running: str | None = None
    level: int = LEVEL
    context_length: int | None = None
    taken_from: str | None = None

    @classmethod
    def of(cls, content: Any) -> Self:
        """Undo :func:`dataclasses.asdict`."""
        return validated(cls, content, error=StorageError, culprit=FILE, next_step="Check again")

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.status == "failed"]

    def write(self, run: RunFolder) -> None:
        """Keep them in the run's folder.

        Raises:
            StorageError: it cannot be written.
        """
        with run.storing(run.path / FILE):
            write_text(run.path / FILE, sealed(asdict(self)))


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
    """What the checks found; None before they have run.

    Raises:
        StorageError: the file is damaged.
    """
    file = run.path / FILE
    if not file.exists():
        return None
    step = f"Delete it and {run.rows_file(CHECK).name} to check the architecture again, with: {run.resume_command}"
    sealing: Sealing = "required" if run.sealed else "optional"
    return read_model(Findings, file, next_step=step, sealing=sealing)


def conformance(run: RunFolder) -> str | None:
    """The column ``conformance``: the level passed, ``unchecked``, or what failed; None if the checks did not end."""
    if not run.config.checked:
        return UNCHECKED
    findings = read_findings(run)
    if findings is None or findings.running is not None:
        return None
    if findings.failed:
        return f"failed: {', '.join(result.name for result in findings.failed)}"
    return str(findings.level)


def require_conformance(run: RunFolder) -> None:
    """Refuse a run whose architecture failed the checks.

    Raises:
        ConformanceError: naming the failed checks, with the evidence of the first.
        StorageError: the findings are missing or damaged.
    """
    findings = read_findings(run)
    if findings is None:  # they are written before the rows of the phase check
        step = f"Delete {run.rows_file(CHECK).name} beside it to check the architecture again"
        raise StorageError(str(run.path / FILE), "it is missing, so nothing says what the checks found", step)
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
        if result.trace:
            error.add_note(f"in the check {result.name}:\n{result.trace}")
    raise error


def _cause(failed: Sequence[Result]) -> str:
    """All failed checks by name, and the evidence of the first: the others often follow from it."""
    first, *others = failed
    evidence = first.evidence.rstrip(". ")
    if not others:
        return f"it fails the conformance check {first.name}: {evidence}"
    names = ", ".join(result.name for result in others)
    return f"it fails the conformance checks {first.name}, {names}. The first: {evidence}"
