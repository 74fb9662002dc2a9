"""Published configurations as a model's own, for the hook ``import_config``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archbench.errors import CheckpointError


def published_fields(
    published: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    model_type: str,
    absent: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fields of a :class:`archbench.ModelConfig`, taken from a transformers ``config.json``.

    Args:
        published: its content.
        names: own field -> published field.
        model_type: what the published field of that name has to be.
        absent: published field -> what its absence (or null) means; every other one in ``names`` has to be there.
        only: published field -> the one value that this architecture has, which its absence means too.

    Raises:
        CheckpointError: another model, a field is missing, or it says what this architecture does not have.
    """
    kind = published.get("model_type")
    if kind != model_type:
        raise unlike("model_type", f"it is {kind!r}, and this architecture's is {model_type!r}")
    for field, wanted in {"quantization_config": None, **(only or {})}.items():
        if (value := published.get(field)) not in (None, wanted):
            has = "no such thing" if wanted is None else f"only {wanted!r}"
            raise unlike(field, f"it is {str(value)[:60]!r}, and this architecture has {has}")
    fields = {}
    for own, field in names.items():
        value = published.get(field)
        if value is None:
            if field not in (absent or {}):
                raise unlike(field, "it is missing")
            value = (absent or {})[field]
        if not isinstance(value, int | float):
            raise unlike(field, f"it is {str(value)[:60]!r}, and has to be a number")
        fields[own] = value
    return fields


def published_rope_theta(published: Mapping[str, Any], *, absent: float = 10_000.0) -> float:
    """The base of plain rotary frequencies: ``rope_parameters`` as transformers 5 writes them, or ``rope_theta``.

    Raises:
        CheckpointError: the frequencies are scaled, differ between layers, or turn some of the channels only.
    """
    for field in ("rope_parameters", "rope_scaling"):
        rope = published.get(field)
        if rope is None:
            continue
        plain = isinstance(rope, Mapping) and not any(isinstance(value, Mapping) for value in rope.values())
        kind = rope.get("rope_type", rope.get("type", "default")) if plain else None
        if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
            raise unlike(field, f"it is {str(rope)[:90]}, and this architecture has plain rotary positions only")
    theta = (published.get("rope_parameters") or {}).get("rope_theta", published.get("rope_theta"))
    return absent if theta is None else float(theta)


def unlike(field: str, cause: str) -> CheckpointError:
    """The error of a configuration that this architecture cannot be given."""
    return CheckpointError(f"published configuration, field {field}", cause, "Use weights of this very architecture")
