"""The module of an existing architecture, to copy under another name; nothing is imported."""

from __future__ import annotations

import ast
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from archbench.errors import UsageError
from archbench.plugin.discovery import Entry, source_path
from archbench.plugin.registry import ARCHITECTURE, claimant


@dataclass(frozen=True)
class Origin:
    """The single module of an architecture.

    Attributes:
        entry: the plugin.
        text: source of the module.
        attribute: name of the plugin object in the module; "" if the module is the plugin.
    """

    entry: Entry
    text: str
    attribute: str = ""

    def renamed(self, name: str) -> str:
        """The source with ``name`` as the architecture's name, and a first line that states its origin.

        Raises:
            UsageError: the name in its ``ArchitectureInfo`` is not a literal, so it cannot be replaced.
        """
        found = _name_literal(ast.parse(self.text), self.entry.name)
        if found is None:
            cause = f"no ArchitectureInfo({self.entry.name!r}, …) is in its source, so its name cannot be replaced"
            raise _unusable(self.entry, cause)
        lines = self.text.splitlines(keepends=True)
        line = lines[found.lineno - 1].encode()  # ast counts columns in bytes
        changed = line[: found.col_offset] + f'"{name}"'.encode() + line[found.end_col_offset :]
        lines[found.lineno - 1] = changed.decode()
        return f"# Copied from {self._provenance()} by archbench new.\n" + "".join(lines)

    def _provenance(self) -> str:
        entry = self.entry
        if entry.is_file:
            return f"{entry.name} ({Path(entry.source).name}, {entry.version})"
        about = metadata.metadata(entry.package)
        given = [about[field].splitlines()[0] for field in ("License-Expression", "License") if field in about]
        return f"{entry.name} of {entry.package} {entry.version} ({(*given, 'licence unknown')[0]})"


def find_origin(name: str, known: Sequence[Entry]) -> Origin:
    """The module of the architecture ``name`` among those ``known``.

    Raises:
        UnknownNameError: there is no such architecture.
        DuplicateNameError: two plugins have that name.
        UsageError: its source cannot be found or read, or it is more than one module.
    """
    entry = claimant(ARCHITECTURE, name, known)
    module, _, attribute = ("", "", "") if entry.is_file else entry.source.partition(":")
    file = source_path(entry)
    if file is None:
        raise _unusable(entry, f"there is no module {module}")
    if file.is_dir():
        raise _unusable(entry, "it is a package of several modules")
    if file.suffix != ".py":
        raise _unusable(entry, f"its module {module} has no Python source")
    with tokenize.open(file) as stream:
        text = stream.read()
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise _unusable(entry, f"line {error.lineno} of its source is not Python: {error.msg}") from error
    for line, imported in _own_imports(tree, module.partition(".")[0]):
        raise _unusable(entry, f"it is more than one module: line {line} imports {imported}")
    return Origin(entry, text, attribute)


def _own_imports(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """(line, module) of each import from the same package, which a copy would lack."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith(".") or (package and name.partition(".")[0] == package):
                yield node.lineno, name


def _name_literal(tree: ast.Module, name: str) -> ast.Constant | None:
    """The string ``name`` in ``ArchitectureInfo(name, …)``, or in the module's constant used there."""
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] != "ArchitectureInfo":
            continue
        given = [keyword.value for keyword in node.keywords if keyword.arg == "name"] or node.args[:1]
        for value in given:
            literal = constants.get(value.id) if isinstance(value, ast.Name) else value
            if isinstance(literal, ast.Constant) and literal.value == name and literal.lineno == literal.end_lineno:
                return literal
    return None


def _unusable(entry: Entry, cause: str) -> UsageError:
    step = "Copy it by hand, or start from the template: leave --from out"
    return UsageError(f"--from {entry.name} ({entry.package})", cause, step)
