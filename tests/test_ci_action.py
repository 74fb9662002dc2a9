"""action.yml: what its steps do, each run by bash as GitHub would run it, in a real repository of a new plugin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from archbench.scaffold.package import package_files, write_package

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = ACTION["runs"]["steps"]
WORKFLOW = ROOT / "archbench" / "scaffold" / "my-arch" / ".github" / "workflows" / "archbench.yml"

GH = """#!/usr/bin/env bash
# The two calls of gh's API that the action makes: list comments (as --jq shows them), and send one.
echo "$*" >> "$CALLS"
case "$*" in
  *--paginate*) cat "$LISTED" ;;
  *) for argument; do case "$argument" in body=@*) cat "${argument#body=@}" > "$SENT" ;; esac; done ;;
esac
"""


def script(beginning: str) -> str:
    (found,) = (step["run"] for step in STEPS if step.get("name", "").startswith(beginning))
    return str(found)


def bash(text: str, folder: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    environment["PATH"] = os.pathsep.join(
        [str(variables.get("BIN", "/")), str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text]  # as GitHub's shell: bash
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_github_takes_the_action_and_the_workflow() -> None:
    inputs = set(ACTION["inputs"])
    assert all(one["description"] for one in ACTION["inputs"].values())
    for step in STEPS:
        assert ("run" in step) != ("uses" in step)
        assert "${{" not in step.get("run", ""), "what others name is not pasted into a script"
        assert step.get("shell", "bash") == "bash"
        assert ("shell" in step) == ("run" in step)
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert used == inputs
    schemas = pytest.importorskip("check_jsonschema", reason="check-jsonschema has GitHub's schemas")
    for kind, file in (("github-actions", ROOT / "action.yml"), ("github-workflows", WORKFLOW)):
        with pytest.raises(SystemExit) as end:
            schemas.main(["--builtin-schema", f"vendor.{kind}", str(file)])
        assert end.value.code == 0


def test_two_plugins_in_one_job_give_artifacts_of_two_names(tmp_path: Path) -> None:
    (artifact,) = (step["with"]["name"] for step in STEPS if "upload-artifact" in step.get("uses", ""))
    for place, content in (("one/plugin", '[project]\nname = "mine"\n'), ("two/plugin", "[tool.poetry]\n")):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(content)
        done = bash(script("Which plugin"), folder, GITHUB_OUTPUT=tmp_path / "output")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "output").read_text().splitlines() == ["package=mine", "package=plugin"]
    assert "steps.plugin.outputs.package" in artifact


def test_one_comment_is_written_and_then_changed(tmp_path: Path) -> None:
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    report = tmp_path / "report"
    report.mkdir()
    (report / "regress.md").write_text("### archbench regress a b\n\n1 of 10 regressed\n")
    calls, listed, sent = (tmp_path / name for name in ("calls", "listed", "sent"))
    listed.write_text("11 Nice!\n12 <!-- archbench other -->\n")
    variables = {
        "BIN": tmp_path, "CALLS": calls, "LISTED": listed, "SENT": sent, "REPORT": report, "PLUGIN": ".",
        "COMMENTS": "repos/me/mine/issues/3/comments", "JOB": "https://github.com/me/mine/actions/runs/7",
    }  # fmt: skip
    done = bash(script("Comment"), tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    marker, *rest = sent.read_text().splitlines()
    assert marker == "<!-- archbench . -->"
    assert rest[:3] == ["### archbench regress a b", "", "1 of 10 regressed"]
    assert "https://github.com/me/mine/actions/runs/7" in rest[-1]
    assert "--method POST repos/me/mine/issues/3/comments " in calls.read_text()

    listed.write_text(f"11 Nice!\n13 {marker}\r\n14 {marker}\n")
    (report / "regress.md").unlink()  # nothing was compared, since a check failed
    (report / "regress.txt").write_text("counting: mine\nError: base 'main': git knows no such revision.\n")
    assert bash(script("Comment"), tmp_path, **variables).returncode == 0
    assert "--method PATCH repos/me/mine/issues/comments/13 " in calls.read_text()
    said = sent.read_text()
    assert said.splitlines()[1].startswith("### archbench")
    assert "git knows no such revision" in said


def test_a_failed_check_is_named_in_the_summary_and_in_the_comment(tmp_path: Path) -> None:
    folder, report, summary, sent = (tmp_path / name for name in ("mine", "report", "summary.md", "sent"))
    folder.mkdir()
    report.mkdir()
    (report / "regress.md").write_text("### of another plugin\n")
    (folder / "test_mine.py").write_text("def test_causality(): assert 0, 'it sees the future'\n")
    done = bash(script("Is it"), folder, REPORT=report, GITHUB_STEP_SUMMARY=summary, CI="true")
    assert done.returncode == 1, done.stderr
    assert (report / "pytest.txt").read_text() == done.stdout
    told = summary.read_text()
    assert told.startswith("### archbench: pytest failed")
    assert "FAILED test_mine.py::test_causality - AssertionError: it sees the future" in told
    for name in ("gh", "listed", "calls"):
        (tmp_path / name).write_text(GH if name == "gh" else "")
    (tmp_path / "gh").chmod(0o755)
    variables = {"BIN": tmp_path, "CALLS": tmp_path / "calls", "LISTED": tmp_path / "listed", "SENT": sent}
    named = {"REPORT": report, "PLUGIN": ".", "COMMENTS": "repos/me/mine/issues/3/comments", "JOB": "https://job"}
    assert bash(script("Comment"), tmp_path, **variables, **named).returncode == 0
    assert told in sent.read_text()


@pytest.mark.slow
def test_the_steps_on_a_new_plugin_and_a_change_that_costs_more(tmp_path: Path) -> None:
    folder, report = tmp_path / "mine", tmp_path / "report"
    write_package(folder, package_files("mine"))

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=me", "-c", "user.email=me@mine.dev"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "As it was written")
    done = bash(script("Is it"), folder, REPORT=report, GITHUB_STEP_SUMMARY=tmp_path / "none.md")
    assert done.returncode == 0, done.stdout
    assert not (tmp_path / "none.md").exists()
    assert (report / "pytest.xml").is_file()
    module = folder / "archbench_mine.py"
    module.write_text(module.read_text().replace("4 * C", "5 * C"))
    git("commit", "-qam", "Wider")
    status = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True)
    assert status.stdout == "", ".gitignore covers what the tests leave"
    summary = tmp_path / "summary.md"
    variables = {"REPORT": report, "BASE": "HEAD^1", "GITHUB_STEP_SUMMARY": summary}
    accepted = "--exact-only --accept 'parameters=a wider layer' --accept 'saved_activation_bytes=it too'"
    done = bash(script("Does it"), folder, OPTIONS=accepted, **variables)
    assert done.returncode == 10, done.stderr
    told = (report / "regress.md").read_text()
    assert told.startswith("### archbench regress ")
    assert told == summary.read_text()
    lines = {line.split("|")[2].strip().replace("\\", ""): line for line in told.splitlines() if "| mine" in line}
    assert "FAIL" in lines["forward_flops_per_token"]
    assert "accepted" in lines["parameters"]
    assert "a wider layer" in lines["parameters"]
    assert "forward_flops_per_token" in (report / "regress.txt").read_text()
