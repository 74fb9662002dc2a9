"""docs/explanation/architecture.md describes the tree as it is: its paths exist, and no room is missing from it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text("utf-8")
TREE = PAGE.split("```")[1]


def tree_paths() -> list[str]:
    """The paths in the drawing: two spaces a level."""
    found, parents = [], [""]
    for line in TREE.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        parents = [*parents[: depth + 1], parents[depth] + name]
        found.append(parents[depth] + name)
    return found


@pytest.mark.parametrize("path", sorted({*tree_paths(), *re.findall(r"`([\w./]+/[\w.]*|[\w/]+\.(?:py|toml))`", PAGE)}))
def test_a_path_on_the_page_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_room_is_in_the_tree() -> None:
    rooms = {f"archbench/{path.name}/" for path in (ROOT / "archbench").iterdir() if (path / "__init__.py").is_file()}
    files = {f"archbench/{path.name}" for path in (ROOT / "archbench").glob("*.py") if not path.name.startswith("__")}
    assert rooms | files <= set(tree_paths())


def test_file_names_tell_files_apart() -> None:
    """No two files of archbench share a name, except where the folder tells a kernel, a module or a command apart."""
    told_apart_by_folder = {"kernels", "nn", "cli", "checks"}
    names: dict[str, list[str]] = {}
    for file in (ROOT / "archbench").rglob("*.py"):
        if not file.name.startswith("__") and file.parent.name not in told_apart_by_folder:
            names.setdefault(file.name, []).append(str(file.relative_to(ROOT)))
    assert {name: places for name, places in names.items() if len(places) > 1} == {}


def test_no_file_is_beyond_350_lines() -> None:
    sizes = {file: file.read_text("utf-8").count("\n") for file in (ROOT / "archbench").rglob("*.py")}
    assert {str(file): size for file, size in sizes.items() if size > 350} == {}


def test_every_package_is_installed() -> None:
    """A folder that pyproject.toml does not name is missing from wheels and found in every checkout."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    files = {
        file.parent.relative_to(ROOT).parts
        for room in ("archbench", "archbench_kernelcheck")
        for file in (ROOT / room).rglob("*.*")
        if file.parent.name != "__pycache__"
    }
    found = {".".join(parts) for parts in files if all(part.isidentifier() for part in parts)}  # not the templates
    assert found == {name for name in listed if not name.startswith("archbench_plugins")}
