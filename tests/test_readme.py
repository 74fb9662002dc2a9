"""README and manual tell the truth: the plugin is the one that is tested, and commands take the options they show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from archbench import read_results
from archbench.cli.app import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
TUTORIALS = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs" / "tutorials").glob("*.md")}
QUICK_START = TUTORIALS["quick-start"]
EXAMPLES = (ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8")
TYPED = re.findall(r"(?m)^\$ (archbench .*)$", "\n".join(TUTORIALS.values()))

NAMES = set(typer.main.get_command(app).commands)
COMMANDS = sorted(
    {
        match.group(0).split("#")[0].strip()
        for match in re.finditer(
            rf"(?m)archbench ({'|'.join(NAMES)})\b[^\n`&…]*", "\n".join([README, QUICK_START, EXAMPLES, *TYPED])
        )
    }
)


def test_the_readmes_plugin_is_the_tested_example() -> None:
    assert (ROOT / "tests" / "example_plugins" / "bigram.py").read_text() in README


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_command_has_an_example() -> None:
    assert {command.split()[1] for command in COMMANDS} == NAMES


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_parse(command: str) -> None:
    _, name, *arguments = shlex.split(command.rstrip("."))
    subcommand = typer.main.get_command(app).commands[name]
    subcommand.make_context(name, arguments)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_the_readmes_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_the_quick_starts_numbers_are_those_of_the_reference_run() -> None:
    frame = read_results(ROOT / "results" / "reference")
    quality = frame[frame.phase == "quality"].set_index("metric").value
    assert f"{quality['bits_per_byte']:.4f} bit/byte" in QUICK_START
    assert quality["bits_per_byte"] < min(quality["floor_zlib"], quality["floor_bigram"]), "what the suite promises"
    assert not frame.contaminated.any()
