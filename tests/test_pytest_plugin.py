"""The kit as a plugin's own tests: one class or one option, each check a test, each failure in the kit's words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = "pytester"

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

Plugin = Callable[..., Path]


@pytest.fixture
def plugin(minimal_plugin: str, pytester: pytest.Pytester) -> Plugin:
    """Write mine.py, a plugin called mine: bigram, with more in its model."""

    def write(model: str = "") -> Path:
        source = minimal_plugin.replace('"bigram"', '"mine"')
        edited = source.replace("        self.config = config\n", f"        self.config = config\n{model}")
        path = pytester.path / "mine.py"
        path.write_text(edited)
        return path

    return write


@pytest.fixture
def run_class(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Run pytest on a subclass of ArchitectureChecks with ``body``, from another folder than its own."""

    def run(body: str, *arguments: str) -> pytest.RunResult:
        folder = pytester.path / "tests"
        folder.mkdir(exist_ok=True)
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        source = f"from archbench.testing import ArchitectureChecks\n\nclass TestMine(ArchitectureChecks):\n{lines}"
        (folder / "test_mine.py").write_text(source)
        return pytester.runpytest_subprocess("tests", "-v", "-rA", *arguments)

    return run


RunClass = Callable[..., pytest.RunResult]
HERE = 'architecture = "mine"\nplugins = ["../mine.py"]\n'


def test_sessions_that_do_not_use_it_import_neither_torch_nor_archbench(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_modules():
            assert "pytest_archbench" in sys.modules
            assert not {"torch", "archbench"} & set(sys.modules)
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_class_of_one_line_runs_each_check_as_a_test(plugin: Plugin, run_class: RunClass) -> None:
    plugin()
    done = run_class(HERE, *SOME)
    done.assert_outcomes(passed=3, skipped=1, deselected=15)
    for name in ("hooks", "logits", "causality"):
        done.stdout.fnmatch_lines([f"tests/test_mine.py::TestMine::test_conformance[[]{name}[]] PASSED*"])
    done.stdout.fnmatch_lines(["SKIPPED*it has no decoding cache"])


def test_a_failure_is_what_was_found_and_why_it_matters(plugin: Plugin, run_class: RunClass) -> None:
    from archbench.testing.catalogue import CHECKS

    plugin(LEAK)
    done = run_class(HERE, *SOME)
    done.assert_outcomes(passed=2, failed=1, skipped=1, deselected=15)
    why = next(check.why for check in CHECKS if check.name == "causality")
    done.stdout.fnmatch_lines(["causality: *", "", f"Why it matters: {why}"])
    assert "suite.py" not in done.stdout.str().partition("short test summary")[0]


def test_what_raises_shows_its_traceback_and_what_needs_it_is_not_run(plugin: Plugin, run_class: RunClass) -> None:
    plugin(BROKEN)
    done = run_class(HERE, *SOME)
    done.assert_outcomes(passed=1, failed=1, skipped=2, deselected=15)
    done.stdout.fnmatch_lines(
        ["logits: *KeyError: 'why'*mine.py:*raise KeyError*", "Traceback (most recent call last):"]
    )
    done.stdout.fnmatch_lines(["SKIPPED*logits failed, and nothing can be said before that holds"])


def test_a_check_whose_need_was_deselected_is_run_all_the_same(plugin: Plugin, run_class: RunClass) -> None:
    plugin(BROKEN)
    run_class(HERE, "-k", "causality").assert_outcomes(failed=1, deselected=18)


def test_expected_failures_are_strict(plugin: Plugin, run_class: RunClass) -> None:
    plugin(LEAK)
    expected = 'expected_failures = {"causality": "the roll is not masked yet", "logits": "they were wrong"}\n'
    done = run_class(HERE + expected, *SOME)
    done.assert_outcomes(passed=1, failed=1, xfailed=1, skipped=1, deselected=15)
    done.stdout.fnmatch_lines(["XFAIL*the roll is not masked yet (*)"])
    done.stdout.fnmatch_lines(["logits: it was expected to fail (they were wrong), and does not: take it off *"])
    again = run_class(HERE + expected.replace(', "logits": "they were wrong"', ""), *SOME, "--runxfail")
    again.assert_outcomes(passed=2, failed=1, skipped=1, deselected=15)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pass", 'TestMine: it does not say which architecture it is for. Write architecture = "NAME" in it.'),
        (
            f'{HERE}expected_failures = {{"causalty": "it leaks"}}',
            "TestMine.expected_failures causalty: there is no such check. Did you mean 'causality'?*",
        ),
    ],
    ids=["no architecture", "no such check"],
)
def test_a_class_that_is_not_complete_is_one_error(body: str, said: str, run_class: RunClass) -> None:
    done = run_class(body)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines([said])
    assert "Traceback" not in done.stdout.str()


def test_a_plugin_that_cannot_be_loaded_fails_once(plugin: Plugin, run_class: RunClass) -> None:
    plugin().write_text("raise KeyError('why')\n")
    done = run_class(HERE)
    done.assert_outcomes(failed=1, skipped=18)
    done.stdout.fnmatch_lines(["hooks: plugin */mine.py: loading it failed: KeyError: 'why'*"])


def test_no_class_is_needed_at_all(plugin: Plugin, pytester: pytest.Pytester) -> None:
    plugin(LEAK)
    options = ("--archbench-arch", "mine", "--archbench-plugin", "mine.py", "--archbench-arch", "gpt1")
    done = pytester.runpytest_subprocess(*KIT, *options, "-k", "causality", "--archbench-xfail", "flops=it is dear")
    done.assert_outcomes(passed=1, failed=1, deselected=36)
    done.stdout.fnmatch_lines(["*test_conformance[[]mine-causality[]] FAILED*"])
    done.stdout.fnmatch_lines(["*test_conformance[[]gpt1-causality[]] PASSED*"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pyargs", "archbench.testing"), "*--archbench-arch NAME names, and there is none*"),
        (("--archbench-plugin", "mine.py"), "*--archbench-plugin is for --archbench-arch NAME, which is missing"),
    ],
)
def test_what_is_to_be_checked_has_to_be_named(options: tuple[str, ...], said: str, pytester: pytest.Pytester) -> None:
    done = pytester.runpytest_subprocess(*options)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"ERROR: {said}"])


def test_the_debugger_stops_where_the_plugin_raised(plugin: Plugin, pytester: pytest.Pytester) -> None:
    plugin(BROKEN)
    options = ("--archbench-arch", "mine", "--archbench-plugin", "mine.py", "-k", "logits", "--pdb")
    done = pytester.run(sys.executable, "-m", "pytest", *KIT, *options, stdin=b"p clue\nquit\n")
    done.stdout.fnmatch_lines(["*'the batch is in the wrong drawer'"])
