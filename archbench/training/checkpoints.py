"""Checkpoints: complete or absent, even if the process is killed.

::

    checkpoints/
      step-00000100/
        model.safetensors    weights under the plugin's own names; tied weights once
        training.pt          optimizer, random number generators, history; loaded with weights_only=True
        manifest.json        sha256 and size of both
      step-00000200/

A checkpoint is written into a hidden folder, flushed to the disk with ``fsync``, and renamed into place; then the third
newest is removed. Readers therefore find only complete checkpoints; checksums reveal bit flips and bad copies.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from torch import Tensor

from archbench.errors import CheckpointError, StorageError, one_line
from archbench.files.loader import open_regular, read_model
from archbench.files.seal import sealed
from archbench.files.writing import flush
from archbench.training.weights import WEIGHTS, read_torch_file, read_weights, write_weights

TRAINING = "training.pt"
MANIFEST = "manifest.json"
KEPT = 2
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


class _File(BaseModel):
    sha256: str
    bytes: int


class _Manifest(BaseModel):
    """The content of ``manifest.json``."""

    model_config = ConfigDict(extra="forbid")

    format: int
    step: int
    files: dict[str, _File]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        path: its folder.
        step: updates done.
        weights: the module's ``state_dict``.
        training: the argument of :func:`save_checkpoint`.
    """

    path: Path
    step: int
    weights: dict[str, Tensor]
    training: dict[str, Any]


def save_checkpoint(folder: Path, step: int, weights: Mapping[str, Tensor], training: Mapping[str, Any]) -> Path:
    """Write ``folder/step-…`` atomically, and keep the newest two.

    Args:
        folder: created if missing.
        step: updates done; more than in existing checkpoints.
        weights: a ``state_dict``.
        training: tensors, numbers, strings, lists and dicts of them.

    Raises:
        StorageError: it cannot be written (disk full, read-only); existing checkpoints are untouched.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"
    before = _listed(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover)
        partial.mkdir()
        write_weights(weights, partial / WEIGHTS)
        with (partial / TRAINING).open("wb") as file:
            torch.save(dict(training), file)
        sums = {name: _facts(partial / name).model_dump() for name in (WEIGHTS, TRAINING)}
        (partial / MANIFEST).write_text(sealed({"format": _FORMAT, "step": step, "files": sums}), encoding="utf-8")
        for name in (WEIGHTS, TRAINING, MANIFEST):
            flush(partial / name)
        flush(partial)
        partial.rename(final)
        flush(folder)
        for _, old in _listed(folder)[:-KEPT]:
            # Rename first: an interrupted removal must not leave half a checkpoint under a checkpoint's name.
            shutil.rmtree(old.rename(folder / f".{old.name}.removed"))
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = f"; {before[-1][1].name} is intact" if before else ""
        raise StorageError(
            f"checkpoint {final}",
            f"it cannot be written ({_cause(error)}){kept}",
            "Free space or make the folder writable",
        ) from error
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint's folder, or None if there is none; its checksums are not verified.

    Raises:
        StorageError: the folder cannot be listed.
    """
    listed = _listed(folder)
    return listed[-1][1] if listed else None


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, on the CPU, with checksums verified; None if there is none.

    Raises:
        CheckpointError: it is damaged. Whether to use the older one is for the user to decide.
        StorageError: the folder cannot be listed.
    """
    path = latest_checkpoint(folder)
    if path is None:
        return None
    step = _verify(path, (WEIGHTS, TRAINING))
    training = read_torch_file(path / TRAINING, f"checkpoint file {path / TRAINING}", _way_back(path))
    if not isinstance(training, dict):
        raise _damaged(path, TRAINING, "it holds no mapping")
    return Checkpoint(path, step, read_weights(path / WEIGHTS), training)


def verify_checkpoint(path: Path) -> None:
    """Compare all files of a checkpoint with their checksums.

    Raises:
        CheckpointError: it is damaged.
    """
    _verify(path, (WEIGHTS, TRAINING))


def load_weights(path: Path) -> dict[str, Tensor]:
    """A ``state_dict`` on the CPU: a checkpoint's (checksum verified), or published weights.

    See :func:`archbench.training.weights.read_weights` for the layouts. No code of a pickle is run.

    Raises:
        CheckpointError: the file is missing, damaged, or a pickle that holds more than tensors.
    """
    if _NAME.fullmatch(path.name) and path.is_dir():
        _verify(path, (WEIGHTS,))
    return read_weights(path)


def _listed(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in ``folder``, oldest first."""
    try:
        paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        culprit, cause = f"checkpoints folder {folder}", f"it cannot be listed ({_cause(error)})"
        raise StorageError(culprit, cause, "Name a folder that you may read and write") from error
    return sorted((int(path.name.removeprefix("step-")), path) for path in paths)


def _verify(path: Path, names: tuple[str, ...]) -> int:
    """The checkpoint's step, after verifying the checksums of the files ``names``."""
    culprit = f"checkpoint file {path / MANIFEST}"
    manifest = read_model(
        _Manifest,
        path / MANIFEST,
        limit=1 << 20,
        error=CheckpointError,
        culprit=culprit,
        next_step=_way_back(path),
        sealing="optional",
    )
    if manifest.format != _FORMAT:
        raise CheckpointError(
            f"checkpoint {path}",
            f"its format is {manifest.format}, but this version reads {_FORMAT}",
            "Use the archbench that wrote it",
        )
    if path.name != f"step-{manifest.step:08d}":
        raise _damaged(path, MANIFEST, f"it is the manifest of step {manifest.step}")
    for name in names:
        try:
            facts = _facts(path / name)
        except OSError as error:
            raise _damaged(path, name, _cause(error)) from None
        if facts != manifest.files.get(name):
            raise _damaged(path, name, "its checksum differs from when it was written")
    return manifest.step


def _damaged(path: Path, name: str, cause: str) -> CheckpointError:
    return CheckpointError(f"checkpoint file {path / name}", cause, _way_back(path))


def _way_back(path: Path) -> str:
    older = [other.name for _, other in _listed(path.parent) if other.name < path.name]
    fallback = f"from {older[-1]}" if older else "from the start"
    return f"Delete the folder {path} to continue {fallback}"


def _facts(path: Path) -> _File:
    with open_regular(path) as file:
        return _File(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def _cause(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
