"""archbench compares language-model architectures: quality, speed and memory, by one protocol.

Nothing heavy is imported until it is used: ``import archbench`` loads neither torch nor pandas.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # typing's own takes 5 ms to import, in which an interrupt would print a traceback
if TYPE_CHECKING:
    from typing import Any

    from archbench.config import ModelConfig as ModelConfig
    from archbench.config import RunConfig as RunConfig
    from archbench.data.tasks import IGNORED as IGNORED
    from archbench.data.tasks import Examples as Examples
    from archbench.data.tasks import Task as Task
    from archbench.errors import ArchbenchError as ArchbenchError
    from archbench.hookspecs import ArchitectureInfo as ArchitectureInfo
    from archbench.hookspecs import hookimpl as hookimpl
    from archbench.inference.decoding import decode_with_cache as decode_with_cache
    from archbench.inference.decoding import decode_without_cache as decode_without_cache
    from archbench.inference.sampling import Sampling as Sampling
    from archbench.kernels import causal_attention as causal_attention
    from archbench.kernels import linear_cross_entropy as linear_cross_entropy
    from archbench.plugin.architecture import Architecture as Architecture
    from archbench.plugin.registry import available as available
    from archbench.plugin.registry import load as load
    from archbench.results.reading import read_results as read_results
    from archbench.runs.models import load_run as load_run
    from archbench.runs.run import run as run
    from archbench.training.state import TrainState as TrainState
    from archbench.training.steps import next_token_step as next_token_step

__version__ = "0.2.0"

_HOMES = {
    "ArchbenchError": "archbench.errors",
    "Architecture": "archbench.plugin.architecture",
    "ArchitectureInfo": "archbench.hookspecs",
    "Examples": "archbench.data.tasks",
    "IGNORED": "archbench.data.tasks",
    "ModelConfig": "archbench.config",
    "RunConfig": "archbench.config",
    "Sampling": "archbench.inference.sampling",
    "Task": "archbench.data.tasks",
    "TrainState": "archbench.training.state",
    "available": "archbench.plugin.registry",
    "causal_attention": "archbench.kernels",
    "decode_with_cache": "archbench.inference.decoding",
    "decode_without_cache": "archbench.inference.decoding",
    "hookimpl": "archbench.hookspecs",
    "linear_cross_entropy": "archbench.kernels",
    "load": "archbench.plugin.registry",
    "load_run": "archbench.runs.models",
    "next_token_step": "archbench.training.steps",
    "read_results": "archbench.results.reading",
    "run": "archbench.runs.run",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'archbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
