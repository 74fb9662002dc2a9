"""What lm-evaluation-harness and its libraries print of their own, and archbench says itself or need not say."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import datasets
import lm_eval.api.task
import tqdm

KNOWN = {
    "lm_eval.api.task": ("is defined, but aggregation is not", "is defined, but higher_is_better is not"),
    "huggingface_hub.utils._http": ("thrown while requesting", "Retrying in"),
}
"""Logger -> parts of its messages: a metric's defaults, and attempts at a network whose failure is an error anyway."""


@contextmanager
def without_noise() -> Iterator[None]:
    """Within this context there are no progress bars but those of downloads, and no :data:`KNOWN` messages.

    Other warnings reach their loggers.
    """
    bars = datasets.are_progress_bars_disabled()
    with ExitStack() as stack:
        for module in (lm_eval.api.task, tqdm):  # the harness's metrics import the name where they use it
            stack.enter_context(patch.object(module, "tqdm", partial(tqdm.tqdm, disable=True)))
        for name, parts in KNOWN.items():
            unknown = partial(_is_unknown, parts)
            logging.getLogger(name).addFilter(unknown)
            stack.callback(logging.getLogger(name).removeFilter, unknown)
        datasets.disable_progress_bars()
        if not bars:
            stack.callback(datasets.enable_progress_bars)
        yield


def _is_unknown(parts: tuple[str, ...], record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in parts)
