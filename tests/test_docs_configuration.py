"""docs/reference/configuration.md says what the code says. To rewrite it: python tests/test_docs_configuration.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from archbench.config import DataConfig, QualityConfig, RunConfig, SpeedConfig, TrainingConfig
from archbench.profiles import PROFILES

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"
SECTIONS: dict[str, type[BaseModel]] = {
    "": RunConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "quality": QualityConfig,
    "speed": SpeedConfig,
}
INTRODUCTION = """# Configuration

Everything a run depends on is one frozen `archbench.RunConfig`, stored beside its rows. On the command line the common
fields have options of their own (`archbench run --help`), any other is set with `--config SECTION.FIELD=VALUE`, as in
`--config training.schedule=wsd`; the model's own fields with `--set FIELD=VALUE` (see `archbench show NAME`). Fields
that are not given come from the profile. This page is generated and checked by a test.

Numbers out of their range are refused, as is what cannot be done: a whole number of a model's configuration beyond
2,147,483,647, an `n_layer` beyond 10,000, a model of more than 80,000 parameters and buffers, more than 1,000 runs in
one command. Before anything is measured, the least memory that a run needs (weights, gradients, the optimizer's
moments, tokens; activations are not counted) is compared with what the machine has, within the limits of its control
group and of `ulimit -v`, and a run that cannot fit is refused with both numbers. A run file has at most 1 MiB, and its
dotted keys 64 parts.
"""


def page() -> str:
    lines = [INTRODUCTION]
    for section, kind in SECTIONS.items():
        lines += [
            f"## {section or 'The run'}",
            "",
            "| field | default | range | meaning |",
            "| --- | --- | --- | --- |",
        ]
        for name, field in kind.model_fields.items():
            if name not in SECTIONS:
                default = (
                    "the profile's"
                    if _of_profile(section, name)
                    else _shown(field.get_default(call_default_factory=True))
                )
                path = f"{section}.{name}" if section else name
                lines.append(f"| `{path}` | {default} | {_range(kind, name)} | {field.description or ''} |")
        lines.append("")
    lines += ["## Profiles", "", f"| field | {' | '.join(PROFILES)} |", "| --- |" + " --- |" * len(PROFILES)]
    flat = {name: _flat(profile) for name, profile in PROFILES.items()}
    for field in dict.fromkeys(field for profile in flat.values() for field in profile):
        values = [_shown(profile[field]) if field in profile else "" for profile in flat.values()]
        lines.append(f"| `{field}` | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def _range(kind: type[BaseModel], name: str) -> str:
    """The bounds of a number, or of each number of a list, as its JSON Schema has them."""
    schema = kind.model_json_schema()["properties"][name]
    bounds: dict[str, float] = {}
    kinds = [schema, *schema.get("anyOf", ())]
    for one in [part for whole in kinds for part in (whole, whole.get("items", {}), *whole.get("prefixItems", ()))]:
        bounds |= {key: value for key, value in one.items() if "inimum" in key or "aximum" in key}
    signs = {"exclusiveMinimum": "> ", "minimum": "≥ ", "exclusiveMaximum": "< ", "maximum": "≤ "}
    return ", ".join(f"{sign}{_number(bounds[key])}" for key, sign in signs.items() if key in bounds)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and value < 1e12 else f"{value:g}"


def _of_profile(section: str, name: str) -> bool:
    profiles = [profile.get(section, {}) if section else profile for profile in PROFILES.values()]
    return all(name in profile for profile in profiles)


def _shown(value: Any) -> str:
    if repr(value) == "PydanticUndefined":
        return "required"
    return f"`{json.dumps(value)}`"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def test_the_configuration_page_is_generated_from_the_code() -> None:
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())
