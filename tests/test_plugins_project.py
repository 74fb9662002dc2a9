"""The tests of a plugin's project are of the code beside them, before it is installed as well as after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import archbench
from archbench.errors import DuplicateNameError, UsageError
from archbench.plugin.discovery import project_plugin
from archbench.scaffold.package import package_files, write_package


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What ``archbench new mine`` writes."""
    write_package(tmp_path / "mine", package_files("mine"))
    return tmp_path / "mine"


def test_the_module_is_found_from_the_tests_of_the_project(project: Path) -> None:
    found = project_plugin("mine", project / "tests")
    assert found == project / "archbench_mine.py"
    assert archbench.load("mine", plugins=[found]).source == str(found)


def test_it_may_be_a_package_and_lie_in_src(project: Path) -> None:
    package = project / "src" / "archbench_mine"
    package.mkdir(parents=True)
    (project / "archbench_mine.py").rename(package / "__init__.py")
    assert project_plugin("mine", project / "tests") == package


@pytest.mark.parametrize("point", ["archbench_mine:plugin", "somewhere.archbench_mine", "gone"])
def test_what_cannot_be_loaded_by_its_path_has_to_be_installed(project: Path, point: str) -> None:
    settings = project / "pyproject.toml"
    settings.write_text(settings.read_text().replace('mine = "archbench_mine"', f'mine = "{point}"'))
    assert project_plugin("mine", project / "tests") is None


def test_no_other_name_and_no_other_project_counts(project: Path) -> None:
    assert project_plugin("other", project / "tests") is None
    inner = project / "vendored"
    inner.mkdir()
    (inner / "pyproject.toml").write_text("[project]\nname = 'inner'\n")
    assert project_plugin("mine", inner) is None


def test_a_project_whose_settings_cannot_be_read_is_named(project: Path) -> None:
    (project / "pyproject.toml").write_text("[project")
    with pytest.raises(UsageError, match=r"pyproject\.toml.*TOMLDecodeError"):
        project_plugin("mine", project / "tests")


def test_an_installed_package_that_is_older_than_the_project_is_never_tested_in_its_place(
    project: Path, install: Callable[..., Path]
) -> None:
    module = project / "archbench_mine.py"
    install("archbench-mine", "mine", module.read_text())
    assert archbench.load("mine", plugins=[module]).package == "archbench-mine"  # the same text: no conflict
    module.write_text(module.read_text() + "\nnewer = True\n")
    with pytest.raises(DuplicateNameError, match=r"archbench-mine .*archbench_mine\.py.*pip install -e"):
        archbench.load("mine", plugins=[module])
