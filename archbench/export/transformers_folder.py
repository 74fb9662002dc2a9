"""A run as a folder that transformers reads: whole, or not there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from archbench.errors import StorageError, UsageError, one_line
from archbench.export.exported_run import ExportedRun
from archbench.export.model_card import model_card
from archbench.export.readers import reader_of
from archbench.export.tokenizer_files import tokenizer_files
from archbench.files.writing import flush, temporary_beside
from archbench.plugin.registry import code_of
from archbench.training.weights import WEIGHTS, write_weights

TORCH_FILE = "model.pth"


def require_new_folder(folder: Path) -> None:
    """Refuse a folder that has something in it, and a file.

    Raises:
        UsageError: names it.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"folder {folder}", "it exists and is not empty", "Name a new folder")


def write_transformers_folder(one: ExportedRun, folder: Path) -> None:
    """Write config.json, weights, the tokenizer's files and the model card, under another name that is then changed.

    Raises:
        UsageError: as :func:`require_new_folder`.
        DataError: the tokenizer has no such files.
        StorageError: the folder cannot be written.
    """
    require_new_folder(folder)
    place = Path(os.path.realpath(folder))
    texts, partial = _texts(one), temporary_beside(place)
    try:
        partial.mkdir(parents=True)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        for package in code_of(one.run.architecture.name):
            for file in Path(package).glob("*.py"):
                shutil.copyfile(file, partial / file.name)
        write_weights(one.weights, partial / WEIGHTS)
        (partial / WEIGHTS).chmod((partial / "README.md").stat().st_mode)  # safetensors lets only the owner read
        if reader_of(one.config).torch_file:
            whole = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in one.weights.items()}
            torch.save(whole, partial / TORCH_FILE)
        for file in partial.iterdir():
            flush(file)
        if place.exists():
            place.rmdir()
        partial.rename(place)
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = f"it cannot be written ({getattr(error, 'strerror', None) or one_line(error)})"
        raise StorageError(f"folder {folder}", cause, "Free space, or choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _texts(one: ExportedRun) -> dict[str, str]:
    """File name -> content of all that is text."""
    run = one.run
    separator = run.tokenizer.separator
    special = {"bos_token_id": separator, "eos_token_id": separator, "pad_token_id": None}
    dtype = str(next(iter(one.weights.values())).dtype).removeprefix("torch.")
    config = {**one.config, "dtype": dtype, **special}
    return {
        "config.json": json.dumps(config, indent=2) + "\n",
        "generation_config.json": json.dumps(special, indent=2) + "\n",
        **tokenizer_files(run.tokenizer, run.config.context_length),
        "README.md": model_card(one),
    }
