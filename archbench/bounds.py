"""Bounds of numbers that a configuration may hold: far beyond every machine, and small enough to count with."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

LARGEST = 2**31 - 1
"""Of sizes of a model and a text: no machine holds more, and kernels count in 32 bits."""

DEEPEST = 10_000
"""Most ``n_layer``; the deepest published models have a thousand."""

MOST_CASES = 10_000
"""Of the kernel benchmark."""

Size = Annotated[int, Field(gt=0, le=LARGEST)]
Sequences = Annotated[int, Field(gt=0, le=2**24)]
Parameters = Annotated[int, Field(gt=0, le=10**13)]
Tokens = Annotated[int, Field(gt=0, le=10**15)]
Updates = Annotated[int, Field(gt=0, le=10**10)]
Repeats = Annotated[int, Field(gt=0, le=10**6)]
Untimed = Annotated[int, Field(ge=0, le=10**6)]
Processes = Annotated[int, Field(gt=0, le=10**5)]
Threads = Annotated[int, Field(gt=0, le=4096)]
Share = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, le=1e36)]
