"""The configuration that comes with published weights: a ``config.json``, or the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archbench.data.gguf import is_gguf
from archbench.errors import CheckpointError
from archbench.files.loader import read_json

CONFIG = "config.json"


@dataclass(frozen=True)
class Published:
    """A configuration in transformers' names.

    Attributes:
        name: the file's or the folder's name.
        source: the file that holds the configuration.
        fields: the content of a ``config.json``.
    """

    name: str
    source: Path
    fields: Mapping[str, Any]


def read_published(weights: Path) -> Published | None:
    """The configuration in a GGUF file or in the ``config.json`` of the weights' folder; None if there is none.

    A ``config.json`` without a ``model_type`` is not transformers' and is ignored.

    Raises:
        CheckpointError: the file cannot be read, or its architecture is not supported.
    """
    if is_gguf(weights):
        from archbench.training.gguf_llama import gguf_config

        return Published(weights.stem, weights, gguf_config(weights))
    folder = weights if weights.is_dir() else weights.parent
    source = folder / CONFIG
    if not source.is_file():
        return None
    fields = read_json(
        source, error=CheckpointError, culprit=f"configuration {source}", next_step="Correct it, or get it again"
    )
    if not isinstance(fields, dict) or "model_type" not in fields:
        return None
    return Published(folder.name, source, fields)
