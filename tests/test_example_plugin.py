"""The tutorial of docs/tutorials/add-your-own.md, step by step; what it ends with is tests/example_plugin/.

That package is somebody else's: what ``archbench new decay`` wrote, with another mixer and a cache.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sysconfig
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

import archbench
from archbench.protocols import CachedModel
from archbench.scaffold.package import package_files

HERE = Path(__file__).parent
PACKAGE = HERE / "example_plugin"
DECAY = PACKAGE / "archbench_decay.py"
BIGRAM = HERE / "example_plugins" / "bigram.py"
PAGE = (HERE.parent / "docs" / "tutorials" / "add-your-own.md").read_text()
CHANGED = {"Mixer", "Block", "Cache", "Model", "generate"}

# What the scripts that pip installs consist of. The index is left out of pip's own, so that no test needs a network;
# archbench is found in the environment of the tests.
SCRIPTS = {
    "archbench": "from archbench.cli import main",
    "pytest": "from pytest import console_main as main",
    "pip": "from pip._internal.cli.main import main\nsys.argv[2:2] = ['--no-index', '--no-build-isolation']",
}


@dataclass
class Shell:
    """A terminal in a virtual environment of its own."""

    environment: dict[str, str]
    folder: Path

    def run(self, command: str, code: int = 0) -> str:
        """What ``command`` prints; it has to end with the exit code ``code``."""
        if command.startswith("cd "):
            self.folder = self.folder / command.removeprefix("cd ")
            return ""
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}"
        return done.stdout


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """An empty folder, and a virtual environment of its own over the packages of this one."""
    venv.create(tmp_path / "venv", with_pip=False)
    places = {
        name: sysconfig.get_path(name, "venv", vars={"base": str(tmp_path / "venv")}) for name in ("purelib", "scripts")
    }
    mine = sysconfig.get_path("purelib")
    (Path(places["purelib"]) / "tests.pth").write_text(f"import site; site.addsitedir({mine!r})\n")
    python = Path(places["scripts"]) / "python"
    for name, code in SCRIPTS.items():
        script = python.with_name(name)
        script.write_text(f"#!{python}\nimport sys\n{code}\nsys.exit(main())\n")
        script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{places['scripts']}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}
    folder = tmp_path / "user"
    folder.mkdir()
    return Shell(environment, folder)


def test_the_example_is_what_archbench_new_writes_with_another_mixer_and_a_cache() -> None:
    written = package_files("decay")
    module = written.pop(DECAY.name)
    for path, text in written.items():
        assert (PACKAGE / path).read_text() == text, path
    parts = []
    for source in (module, DECAY.read_text()):
        nodes = [node for node in ast.parse(source).body if getattr(node, "name", None) not in CHANGED]
        parts.append([ast.unparse(node) for node in nodes if not isinstance(node, ast.ImportFrom)])
    assert parts[0] == parts[1]


def test_its_cache_is_as_large_for_one_position_as_for_the_whole_context() -> None:
    architecture = archbench.load("decay", plugins=[DECAY])
    model = architecture.build(config := architecture.config())
    assert isinstance(model, CachedModel)
    sizes = [
        sum(tensor.nbytes for tensor in model.new_cache(3, capacity).tensors())
        for capacity in (1, config.context_length)
    ]
    assert sizes[0] == sizes[1] == 4 * 2 * 3 * 6 * 32  # bytes, L, B, H, D


@pytest.mark.slow
def test_its_wheel_can_be_installed_and_is_found(shell: Shell) -> None:
    shutil.copytree(
        PACKAGE, shell.folder / "decay", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    )
    shell.run("pip wheel --no-deps -w wheels ./decay")
    shell.run("pip install wheels/*.whl")
    listed = shell.run("archbench list --wide").splitlines()
    assert any(" decay " in line and "archbench-decay 0.1.0" in line for line in listed)
    assert not list(Path(sysconfig.get_path("purelib")).glob("archbench_decay*"))  # the environment was its own


def blocks(section: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block of the tutorial under the heading ``section``, in order."""
    text = re.split(r"(?m)^## ", PAGE)
    (found,) = (part for part in text if part.startswith(section + "\n"))
    return re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", found)


def conversation(block: str) -> list[tuple[str, list[str]]]:
    """(command, lines it should print) of a console block."""
    said: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            said.append((line.removeprefix("$ ").split("  #")[0], []))
        else:
            said[-1][1].append(line)
    return said


def words(text: str) -> list[str]:
    """The words of ``text``, without pytest's rules and the star of a phase that other work disturbed."""
    return text.replace("=", "").replace(" * ", " ").split()


def assert_printed(command: str, expected: list[str], printed: str) -> None:
    """What is expected was printed, in that order; numbers may differ, lines be broken elsewhere; "…" is anything."""
    rest = " ".join(words(printed))
    for passage in re.split(r"(?m)^…$", "\n".join(expected)):
        pattern = " ".join(
            r"\S+" if re.search(r"\d", word) else re.escape(word).replace("…", ".*?") for word in words(passage)
        )
        found = re.search(pattern, rest)
        assert found is not None, f"$ {command}\nshould print:\n{passage}\nand printed:\n{printed}"
        rest = rest[found.end() :]


@pytest.mark.slow
def test_every_step_of_the_tutorial_does_what_it_says(shell: Shell) -> None:
    edits = iter([with_the_mixer(package_files("decay")[DECAY.name]), *[DECAY.read_text()] * 9])
    commands, start = [], time.monotonic()
    for language, text in blocks("In five minutes"):
        if language == "python":
            (shell.folder / DECAY.name).write_text(next(edits))
        for command, expected in conversation(text) if language == "console" else []:
            begun, module, leaky = time.monotonic(), shell.folder / DECAY.name, "causality" in command
            source = module.read_text() if leaky else ""
            if leaky:  # the page has the reader delete it and put it back
                module.write_text(source.replace(".tril()", ""))
            assert_printed(command, expected, shell.run(command, 9 if leaky else 0))
            if leaky:
                module.write_text(source)
            commands.append(command.split(" -")[0])
            print(f"{time.monotonic() - begun:6.1f} s  {command}")
    seconds = time.monotonic() - start
    print(f"{seconds:6.1f} s  in all")
    assert seconds < 300
    assert {"archbench new decay", "pytest", "pip install", "archbench list", "archbench check decay"} <= set(commands)
    assert "archbench run decay" in commands


@pytest.mark.slow
def test_the_smallest_plugin_runs_as_the_page_says(shell: Shell) -> None:
    shutil.copy(BIGRAM, shell.folder / "my_arch.py")
    said = [
        said for language, text in blocks("The smallest plugin") if language == "console" for said in conversation(text)
    ]
    for command, expected in said:
        assert_printed(command, expected, shell.run(command))
    assert said


def with_the_mixer(source: str) -> str:
    """``source`` with the example's mixer in place of its own."""
    mixer = re.compile(r"class Mixer\(.*?(?=\n\n\n)", re.DOTALL)
    (mine,) = mixer.findall(DECAY.read_text())
    replaced, count = mixer.subn(lambda _: mine, source)
    assert count == 1
    return replaced


def test_who_follows_the_tutorial_ends_with_the_example() -> None:
    shown = {line for language, text in blocks("In five minutes") if language == "python" for line in text.splitlines()}
    there = set(package_files("decay")[DECAY.name].splitlines())
    assert [line for line in DECAY.read_text().splitlines() if line not in shown | there] == []
