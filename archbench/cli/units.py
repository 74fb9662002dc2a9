"""Whole numbers as they are typed: 25k, 1.5M."""

from __future__ import annotations

import re

from archbench.errors import UsageError


def whole_numbers(text: str, option: str) -> list[int]:
    """``25k,1.5M,300`` as 25000, 1500000 and 300.

    Raises:
        UsageError: it is no list of positive whole numbers.
    """
    numbers = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*)([kMG]?)\s*", part)
        value = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]] if found else 0.0
        if value < 1 or value != round(value):
            cause = f"{part.strip()!r} is no positive whole number"
            raise UsageError(f"{option} {text}", cause, f"Write for instance {option} 25k,50k,1.5M")
        numbers.append(round(value))
    return numbers
