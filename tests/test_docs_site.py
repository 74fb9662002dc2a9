"""The documentation site: reference pages come from the code, every page is in the navigation, notebooks are clean.

docs/site/build.py, a step of .ci/run, does what needs the site's tools: it runs the notebooks, makes the gallery and
checks every link and anchor of what was built.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from archbench.cli.app import app
from archbench.config import RunConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
NAVIGATION: list[dict[str, Any]] = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]["nav"]

sys.path.insert(0, str(DOCS / "site"))
import reference_pages  # noqa: E402


def test_the_page_of_the_command_line_has_every_command_and_option() -> None:
    page = reference_pages.command_line()
    for name, command in typer.main.get_command(app).commands.items():
        section = page.split(f"## archbench {name}\n")[1].split("\n## ")[0]
        for option in command.make_context(name, [], resilient_parsing=True).command.params:
            assert option.help, f"archbench {name}: {option.opts} has no help"
            assert f"`{option.opts[0] if option.opts[0].startswith('-') else option.opts[0].upper()}`" in section


def test_the_page_of_the_configuration_has_every_field_and_profile() -> None:
    page = reference_pages.configuration()
    fields = {name: field for name, field in RunConfig.model_fields.items() if name not in reference_pages.SECTIONS}
    for section, kind in reference_pages.SECTIONS.items():
        for name, field in (kind.model_fields if section else fields).items():
            assert f"| `{section}.{name}` |" in page if section else f"| `{name}` |" in page
            assert field.description, name
    assert "| field | smoke | quick | standard | paper |" in page


def test_every_page_is_in_the_navigation_and_every_generated_part_is_known() -> None:
    named = {
        page
        for entry in NAVIGATION
        for value in entry.values()
        for page in ([value] if isinstance(value, str) else value)
    }
    pages = {path.relative_to(DOCS).as_posix().replace(".ipynb", ".md") for path in (*DOCS.glob("*/*.md"), *NOTEBOOKS)}
    assert pages <= named
    parts = [part for page in DOCS.rglob("*.md") for part in re.findall(r"<!-- generated: (.+?) -->", page.read_text())]
    assert sorted(parts) == sorted(reference_pages.GENERATED)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(notebook: Path) -> None:
    """So it holds no path or number of somebody's machine; the site has it executed."""
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
