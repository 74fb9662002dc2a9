"""Which library computes each float32 product on this kind of CPU, as runs raced them and kept it in the cache."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import get_args

import torch
from pydantic import BaseModel, ConfigDict

from archbench.data.cache import alone, cache_folder, content_key, write_atomically
from archbench.errors import ArchbenchWarning, StorageError
from archbench.files.loader import read_model
from archbench.files.seal import sealed
from archbench.kernels.product_choice import Case, Library, Race
from archbench.measure.machine import memory_bytes

_FACTS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
"""Lines of /proc/cpuinfo that tell kinds of CPUs apart: under one name, clouds give several."""

SHARE_OF_COPIES = 1 / 4
"""Of a process's memory that packed copies of weights may take."""


def room_for_copies() -> int:
    """Bytes that a run lets packed copies take: it refuses no model for them."""
    return int(SHARE_OF_COPIES * memory_bytes())


class _Kept(BaseModel):
    """The part of a kept file that is read."""

    model_config = ConfigDict(extra="ignore")

    winners: dict[str, Library]


class ProductSpeeds:
    """The winners of this kind of CPU with this torch; a case that has none is raced, once by all processes together.

    Raises:
        StorageError: the file in the cache is damaged.
    """

    def __init__(self) -> None:
        self._facts = {"cpu": _cpu(), "torch": torch.__version__, "build": torch.__config__.show()}
        key = content_key(*self._facts.values(), *get_args(Library))  # with another library all race again
        self._file = cache_folder() / "products" / f"{key}.json"
        self._winners = self._read()

    def __call__(self, case: Case, race: Race) -> Library:
        """The library of products of this case."""
        name = f"{case.direction} rows 2^{case.octave} weight {case.N}x{case.K} threads {case.threads}"
        if name not in self._winners:
            with alone(self._file):
                self._winners = self._read() | self._winners
                if name not in self._winners:
                    self._winners[name] = race()
                    self._keep()
        return self._winners[name]

    def _read(self) -> dict[str, Library]:
        if not self._file.exists():
            return {}
        return read_model(_Kept, self._file, sealing="required", next_step=f"Delete {self._file}").winners

    def _keep(self) -> None:
        text = sealed({**self._facts, "winners": self._winners})
        try:
            write_atomically(self._file, lambda out: out.write(text.encode()))
        except StorageError as error:
            again = "the next run races them again, and may choose otherwise"
            warnings.warn(f"the products' speeds are not kept; {again}: {error}", ArchbenchWarning, stacklevel=2)


def _cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What tells this kind of CPU from others; empty where the system does not say, and products have no choice."""
    try:
        first = cpuinfo.read_text("utf-8").partition("\n\n")[0]
    except OSError:
        return ""
    found = dict(re.findall(r"^(.+?)\s*: (.*)$", first, re.MULTILINE))
    return "; ".join(found.get(name, "") for name in _FACTS)
