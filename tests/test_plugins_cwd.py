"""Nothing lying in the current directory is imported or taken for a plugin unless it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from archbench.plugin.registry import available
from installations import RunCLI, write_package

TRAP = """
from pathlib import Path
Path(__file__).with_name("sprung").touch()
raise SystemExit("imported from the current directory")
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with a package that claims to be installed, and modules named like archbench's own dependencies."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    write_package(folder, "hostile-plugin", "hostile", TRAP)
    egg = folder / "hostile_egg.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: hostile-egg\nVersion: 1.0\n")
    (egg / "entry_points.txt").write_text("[archbench]\nhostile-egg = hostile_plugin\n")
    for name in (
        "torch",
        "typer",
        "rich",
        "pluggy",
        "pydantic",
        "archbench_plugins",
        "my_arch",
        "conftest",
        "installations",
    ):
        (folder / f"{name}.py").write_text(TRAP)
    return folder


@pytest.mark.parametrize(
    ("module", "arguments", "printed"),
    [(False, ["list", "--json"], '"gpt1"'), (True, ["--help"], "generate")],
    ids=["command", "python -m"],
)
def test_a_hostile_folder_is_no_danger_to_stand_in(
    module: bool, arguments: list[str], printed: str, hostile: Path, cli: RunCLI
) -> None:
    done = cli(*arguments, cwd=hostile, module=module, fresh=True)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
    assert "hostile" not in done.stdout
    assert not (hostile / "sprung").exists()


def test_a_plugin_in_the_current_directory_is_loaded_when_it_is_named(
    tmp_path: Path, minimal_plugin: str, cli: RunCLI
) -> None:
    (tmp_path / "my_arch.py").write_text(minimal_plugin)
    assert "bigram" not in cli("list", cwd=tmp_path).stdout
    assert "bigram" in cli("list", "--plugin", "./my_arch.py", cwd=tmp_path).stdout


def test_an_empty_path_entry_finds_no_packages_in_the_current_directory(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter started without a script has '' first on its path."""
    monkeypatch.chdir(hostile)
    monkeypatch.syspath_prepend("")
    assert not [entry for entry in available() if "hostile" in entry.name]
