"""``archbench regress``: each revision's own code, one table, telling exit codes, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import archbench_plugins.gpt1 as gpt1
import pytest

from command_line import archbench
from forked_children import ForkedCommand

PYPROJECT = """
[project]
name = "archbench-mine"
version = "1.0"

[project.entry-points.archbench]
mine = "archbench_mine"
"""
SMALL = [
    option
    for field in ("vocab_size=64", "context_length=16", "n_layer=1", "n_head=2", "d_model=16", "d_ff=32")
    for option in ("--set", field)
]
MINE = Path(gpt1.__file__).read_text().replace('name="gpt1"', 'name="mine"')
HIDDEN = "        for block in self.blocks:\n            x = block(x, cache)\n"
MATMUL = MINE.replace(HIDDEN, f"{HIDDEN}        x = x @ torch.eye(x.shape[-1], device=x.device)\n")
SLOWED = MINE.replace(
    HIDDEN, "        import time\n        start = time.process_time()\n" + HIDDEN
    + "        while time.process_time() - start < 0.005: pass\n"
)  # fmt: skip


@dataclass
class Repository:
    """A plugin's, with what is committed in it."""

    path: Path
    environment: dict[str, str]

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments],
            cwd=self.path, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    def commit(self, files: dict[str, str]) -> str:
        """Write these files; the new commit."""
        for name, text in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "--quiet", "--allow-empty", "-m", "x")
        return self.git("rev-parse", "HEAD").strip()

    def popen(self, *arguments: str, folder: str = ".") -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("archbench")), "regress", *arguments]
        return subprocess.Popen(
            command, cwd=self.path / folder, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def regress(self, *arguments: str, code: int, folder: str = ".", fresh: bool = False) -> tuple[str, str]:
        """Standard output and error of ``archbench regress``, which has to end with ``code`` and leave nothing.

        ``fresh``: in processes of its own, not in forks (tests/forked_children.py).
        """
        if fresh:
            process = self.popen(*arguments, folder=folder)
            out, err = process.communicate(timeout=300)
            found = process.returncode
        else:
            done = ForkedCommand("regress", *arguments, cwd=self.path / folder, env=self.environment).finished()
            found, out, err = done.returncode, done.stdout, done.stderr
        assert found == code, err
        self.is_clean()
        return out, err

    def is_clean(self) -> None:
        assert len(self.git("worktree", "list").splitlines()) == 1
        assert self.git("status", "--porcelain") == ""
        assert list(Path(self.environment["TMPDIR"]).glob("archbench-regress-*")) == []


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    path, temporary = tmp_path / "repository", tmp_path / "tmp"
    path.mkdir()
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "COLUMNS": "200"}
    environment.pop("GITHUB_STEP_SUMMARY", None)
    found = Repository(path, environment)
    found.git("init", "--quiet")
    return found


def verdicts(out: str) -> dict[str, str]:
    return {row["metric"]: row["verdict"] for row in map(json.loads, out.splitlines()) if "metric" in row}


@pytest.mark.slow
def test_each_revision_runs_its_own_code_and_a_larger_count_is_exit_code_10(
    repository: Repository, tmp_path: Path
) -> None:
    base = repository.commit({"pyproject.toml": PYPROJECT, "archbench_mine.py": MINE})
    head = repository.commit({"archbench_mine.py": MATMUL})
    # Neither revision is what happens to lie in the working tree, or to be installed or named in the environment.
    repository.commit({"archbench_mine.py": "raise SystemExit('the working tree was imported')"})
    repository.environment["ARCHBENCH_PLUGINS"] = str(Path(gpt1.__file__))
    summary = tmp_path / "summary.md"
    repository.environment["GITHUB_STEP_SUMMARY"] = str(summary)
    accepted = ["--accept", "saved_activation_bytes=its inputs"]
    out, err = repository.regress(base, head, "--exact-only", *accepted, *SMALL, code=10, fresh=True)
    assert f"archbench regress {base[:7]} {head[:7]}: " in err
    assert "mine:forward_flops_per_token" in err
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("mine ")}
    assert "7,168 FLOP/token" in lines["forward_flops_per_token"]
    assert "7,680 FLOP/token" in lines["forward_flops_per_token"]
    assert "1.071  FAIL" in lines["forward_flops_per_token"]
    assert "1.000  ok" in lines["parameters"]
    unescaped = summary.read_text().replace("\\_", "_")
    (row,) = (line for line in unescaped.splitlines() if line[:6] == "| mine" and "forward_flops_per_token" in line)
    for part in ("mine", "7,168 FLOP/token", "7,680 FLOP/token", "1.071", "FAIL"):
        assert part in row, row
    assert "accepted" in lines["saved_activation_bytes"]


@pytest.mark.slow  # a broken base, below, is new and exit code 11 too
def test_what_the_base_has_not_is_new_and_exit_code_11_where_that_is_required(repository: Repository) -> None:
    base = repository.commit({"plugin/pyproject.toml": PYPROJECT.replace("mine =", "other ="), "plugin/README.md": ""})
    repository.commit({"plugin/pyproject.toml": PYPROJECT, "plugin/src/archbench_mine.py": MINE})
    arguments = [base, "HEAD", "--exact-only", "--json", "--quiet", "--require-baseline", *SMALL]
    out, err = repository.regress(*arguments, folder="plugin/src", code=11)
    assert set(verdicts(out).values()) == {"NEW"}
    assert "11 of 11" in err


def test_a_base_that_is_broken_is_new_and_exit_code_11_where_one_is_required_and_says_why(
    repository: Repository,
) -> None:
    """Of a plugin that no pyproject.toml declares, named by its path."""
    base = repository.commit({"models/mine.py": "raise KeyError('why')"})
    repository.commit({"models/mine.py": MINE})
    options = [
        "--exact-only",
        "--json",
        "--quiet",
        "--require-baseline",
        "--plugin",
        "models/mine.py",
        "--arch",
        "mine",
    ]
    out, err = repository.regress(base, "HEAD", *options, *SMALL, code=11)
    assert "11 of 11" in err
    assert set(verdicts(out).values()) == {"NEW"}
    assert "KeyError: 'why'" in out


def test_a_head_that_is_broken_is_an_error(repository: Repository) -> None:
    repository.commit({"pyproject.toml": PYPROJECT, "archbench_mine.py": "raise KeyError('why')"})
    _, err = repository.regress("HEAD", "HEAD", "--quiet", code=3)
    assert "KeyError: 'why'" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "HEAD"], "revision 'nowhere': *has no such commit*fetch-depth: 0"),
        (["HEAD", "HEAD", "--arch", "gpt1"], "--arch gpt1: the pyproject.toml of HEAD * declares no such architecture"),
        (["HEAD", "HEAD", "--timed", "gpt1"], "--timed gpt1: it is not among the architectures compared"),
        (
            ["HEAD", "HEAD", "--accept", "graph_break=why"],
            "--accept graph_break: there is no such metric. Did you",
        ),
        (["HEAD", "HEAD", "--plugin", "no.py", "--arch", "x"], "--plugin no.py: there is no such file in HEAD"),
    ],
)
def test_what_cannot_be_compared_is_exit_code_2(arguments: list[str], said: str, repository: Repository) -> None:
    import fnmatch

    repository.commit({"pyproject.toml": PYPROJECT, "archbench_mine.py": MINE})
    _, err = repository.regress(*arguments, code=2)
    assert fnmatch.fnmatch(" ".join(err.split()), f"*{said}*"), err


def test_a_change_that_is_not_committed_is_named(repository: Repository) -> None:
    for text in (MINE, MINE + "\n"):
        repository.commit({"pyproject.toml": PYPROJECT, "archbench_mine.py": text})
    (repository.path / "archbench_mine.py").write_text(MATMUL)
    for head, named in (("HEAD", True), ("HEAD~1", False)):  # of a head that is not checked out, it is no version
        done = archbench("regress", "HEAD~1", head, "--arch", "nobody", cwd=repository.path)
        assert done.returncode == 2, done.stderr
        assert ("not committed: archbench_mine.py\n" in done.stderr) == named


def test_outside_a_repository_it_says_so(repository: Repository, tmp_path: Path) -> None:
    process = Repository(tmp_path, repository.environment).popen("a", "b")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "git" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_cancels_it_leaves_nothing_behind(number: signal.Signals, code: int, repository: Repository) -> None:
    repository.commit({"pyproject.toml": PYPROJECT, "archbench_mine.py": "import time\ntime.sleep(600)"})
    process = repository.popen("HEAD", "HEAD")
    assert process.stderr is not None
    assert "counting" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    repository.is_clean()


def test_a_measuring_process_that_dies_is_exit_code_8(repository: Repository) -> None:
    dying = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    repository.commit({"pyproject.toml": PYPROJECT, "archbench_mine.py": dying})
    _, err = repository.regress("HEAD", "HEAD", code=8)
    assert "killed" in err


@pytest.mark.exhaustive
def test_a_slowed_copy_fails_by_the_timing_gate_and_an_equal_one_does_not(repository: Repository) -> None:
    base = repository.commit({"pyproject.toml": PYPROJECT, "archbench_mine.py": MINE})
    same = repository.commit({"archbench_mine.py": MINE + "\n"})
    slow = repository.commit({"archbench_mine.py": SLOWED})
    out, _ = repository.regress(base, same, "--json", code=0, fresh=True)
    assert "FAIL" not in verdicts(out).values()
    out, err = repository.regress(base, slow, "--json", code=10, fresh=True)
    assert {name for name, verdict in verdicts(out).items() if verdict == "FAIL"} == {"train_step", "prefill", "decode"}
    assert "once more" in err
