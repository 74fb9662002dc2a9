"""The conformance suite as a plugin's own tests: one class or one option, each check a test with its evidence."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from forked_children import ForkedCommand

pytest_plugins = "pytester"

EXAMPLE = (Path(__file__).parent / "example_plugins" / "bigram.py").read_text()
INIT = "        self.config = config\n"
LEAK = """
    def forward(self, tokens):
        logits = super().forward(tokens)
        return logits + logits.roll(-1, 1)
"""
BROKEN = """
    def forward(self, tokens):
        clue = "the batch is in the wrong drawer"
        raise KeyError("why")
"""
KIT = ("--pyargs", "archbench.testing", "-v", "-rA")
SOME = ("-k", "hooks or logits or causality or state_bytes")

CLASSES = """
from archbench.testing import ArchitectureChecks


class TestRight(ArchitectureChecks):
    architecture = "right"
    plugins = ["../right.py"]


class TestLeak(ArchitectureChecks):
    architecture = "leak"
    plugins = ["../leak.py"]


class TestBroken(ArchitectureChecks):
    architecture = "broken"
    plugins = ["../broken.py"]


class TestExpected(ArchitectureChecks):
    architecture = "leak"
    plugins = ["../leak.py"]
    expected_failures = {"causality": "the roll is not masked yet", "logits": "they were wrong"}


class TestUnloadable(ArchitectureChecks):
    architecture = "unloadable"
    plugins = ["../unloadable.py"]


class TestNameless(ArchitectureChecks):
    pass


class TestMistyped(ArchitectureChecks):
    architecture = "right"
    plugins = ["../right.py"]
    expected_failures = {"causalty": "it leaks"}
"""


@dataclass(frozen=True)
class Session:
    """What a session of pytest printed."""

    text: str
    code: int

    def outcome(self, owner: str, check: str) -> str:
        """Of one check of a class or of an architecture: the first word after its name."""
        (found,) = re.findall(rf"^.*{owner}\S*{check}\] ([A-Z]+)", self.text, re.MULTILINE)
        return str(found)

    def failure(self, owner: str, check: str) -> str:
        """The section of one failed check."""
        section = re.search(
            rf"^_+ [^\n]*{owner}[^\n]*{check}\] _+\n(.*?)(?=^_+ |^=+ |^-+ )", self.text, re.MULTILINE | re.DOTALL
        )
        assert section is not None, self.text
        return section[1]


def session(folder: Path, *arguments: str) -> Session:
    """pytest in a process of its own."""
    done = ForkedCommand("-p", "no:cacheprovider", *arguments, cwd=folder, program="pytest").finished()
    return Session(done.stdout + done.stderr, done.returncode)


def write_plugins(folder: Path) -> Path:
    """right.py, leak.py, broken.py and unloadable.py, each with the architecture of that name."""
    for name, model in {"right": "", "leak": LEAK, "broken": BROKEN}.items():
        source = EXAMPLE.replace('"bigram"', f'"{name}"').replace(INIT, INIT + model)
        (folder / f"{name}.py").write_text(source)
    (folder / "unloadable.py").write_text("raise KeyError('why')\n")
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One session of all the classes, from another folder than their own."""
    folder = write_plugins(tmp_path_factory.mktemp("classes"))
    (folder / "tests").mkdir()
    (folder / "tests" / "test_mine.py").write_text(CLASSES)
    return session(folder, "tests", "-v", "-rA", "--continue-on-collection-errors", *SOME)


def test_sessions_that_do_not_use_it_import_neither_torch_nor_archbench(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_modules():
            assert "pytest_archbench" in sys.modules
            assert not {"torch", "archbench"} & set(sys.modules)
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_class_of_one_line_runs_each_check_as_a_test(classes: Session) -> None:
    found = {check: classes.outcome("TestRight", check) for check in ("hooks", "logits", "causality", "state_bytes")}
    assert found == {"hooks": "PASSED", "logits": "PASSED", "causality": "PASSED", "state_bytes": "SKIPPED"}


def test_a_failure_is_the_evidence_and_why_it_matters(classes: Session) -> None:
    from archbench.testing.checks import CHECKS

    assert classes.outcome("TestLeak", "causality") == "FAILED"
    text = classes.failure("TestLeak", "causality")
    why = next(check.why for check in CHECKS if check.name == "causality")
    assert text.startswith("causality: ")
    assert why in text
    assert "suite.py" not in text


def test_what_raises_shows_its_traceback_and_what_needs_it_is_not_run(classes: Session) -> None:
    text = classes.failure("TestBroken", "logits")
    assert "KeyError: 'why'" in text
    assert "broken.py" in text
    assert "Traceback (most recent call last):" in text
    assert classes.outcome("TestBroken", "causality") == "SKIPPED"


def test_expected_failures_are_strict(classes: Session) -> None:
    assert classes.outcome("TestExpected", "causality") == "XFAIL"
    assert "the roll is not masked yet" in classes.text
    assert classes.outcome("TestExpected", "logits") == "FAILED"
    assert "they were wrong" in classes.failure("TestExpected", "logits")


def test_a_plugin_that_cannot_be_loaded_fails_once(classes: Session) -> None:
    assert classes.outcome("TestUnloadable", "hooks") == "FAILED"
    assert "KeyError: 'why'" in classes.failure("TestUnloadable", "hooks")
    assert {classes.outcome("TestUnloadable", check) for check in ("logits", "causality")} == {"SKIPPED"}


def test_a_class_that_is_not_complete_is_one_error(classes: Session) -> None:
    errors = classes.text[: classes.text.index("FAILURES")]
    assert "TestNameless" in errors
    assert 'architecture = "NAME"' in errors
    assert "TestMistyped" in errors
    assert "'causality'" in errors, "it is suggested"
    assert "Traceback" not in errors


def test_no_class_is_needed_and_a_check_whose_need_was_deselected_is_run(tmp_path: Path) -> None:
    names = ("leak", "broken")
    options = [part for name in names for part in ("--archbench-arch", name, "--archbench-plugin", f"{name}.py")]
    more = ("--archbench-arch", "gpt1", "-k", "causality", "--archbench-xfail", "flops=it takes long")
    done = session(write_plugins(tmp_path), *KIT, *options, *more)
    assert {name: done.outcome(name, "causality") for name in (*names, "gpt1")} == {
        "leak": "FAILED", "broken": "FAILED", "gpt1": "PASSED",
    }  # fmt: skip


@pytest.mark.slow
def test_runxfail_takes_no_excuse(tmp_path: Path) -> None:
    options = ("--archbench-arch", "leak", "--archbench-plugin", "leak.py", "--archbench-xfail", "causality=not yet")
    done = session(write_plugins(tmp_path), *KIT, *options, "-k", "causality", "--runxfail")
    assert done.outcome("leak", "causality") == "FAILED"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pyargs", "archbench.testing"), "--archbench-arch"),
        (("--archbench-plugin", "mine.py"), "--archbench-arch"),
    ],
)
def test_what_is_to_be_checked_has_to_be_named(options: tuple[str, ...], said: str, pytester: pytest.Pytester) -> None:
    done = pytester.runpytest(*options)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"ERROR: *{said}*"])


@pytest.mark.slow
def test_the_debugger_stops_where_the_plugin_raised(pytester: pytest.Pytester) -> None:
    write_plugins(pytester.path)
    options = ("--archbench-arch", "broken", "--archbench-plugin", "broken.py", "-k", "logits", "--pdb")
    done = pytester.run(sys.executable, "-m", "pytest", *KIT, *options, stdin=b"p clue\nquit\n")
    done.stdout.fnmatch_lines(["*'the batch is in the wrong drawer'"])
