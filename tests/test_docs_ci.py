"""docs/how-to/ci.md cannot drift: its job is the example plugin's, its commands parse, its tables are whole."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import archbench
from archbench.cli.app import app
from archbench.regression.gate import SAMPLES
from archbench.regression.verdict_table import LIMIT, MEANING, UNITS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "how-to" / "ci.md").read_text()
EXAMPLE = ROOT / "tests" / "example_plugin" / ".github" / "workflows" / "archbench.yml"  # what archbench new writes
WORKFLOWS = [EXAMPLE, *sorted((ROOT / ".github" / "workflows").glob("*.yml"))]
COMMANDS = sorted(
    {match[0].split("#")[0].strip() for match in re.finditer(r"(?m)(archbench regress|pytest --pyargs) [^\n`]+", PAGE)}
)


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


def test_the_job_on_the_page_is_the_one_of_the_example_plugin() -> None:
    assert f"```yaml\n{EXAMPLE.read_text()}```" in PAGE


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_what_github_takes_for_one(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert (
        {"name", True, "jobs"} <= set(content) <= {"name", True, "jobs", "permissions", "concurrency", "env"}
    )  # True: on
    for job in content["jobs"].values():
        assert {"runs-on", "steps"} <= set(job)
        optional = {
            "timeout-minutes",
            "strategy",
            "defaults",
            "env",
            "name",
            "needs",
            "if",
            "environment",
            "permissions",
        }
        assert set(job) <= {"runs-on", "steps", *optional}
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert set(step) <= {"name", "run", "uses", "with", "env", "if", "shell", "id"}
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v[\d.]+", step.get("uses", "actions/checkout@v4"))
        done = " ".join(f"{step.get('run', '')} {step.get('uses', '')}" for step in job["steps"])
        if re.search(r"archbench regress|/archbench@|\.ci/run", done):
            checkout = next(step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@"))
            assert checkout["with"]["fetch-depth"] == 0, "a shallow clone has no base to compare with"
        if ".ci/installed.py" in done:
            assert ".whl)[report]" in done, "it draws a report"


@pytest.mark.parametrize(
    ("tag", "file", "change", "culprit"),
    [
        ("v7.8.9", "", ("", ""), "archbench/__init__.py"),
        (f"v{archbench.__version__}", "CITATION.cff", ("version: ", "version: 1"), "CITATION.cff"),
        (f"v{archbench.__version__}", "CHANGELOG.md", ("] - 20", "] - soon 20"), "CHANGELOG.md"),
        (f"v{archbench.__version__}", "pyproject.toml", ("github.com/me/", "github.com/OWNER/"), "pyproject.toml"),
        (f"v{archbench.__version__}", "", ("", ""), None),
    ],
)
def test_a_tag_is_released_only_if_every_place_agrees_and_the_project_has_an_address(
    tag: str, file: str, change: tuple[str, str], culprit: str | None, tmp_path: Path
) -> None:
    release = ROOT / ".github" / "workflows" / "release.yml"
    script = next(step["run"] for step in jobs(release)["build"]["steps"] if step.get("name", "").startswith("The tag"))
    for name in ("archbench/__init__.py", "CITATION.cff", "CHANGELOG.md", "pyproject.toml"):
        text = (ROOT / name).read_text().replace("github.com/OWNER/", "github.com/me/")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace(*change) if name == file else text)
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "GITHUB_REF_NAME": tag},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert re.findall("::error file=(.+?)::", done.stdout) == ([culprit] if culprit else []), done.stderr
    assert done.returncode == bool(culprit)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_commands_of_the_workflows_parse(path: Path) -> None:
    runs = [step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step]
    for command in [line for run in runs for line in run.splitlines() if line.startswith("archbench ")]:
        _parse(command)


def _parse(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    typer.main.get_command(app).commands[name].make_context(name, arguments)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("archbench ")])
def test_the_pages_commands_parse(command: str) -> None:
    _parse(command)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("pytest ")])
def test_the_pages_options_of_pytest_are_there(command: str, pytestconfig: pytest.Config) -> None:
    known = {name for option in pytestconfig._parser._anonymous.options for name in option.names()}
    known |= {name for group in pytestconfig._parser._groups for option in group.options for name in option.names()}
    assert {word for word in shlex.split(command) if word.startswith("--")} <= known


def test_every_metric_and_verdict_is_in_its_table_and_the_gate_is_the_real_one() -> None:
    documented = re.findall(r"^\| (`[^|]+`) \| ", PAGE, re.MULTILINE)
    names = [name for cell in documented for name in re.findall(r"`(\w[\w ]*)`", cell)]
    assert [*UNITS, *SAMPLES, *MEANING] == [name for name in names if name in {*UNITS, *SAMPLES, *MEANING}]
    for verdict, meaning in MEANING.items():
        assert f"| `{verdict}` | {meaning} |" in PAGE
    assert f"{LIMIT:.2f}" in PAGE


def test_the_page_has_every_option_of_the_command_or_its_help_has() -> None:
    command = typer.main.get_command(app).commands["regress"].make_context("regress", ["base", "head"]).command
    options = {name for option in command.params for name in option.opts}
    options |= {"--runs", "--slowdowns"}  # of benchmarks/regression_gate.py
    for mentioned in set(re.findall(r"--[a-z][a-z-]+", PAGE)):
        assert mentioned in options or mentioned.startswith(("--archbench-", "--benchmark-", "--pyargs")), mentioned
