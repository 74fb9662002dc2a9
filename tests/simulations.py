"""Simulations in tests: how often they are repeated, and how far a share may be off by chance."""

from __future__ import annotations

import math

import pytest


def repeated(few: int, many: int) -> pytest.MarkDecorator:
    """Run the test with ``repeats`` = ``few``, and with ``many`` among the slow tests."""
    return pytest.mark.parametrize("repeats", [few, pytest.param(many, marks=pytest.mark.slow)])


def three_standard_errors(share: float, repeats: int) -> float:
    """Of a share observed in that many independent repeats."""
    return 3 * math.sqrt(share * (1 - share) / repeats)
