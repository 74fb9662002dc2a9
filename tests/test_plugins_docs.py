"""What the docs say of plugins cannot drift from the code: examples, hooks, checks and the tree of errors."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import archbench
from archbench import errors, hookspecs, protocols
from archbench.plugin.hooks import HOOKS
from archbench.testing.checks import CHECKS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PLUGINS = (DOCS / "reference" / "plugins.md").read_text()
TUTORIAL = (DOCS / "tutorials" / "add-your-own.md").read_text()
CHECKS_PAGE = (DOCS / "reference" / "checks.md").read_text()
ALL = "\n".join([PLUGINS, TUTORIAL, CHECKS_PAGE, (DOCS / "how-to" / "wrap-a-model.md").read_text()])


SOURCES = [
    path.read_text()
    for folder in (
        "tests/example_plugins",
        "tests/example_plugin",
        "archbench/scaffold/my-arch",
        "archbench/scaffold/wraps",
    )
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("block", re.findall(r"(?ms)^```python\n(.*?)^```$", ALL))
def test_the_code_in_the_docs_is_in_files_that_the_tests_run(block: str) -> None:
    for piece in block.split("\n\n\n"):  # two pieces of one file may stand together
        assert any(f"{piece.rstrip()}\n" in source for source in SOURCES), piece


def test_the_smallest_plugin_is_in_the_docs_has_at_most_20_lines_and_loads() -> None:
    path = Path(__file__).parent / "example_plugins" / "bigram.py"
    assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 20
    assert f"```python\n{path.read_text()}```" in TUTORIAL
    assert archbench.load("bigram", plugins=[path]).name == "bigram"


def test_the_table_of_checks_has_every_check_whether_it_is_of_the_gate_and_why_it_matters() -> None:
    table = "\n".join(f"| `{check.name}` | {'yes' if check.gate else ''} | {check.why} |" for check in CHECKS)
    assert f"| check | gate | why it matters |\n|---|---|---|\n{table}\n\n" in CHECKS_PAGE


def test_the_table_of_protocols_has_each_with_its_methods() -> None:
    rows = re.findall(r"^\| `(\w+Model)` \| ([^|]+) \|", PLUGINS, re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", methods)) for name, methods in rows}
    true = {name: kind for name, kind in vars(protocols).items() if name.endswith("Model")}
    assert list(documented) == list(true)
    for name, kind in true.items():
        own = {method for method in vars(kind) if not method.startswith("_") and method != "forward"}
        assert documented[name] == own, name


def test_the_table_of_hooks_has_every_hook_with_its_true_signature() -> None:
    documented = re.findall(r"^\| `(\w+\([^)]*\))` \|", PLUGINS, re.MULTILINE)
    true = [f"{hook}({', '.join(inspect.signature(getattr(hookspecs, hook)).parameters)})" for hook in HOOKS]
    assert documented == true


def test_every_public_name_in_the_docs_exists() -> None:
    for names in re.findall(r"^from archbench import (.+)$", ALL, re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(archbench, name)
    for name in ("next_token_step", "decode_with_cache", "decode_without_cache", "causal_attention"):
        assert f"`{name}" in PLUGINS
        assert hasattr(archbench, name)


def test_the_drawn_tree_of_errors_is_the_real_one() -> None:
    drawing = re.search(r"```text\n(ArchbenchError.*?)\n```", (DOCS / "reference" / "errors.md").read_text(), re.DOTALL)
    assert drawing is not None
    drawn: dict[str, tuple[str | None, int, str]] = {}
    path: list[str] = []
    for line in drawing[1].splitlines():
        match = re.match(r"([│├└─ ]*)(\w+)(?: \(\w+\))?\s+(?:exit code )?(\d+)\s*(.*)", line)
        assert match is not None, line
        branch, name, code, meaning = match.groups()
        path = [*path[: len(branch) // 4], name]
        drawn[name] = (path[-2] if len(path) > 1 else None, int(code), meaning)
    real = {"ArchbenchError": (None, 1, "")}
    for kind in vars(errors).values():
        if inspect.isclass(kind) and issubclass(kind, errors.ArchbenchError) and kind is not errors.ArchbenchError:
            meaning = inspect.cleandoc(kind.__doc__ or "").rstrip(".")
            real[kind.__name__] = (kind.__bases__[0].__name__, kind.exit_code, meaning[0].lower() + meaning[1:])
    assert drawn == real


def test_every_plugin_error_is_explained() -> None:
    text = (DOCS / "reference" / "errors.md").read_text()
    for kind in errors.PluginError.__subclasses__():
        assert f"| `{kind.__name__}` |" in text
