"""Grids of a test's parameters: every pair of values in each run, every combination among the slow tests.

Nearly every defect shows with one value or a pair of them (Kuhn, Wallace and Gallo 2004, doi:10.1109/TSE.2004.24).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
from allpairspy import AllPairs


def pairwise(**factors: Iterable[Any] | dict[str, Any]) -> pytest.MarkDecorator:
    """Parametrise a test by ``factors``, each the values of one argument; a mapping names its values in the ids."""
    named = {
        factor: values if isinstance(values, dict) else {str(value).replace(" ", ""): value for value in values}
        for factor, values in factors.items()
    }
    assert all(named.values()), "a factor without values"
    names = OrderedDict((factor, list(values)) for factor, values in named.items())
    tried = {tuple(row) for row in AllPairs(names)} if len(names) > 1 else set(product(*names.values()))
    return pytest.mark.parametrize(
        tuple(named),
        [
            pytest.param(
                *(values[name] for values, name in zip(named.values(), row, strict=True)),
                id="-".join(row),
                marks=[] if row in tried else pytest.mark.slow,
            )
            for row in product(*names.values())
        ],
    )
