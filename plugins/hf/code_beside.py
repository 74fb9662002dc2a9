"""Code beside a configuration (``auto_map``): kept by its content, imported if trusted.

The cache has a copy, a package under the name of the architecture. The copy is what is judged and what runs: the core
requires that the user has named or trusts its content (:mod:`archbench.plugin.trust`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from archbench.data.cache import cache_folder
from archbench.errors import CheckpointError, storing
from archbench.files.loader import read_bytes
from archbench.files.writing import temporary_beside

from .foreign_config import Code

MOST_FILES, MOST_BYTES = 200, 4 << 20
"""Bounds of such code: data may name any folder."""

_STEP = "Name the folder of the model, which holds config.json and its code"


def code_files(folder: Path) -> dict[str, bytes]:
    """The Python files in a folder, by name; those of folders inside it are not the model's.

    Raises:
        CheckpointError: there are none, too many, or one cannot be read.
    """
    found = sorted(folder.glob("*.py"))
    if not 0 < len(found) <= MOST_FILES:
        raise CheckpointError(f"code in {folder}", f"it holds {len(found)} Python files", _STEP)
    files = {
        file.name: read_bytes(file, limit=MOST_BYTES, error=CheckpointError, culprit=f"code {file}", next_step=_STEP)
        for file in found
    }
    return {"__init__.py": b"", **files}


def digest_of_code(files: Mapping[str, bytes]) -> str:
    """:func:`archbench.plugin.trust.content_digest` of the package with these files and no other."""
    lines = "".join(f"{hashlib.sha256(content).hexdigest()} {name}\n" for name, content in sorted(files.items()))
    return f"sha256:{hashlib.sha256(lines.encode('utf-8', 'surrogateescape')).hexdigest()}"


def kept_code(name: str) -> Path:
    """The package of the architecture ``LABEL@DIGEST`` in the cache."""
    return cache_folder() / "hf-code" / name


def keep_code(name: str, files: Mapping[str, bytes]) -> None:
    """Write the package, unless it is there as it should be.

    Raises:
        StorageError: the cache cannot be written.
    """
    place = kept_code(name)
    if place.is_dir() and {*os.listdir(place)} == files.keys() and code_files(place) == files:
        return
    partial = temporary_beside(place)
    with storing(f"cache folder {str(place.parent)!r}", "Set ARCHBENCH_CACHE to a writable folder"):
        try:
            partial.mkdir(parents=True)
            for file, content in files.items():
                (partial / file).write_bytes(content)
            shutil.rmtree(place, ignore_errors=True)
            with suppress(FileExistsError):  # another process has just written the same
                partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


Import = Callable[[str], ModuleType]
"""Imports the module of that name in the package; the core's, which has seen that it may run."""


def imported_code(published: Mapping[str, Any], module: Import) -> Code:
    """The classes that ``auto_map`` names.

    Raises:
        CheckpointError: ``auto_map`` names no class of that code.
        PluginImportError: the code cannot be imported.
    """
    named = published.get("auto_map")
    named = named if isinstance(named, dict) else {}
    model = _class("AutoModelForCausalLM", "PreTrainedModel", named, module)
    if "AutoConfig" not in named:
        if (config := getattr(model, "config_class", None)) is None:
            raise _refused("AutoConfig", "it names no class, and neither does the model's config_class")
        return Code(config, model)
    return Code(_class("AutoConfig", "PreTrainedConfig", named, module), model)


def _class(what: str, base: str, named: Mapping[str, Any], module: Import) -> Any:
    place = named.get(what)
    file, dot, kind = place.partition(".") if isinstance(place, str) else ("", "", "")
    if not (dot and file.isidentifier() and kind.isidentifier()):
        raise _refused(what, f"it names no class in a file beside it, but {place!r}")
    found = getattr(module(file), kind, None)
    if not (isinstance(found, type) and issubclass(found, getattr(import_module("transformers"), base))):
        raise _refused(what, f"{file}.py has no {base} of transformers that is called {kind}")
    return found


def _refused(what: str, cause: str) -> CheckpointError:
    return CheckpointError(f"published configuration, field auto_map.{what}", cause, "Get the model whole")
