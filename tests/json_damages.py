"""Damages to JSON files that leave them JSON: what a faulty program, an editor or an attacker writes."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from archbench.files.seal import is_sealed, sealed, sealed_lines, unsealed


def _deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**30, 2**63, "", "../../etc", "\x1b[31mred", "x" * 100_000,
    [], {}, [1] * 10_000, _deep(60), _deep(300), {"deep": _deep(40)}, [None], "1",
)  # fmt: skip
"""What may come to stand in a value's place."""


def mutated(content: bytes, draw: random.Random, *, reseal: bool) -> bytes:
    """The JSON file, or file of JSON lines, with one value replaced, removed or added.

    Args:
        reseal: give the result a seal of its own, as one who writes such a file on purpose would.
    """
    text = content.decode()
    try:
        whole = json.loads(text)
    except ValueError:
        whole = [json.loads(line) for line in text.splitlines()]
        return _lines(whole, draw, reseal=reseal).encode()
    plain = unsealed(whole) if is_sealed(whole) else whole
    seal = is_sealed(whole) and reseal
    changed = _changed(plain if seal else whole, draw)
    return (sealed(changed) if seal and isinstance(changed, dict) else json.dumps(changed)).encode()


def _lines(rows: list[Any], draw: random.Random, *, reseal: bool) -> str:
    seal = is_sealed(rows) and reseal
    plain = unsealed(rows) if seal else rows
    if not plain:
        return ""
    number = draw.randrange(len(plain))
    plain[number] = _changed(plain[number], draw)
    if seal and isinstance(plain[number], dict):
        return sealed_lines(plain)
    return "".join(json.dumps(row) + "\n" for row in plain)


def _changed(content: Any, draw: random.Random) -> Any:
    content = copy.deepcopy(content)
    place, key = None, None
    here = content
    while isinstance(here, dict | list) and here and (place is None or draw.random() < 0.75):
        place, key = here, draw.choice(list(here) if isinstance(here, dict) else range(len(here)))
        here = here[key]
    if place is None:
        return draw.choice(VALUES)
    what = draw.random()
    if what < 0.15:
        del place[key]
    elif what < 0.25 and isinstance(place, dict):
        place[f"{key}_more"] = draw.choice(VALUES)
    elif what < 0.3 and isinstance(place, list):
        place.append(copy.deepcopy(here))
    elif what < 0.7 and isinstance(here, int) and not isinstance(here, bool):
        place[key] = draw.choice((-here, here + 1, here * 10, 0, 2**40, str(here)))
    elif what < 0.7 and isinstance(here, float):
        place[key] = draw.choice((-here, here * 1e12, here * 1e-12, 0.0, 1e308, float("nan"), float("inf")))
    elif what < 0.7 and isinstance(here, str):
        place[key] = draw.choice((here[:-1], here + here, "nobody", "", "../" + here, "\x1b[31m" + here))
    else:
        place[key] = draw.choice(VALUES)
    return content
