"""Which attention was the fastest on a GPU, as ``archbench kernels`` measured it and kept it in the cache."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from archbench.data.cache import cache_folder, content_key, write_atomically
from archbench.errors import ArchbenchWarning, StorageError
from archbench.files.loader import read_model
from archbench.files.seal import sealed
from archbench.kernels.attention_rules import MeasuredCase, octave_of
from archbench.measure.machine import device_name, versions

FORWARD, BACKWARD = "forward_seconds", "backward_seconds"

Times = dict[str, dict[tuple[str, tuple[Any, ...]], list[float]]]
"""Backend -> metric and sizes -> seconds of each sample."""


class _Kept(BaseModel):
    """The part of a kept file that is read."""

    model_config = ConfigDict(extra="ignore")

    cases: list[MeasuredCase]


def keep_attention_speeds(device: torch.device | str, rows: Iterable[Mapping[str, Any]]) -> list[MeasuredCase]:
    """Keep which backend was the fastest in each case of a kernel run on this GPU, for later runs; returns the cases.

    Cases that this GPU has from earlier runs with these versions stay, unless they were measured again.

    Args:
        device: the GPU.
        rows: finished rows of the phase ``kernel``; those with several numbers of heads or sequences count together.

    Warns:
        ArchbenchWarning: the cache cannot be written.
    """
    found: dict[tuple[str, int, int, bool], Times] = defaultdict(dict)
    for row in rows:
        metric = row["metric"]
        if row.get("operation") != "causal_attention" or metric not in (FORWARD, BACKWARD) or row["value"] is None:
            continue
        name, T, W = (row[column] for column in ("attention", "context_length", "window"))
        sizes = (T, W, *(row[column] for column in ("batch_size", "query_heads", "kv_heads")))
        times = found[row["dtype"], row["head_width"], octave_of(T), W is not None and W < T]
        times.setdefault(name.removesuffix("-autotuned"), {}).setdefault((metric, sizes), []).append(row["value"])
    cases = [
        MeasuredCase(dtype, D, octave, windowed, _fastest(times, FORWARD), _fastest(times, FORWARD, BACKWARD))
        for (dtype, D, octave, windowed), times in found.items()
    ]
    file, facts = _file(device)
    try:
        kept = {_identity(case): case for case in [*known_attention_speeds(device), *cases]}
        text = sealed({**facts, "cases": [asdict(case) for case in kept.values()]})
        write_atomically(file, lambda out: out.write(text.encode()))
    except StorageError as error:
        warnings.warn(f"the attention's speeds are not kept: {error}", ArchbenchWarning, stacklevel=2)
    return cases


def _fastest(times: Times, *metrics: str) -> tuple[str, ...]:
    """The fastest first, by the sum of the medians; without those that could not run at some of the sizes."""
    sizes = {size for own in times.values() for _, size in own}
    needed = [(metric, size) for metric in metrics for size in sizes]
    sums = {name: sum(median(own[key]) for key in needed) for name, own in times.items() if own.keys() >= {*needed}}
    return tuple(sorted(sums, key=sums.__getitem__))


def known_attention_speeds(device: torch.device | str) -> list[MeasuredCase]:
    """What :func:`keep_attention_speeds` kept of this GPU's model with these versions of torch, Triton and cuDNN.

    Raises:
        StorageError: it is damaged.
    """
    file, _ = _file(device)
    if not file.exists():
        return []
    return read_model(_Kept, file, sealing="required", next_step="Measure it again: archbench kernels").cases


def _identity(case: MeasuredCase) -> tuple[object, ...]:
    return case.dtype, case.D, case.octave, case.windowed


def _file(device: torch.device | str) -> tuple[Path, dict[str, str]]:
    """The file in the cache, and what its name is made of: times of other versions are others."""
    found = versions()
    facts = {
        "device": device_name(device),
        "torch": str(found["torch_version"]),
        "triton": str(found["triton_version"]),
        "cudnn": str(_cudnn_version()),
    }
    return cache_folder() / "attention" / f"{content_key(*facts.values())}.json", facts


def _cudnn_version() -> int | None:
    try:
        version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    except RuntimeError:  # not the one that torch was built for
        version = None
    return version
