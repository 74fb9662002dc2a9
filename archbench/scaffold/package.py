"""A new plugin package: its names and files."""

from __future__ import annotations

import importlib.util
import re
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from archbench.errors import UsageError, did_you_mean, storing
from archbench.files.writing import temporary_beside
from archbench.plugin.discovery import Entry
from archbench.scaffold.action_reference import UNKNOWN
from archbench.scaffold.origin import Origin

TEMPLATE = "my-arch"
WORKFLOW = ".github/workflows/archbench.yml"
FILES = ("archbench_my_arch.py", "pyproject.toml", "README.md", "tests/test_my_arch.py", ".gitignore", WORKFLOW)


@dataclass(frozen=True)
class Wrap:
    """A module that makes a plugin of a library's model.

    Attributes:
        file: in the folder ``wraps``.
        requirement: what pip installs; "" if the author brings the model as a module of their own.
        step: the command that brings that module.
    """

    file: str
    requirement: str = ""
    step: str = ""

    def text(self, name: str) -> str:
        """The module, with ``name`` as the architecture's."""
        return _named(files("archbench.scaffold").joinpath("wraps", self.file).read_text("utf-8"), name)

    def command(self, name: str) -> str:
        """``step``, for the architecture ``name``."""
        return _named(self.step, name)


WRAPS = {
    "transformers": Wrap("transformers_models.py", "transformers>=5.0"),
    "litgpt": Wrap("litgpt_gpt.py", "litgpt>=0.5"),
    "x-transformers": Wrap("x_transformers_decoder.py", "x-transformers>=2.0"),
    "nanogpt": Wrap(
        "nanogpt_gpt.py",
        step="curl -o archbench_my_arch_model.py https://raw.githubusercontent.com/karpathy/nanoGPT/master/model.py",
    ),
}
"""What can be wrapped -> how."""


def find_wrap(library: str) -> Wrap:
    """The wrap for ``library``.

    Raises:
        UsageError: there is none.
    """
    if library not in WRAPS:
        raise UsageError(f"--wrap {library}", "there is no template for it", did_you_mean(library, WRAPS))
    return WRAPS[library]


def package_files(
    name: str, origin: Origin | None = None, wrap: Wrap | None = None, action: str = UNKNOWN
) -> dict[str, str]:
    """Path -> text of every file of the package for the architecture ``name``.

    Args:
        name: see :func:`check_name`.
        origin: the module to copy; None for the template's.
        wrap: the library whose model the module wraps; None for a model of its own.
        action: what the workflow uses, from :func:`archbench.scaffold.action_reference.action_reference`.
    """
    template = files("archbench.scaffold") / TEMPLATE
    written = {_named(file, name): _named(template.joinpath(file).read_text("utf-8"), name) for file in FILES}
    assert UNKNOWN in written[WORKFLOW]
    written[WORKFLOW] = written[WORKFLOW].replace(UNKNOWN, action)
    module, settings = module_name(name), "pyproject.toml"
    if wrap is not None:
        written[f"{module}.py"] = wrap.text(name)
        needed, modules = 'dependencies = ["archbench"', f'py-modules = ["{module}"'
        assert needed in written[settings]
        assert modules in written[settings]
        if wrap.requirement:
            written[settings] = written[settings].replace(needed, f'{needed}, "{wrap.requirement}"')
        else:
            written[settings] = written[settings].replace(modules, f'{modules}, "{module}_model"')
            written["README.md"] = written["README.md"].replace("```\n", f"```\n{wrap.command(name)}\n", 1)
    if origin is not None:
        written[f"{module}.py"] = origin.renamed(name)
        point = f'{name} = "{module}"'
        assert point in written[settings]
        if origin.attribute:
            written[settings] = written[settings].replace(point, f'{name} = "{module}:{origin.attribute}"')
    return written


def write_package(folder: Path, written: dict[str, str]) -> None:
    """Write :func:`package_files` into ``folder``, which is created; whole or not at all.

    Raises:
        UsageError: the folder is not empty, or it is a file.
        StorageError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        cause = "it exists, and nothing is overwritten"
        raise UsageError(str(folder), cause, "Choose another name, or another folder with --out")
    partial = temporary_beside(folder)
    try:
        with storing(str(folder), "Choose another folder with --out"):
            for path, text in written.items():
                file = partial / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_name(name: str, known: list[Entry]) -> None:
    """Check that a new architecture can be called ``name``.

    Raises:
        UsageError: the name is invalid, or it or the module's name is taken.
    """
    culprit = f"name {name!r}"
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        step = "Use lower-case letters, digits and single hyphens, beginning with a letter"
        raise UsageError(culprit, "it is not a valid name for an architecture", step)
    for entry in known:
        if entry.name == name:
            raise UsageError(culprit, f"{entry.culprit} has it already", "Choose another name")
    if importlib.util.find_spec(module_name(name)) is not None:
        cause = f"a module {module_name(name)} is installed already, and would hide the new one or be hidden by it"
        raise UsageError(culprit, cause, "Choose another name")


def module_name(name: str) -> str:
    """``archbench_my_arch``: the prefix avoids clashes with other modules."""
    return _named("archbench_my_arch", name)


def _named(text: str, name: str) -> str:
    """``text`` of the template, with the three spellings of its name replaced."""
    words = name.split("-")
    replaced = text.replace("my-arch", name).replace("my_arch", "_".join(words))
    return replaced.replace("MyArch", "".join(word.capitalize() for word in words))
