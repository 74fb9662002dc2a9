"""The checks as a pytest suite: a class to subclass in a plugin's own tests.

Everything runs in pytest's process: ``--pdb`` stops where the architecture raised, and an architecture that hangs or
exits takes the session with it. ``archbench check`` survives that.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest

from archbench.errors import ArchbenchError, UsageError
from archbench.plugin.discovery import project_plugin
from archbench.plugin.registry import load
from archbench.testing.checks import CHECKS
from archbench.testing.evaluation import (
    Check,
    Fault,
    NotApplicable,
    Result,
    checked_expectations,
    evaluate,
    judged,
    not_run,
)
from archbench.testing.global_state import import_watched
from archbench.testing.subject import Subject


class Examination:
    """One architecture under test: loaded for its first check, with the names of the checks that have failed."""

    def __init__(
        self,
        architecture: str,
        *,
        plugins: Sequence[str | Path] = (),
        preset: str = "nano",
        overrides: Mapping[str, Any] | None = None,
        expected_failures: Mapping[str, str] | None = None,
        device: str = "cpu",
        culprit: str = "expected_failures",
    ) -> None:
        self.expected_failures = checked_expectations(expected_failures or {}, CHECKS, culprit)
        self.architecture = architecture
        self.plugins = tuple(plugins)
        self.preset = preset
        self.overrides = dict(overrides or {})
        self.device = device
        self.failed: set[str] = set()

    @cached_property
    def subject(self) -> Subject | ArchbenchError:
        """The architecture at its configuration, or the error of loading it."""
        try:
            with import_watched() as changes:
                architecture = load(self.architecture, self.plugins)
            config = architecture.config(self.preset, **self.overrides)
            return Subject(architecture, config, self.device, import_changes=changes)
        except ArchbenchError as error:
            return error

    def result(self, check: Check) -> Result:
        """Run one check, unless one that it needs has failed in this session."""
        subject = self.subject
        if isinstance(subject, Subject):
            (result,) = evaluate(subject, [check], self.expected_failures, failed=self.failed)
        elif "hooks" in self.failed:
            result = not_run(check.name, "hooks")
        else:
            trace = "".join(traceback.format_exception(subject)) if subject.__cause__ else ""
            result = judged(Result(check.name, "failed", str(subject), trace=trace), self.expected_failures)
        if result.blocks:
            self.failed.add(check.name)
        return result

    def run(self, check: Check) -> None:
        """Run one check for a debugger, and raise what the plugin raised."""
        try:
            if isinstance(self.subject, ArchbenchError):
                raise self.subject
            check.run(self.subject)
        except (Fault, ArchbenchError) as error:
            raised: BaseException = error
            while raised.__cause__ is not None:
                raised = raised.__cause__
            raise raised from None


class ArchitectureChecks:
    """Every check as a test of its own.

    ::

        from archbench.testing import ArchitectureChecks

        class TestMyArch(ArchitectureChecks):
            architecture = "my-arch"

    Attributes:
        architecture: its name.
        plugins: plugin files and folders, if it is not installed; relative paths start at the test's own folder.
            By default the module that the project's ``pyproject.toml`` declares as that architecture.
        preset: the model's size.
        overrides: fields of its configuration.
        expected_failures: check -> why it cannot pass yet. Passing is then a failure, so that no reason outlives its
            cause. ``archbench run`` accepts no such reasons.
        device: where the models are.
    """

    architecture: ClassVar[str]
    plugins: ClassVar[Sequence[str | Path]] = ()
    preset: ClassVar[str] = "nano"
    overrides: ClassVar[Mapping[str, Any]] = {}
    expected_failures: ClassVar[Mapping[str, str]] = {}
    device: ClassVar[str] = "cpu"

    @classmethod
    def examinations(cls, config: pytest.Config) -> dict[str, Examination]:
        """What is examined, by the prefix of its tests' ids.

        Raises:
            UsageError: the class has no ``architecture``, or an expected failure that names no check or no reason.
        """
        if not isinstance(getattr(cls, "architecture", None), str):
            raise UsageError(
                cls.__qualname__, "it does not say which architecture it is for", 'Write architecture = "NAME" in it'
            )
        folder = Path(inspect.getfile(cls)).parent
        beside = project_plugin(cls.architecture, folder) if not cls.plugins else None
        examination = Examination(
            cls.architecture,
            plugins=[folder / plugin for plugin in cls.plugins] if beside is None else [beside],
            preset=cls.preset,
            overrides=cls.overrides,
            expected_failures=cls.expected_failures,
            device=cls.device,
            culprit=f"{cls.__qualname__}.expected_failures",
        )
        return {"": examination}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if metafunc.function.__name__ != "test_conformance":
            return
        try:
            found = self.examinations(metafunc.config)
        except UsageError as error:
            raise pytest.Collector.CollectError(str(error)) from error
        metafunc.parametrize(
            ("examination", "check"),
            [
                pytest.param(examination, check, id=prefix + check.name)
                for prefix, examination in found.items()
                for check in CHECKS
            ],
        )

    def test_conformance(self, examination: Examination, check: Check, request: pytest.FixtureRequest) -> None:
        """One check; its failure says what was found and why it matters."""
        if request.config.getoption("usepdb") and check.name not in examination.expected_failures:
            try:
                examination.run(check)
            except NotApplicable as reason:
                pytest.skip(str(reason))
            return
        result = examination.result(check)
        if result.status in ("not applicable", "not run"):
            pytest.skip(result.evidence)
        if result.status == "expected failure":
            pytest.xfail(result.evidence)
        if not result.holds:
            why = f"\n\nWhy it matters: {check.why}" if result.status == "failed" else ""
            trace = f"\n\n{result.trace}" if result.trace else ""
            pytest.fail(f"{check.name}: {result.evidence}{why}{trace}", pytrace=False)
