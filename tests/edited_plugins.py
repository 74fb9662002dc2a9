"""Plugins that are wrong in one place: the text of a right one, edited and loaded from a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import archbench
from archbench.testing.subject import Subject

ROOT = Path(__file__).parent.parent
SOURCES = {"gpt1": ROOT / "plugins/gpt1.py", "bigram": ROOT / "tests/example_plugins/bigram.py"}
TINY: dict[str, dict[str, Any]] = {
    "gpt1": {"vocab_size": 61, "context_length": 24, "n_layer": 1, "d_model": 32, "n_head": 2, "d_ff": 64},
    "bigram": {"vocab_size": 61, "context_length": 24},
}


Edit = tuple[str, str]
"""Old text and new."""


def tiny(name: str, **sizes: Any) -> Subject:
    """The plugin as it is, at a size of milliseconds."""
    architecture = archbench.load(name, plugins=[] if name == "gpt1" else [SOURCES[name]])
    return Subject(architecture, architecture.config("nano", **TINY[name] | sizes))


def edited(folder: Path, name: str, *edits: Edit, more: str = "", **sizes: Any) -> Subject:
    """The same with each of ``edits`` made everywhere, and ``more`` text before its first hook."""
    text = SOURCES[name].read_text().replace(f'"{name}"', '"wrong"')
    for old, new in [*edits, ("@hookimpl\ndef describe", f"{more}\n\n@hookimpl\ndef describe")]:
        assert old in text, f"the edit of {old!r} changes nothing: {name} is written in another way now"
        text = text.replace(old, new)
    path = folder / "wrong.py"
    path.write_text(text)
    architecture = archbench.load("wrong", plugins=[path])
    return Subject(architecture, architecture.config("nano", **TINY[name] | sizes))
