"""Conformance checks that a model has passed, kept in the cache: the same model is not checked again.

What is kept holds for one state of all that decides it: the model, the text, the device, torch, and every file of
Python code that the checking process had imported at its end, archbench's, the plugin's and what that imports, by
content. Failed checks are not kept. What a plugin reads beside code is not seen: ``checked=again`` checks anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import archbench
from archbench.data.cache import cache_folder, content_key, write_atomically
from archbench.errors import ArchbenchWarning, StorageError
from archbench.files.loader import read_model
from archbench.files.seal import sealed
from archbench.runs.conformance import CHECK, Findings
from archbench.runs.folder import CONFIG, RunFolder

STEERING = ("ATEN_", "CUBLAS_", "CUDA_", "CUDNN_", "DNNL_", "MKL_", "NVIDIA_", "ONEDNN_", "PYTORCH_", "TORCH", "TRITON")
"""Beginnings of the environment variables that change how torch computes."""


@dataclass(frozen=True)
class _Kept:
    """The content of a file of the cache; ``code`` has the digest of each file of code."""

    question: str
    code: dict[str, str]
    run_id: str
    findings: Findings
    rows: list[dict[str, Any]]


def recall(run: RunFolder) -> str | None:
    """Give ``run`` the findings and rows of an earlier run of the same model that passed; returns that run's id.

    None if there is none such, or if what is kept is damaged: then the run is checked itself.
    """
    question = question_of(run)
    if not _file(question).exists():
        return None
    try:
        kept = read_model(_Kept, _file(question), sealing="required", next_step="It is made again")
    except StorageError as error:
        import logging

        logging.getLogger(__name__).warning("the record of passed checks is damaged, they are run again: %s", error)
        return None
    if kept.question != question or kept.findings.failed or kept.code != _digests(kept.code):
        return None
    replace(kept.findings, taken_from=kept.run_id).write(run)
    here = {"host": socket.gethostname(), "threads": run.config.threads or torch.get_num_threads()}
    run.write_rows(CHECK, [{**row, **here} for row in kept.rows])
    return kept.run_id


def keep(run: RunFolder, question: str, findings: Findings, rows: list[dict[str, Any]], files: Iterable[str]) -> None:
    """In the process that checked: keep what ``run`` has passed.

    Nothing is kept if code has changed since the run began: it may not be what was checked.

    Args:
        question: :func:`question_of` the run, before its plugin was imported.
        files: of the plugin, beside those of the modules that are imported here.

    Warns:
        ArchbenchWarning: the cache cannot be written.
    """
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    code = sorted(file for file in {*filter(None, loaded), *files} if os.path.isfile(file))
    began = (run.path / CONFIG).stat().st_mtime_ns
    if any(os.stat(file).st_mtime_ns > began for file in code):
        return
    content = _Kept(question, _digests(code), run.run_id, findings, rows)
    try:
        write_atomically(_file(question), lambda out: out.write(sealed(asdict(content)).encode()))
    except StorageError as error:
        warnings.warn(f"that the checks were passed is not kept: {error}", ArchbenchWarning, stacklevel=2)


def question_of(run: RunFolder) -> str:
    """All that decides the verdict but the code, as text."""
    config, facts, machine = run.config, run.facts, run.facts["machine"]
    tokenizer = sorted(str(file) for file in run.tokenizer.rglob("*") if file.is_file())
    said = [
        archbench.__file__,
        sys.version,
        facts["versions"] | {"git_revision": None},  # the texts say it better
        [facts.get(name) for name in ("plugin_package", "plugin_version", "wrappers")],
        {name: machine.get(name) for name in ("system", "cpu", "gpu", "gpu_driver", "numpy_version")},
        sorted(one for one in os.environ.items() if one[0].startswith(STEERING)),
        [config.architecture, config.plugins, run.model],
        [facts["corpus_sha256"], config.data.validation_fraction, list(_digests(tokenizer).values())],
        [config.device, config.dtype, config.attention, config.products],
        [config.quality.batch_size, config.speed.batch_sizes],
    ]
    return json.dumps(said, sort_keys=True)


def _file(question: str) -> Path:
    return cache_folder() / "checks" / f"{content_key(question)}.json"


def _digests(files: Iterable[str]) -> dict[str, str]:
    """Of each file's content; of a library, which may be large, its size and time; "" where there is none."""
    return {file: _digest(file) for file in files}


def _digest(file: str) -> str:
    try:
        if file.endswith((".so", ".pyd")):
            facts = os.stat(file)
            return f"{facts.st_size} bytes of {facts.st_mtime_ns}"
        with open(file, "rb") as opened:
            return hashlib.sha256(opened.read()).hexdigest()
    except OSError:
        return ""
