"""The parts of reference pages that are made from the code when the site is built."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from archbench.cli.app import app
from archbench.config import DataConfig, QualityConfig, RunConfig, SpeedConfig, TrainingConfig
from archbench.profiles import PROFILES

SECTIONS: dict[str, type[BaseModel]] = {
    "": RunConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "quality": QualityConfig,
    "speed": SpeedConfig,
}


def command_line() -> str:
    """Every command with its arguments and options, from Typer."""
    lines: list[str] = []
    for name, command in typer.main.get_command(app).commands.items():
        whole = command.make_context(name, [], resilient_parsing=True).command
        lines += [f"## archbench {name}", "", command.help, "", "| option | meaning |", "| --- | --- |"]
        for parameter in whole.params:
            names = [*parameter.opts, *parameter.secondary_opts]
            shown = ", ".join(f"`{name if name.startswith('-') else name.upper()}`" for name in names)
            lines.append(f"| {shown} | {_cell(parameter.help or '')} |")
        lines.append("")
    return "\n".join(lines)


def configuration() -> str:
    """The fields of a run's configuration, and what each profile sets."""
    lines: list[str] = []
    for section, kind in SECTIONS.items():
        head = "| field | default | range | meaning |"
        lines += [f"## {section or 'The run'}", "", head, "| --- | --- | --- | --- |"]
        for name, field in kind.model_fields.items():
            if name not in SECTIONS:
                default = _shown(field.get_default(call_default_factory=True))
                default = "the profile's" if _of_profile(section, name) else default
                path = f"{section}.{name}" if section else name
                lines.append(f"| `{path}` | {default} | {_range(kind, name)} | {_cell(field.description or '')} |")
        lines.append("")
    lines += ["## Profiles", "", f"| field | {' | '.join(PROFILES)} |", "| --- |" + " --- |" * len(PROFILES)]
    flat = {name: _flat(profile) for name, profile in PROFILES.items()}
    for field in dict.fromkeys(field for profile in flat.values() for field in profile):
        values = [_shown(profile[field]) if field in profile else "" for profile in flat.values()]
        lines.append(f"| `{field}` | {' | '.join(values)} |")
    return "\n".join(lines)


def schemas() -> str:
    """The fields of each outcome's file, from the committed JSON Schemas, which a test holds to the code."""
    lines: list[str] = []
    for path in sorted((Path(__file__).parents[1] / "schema").glob("*.json")):
        schema = json.loads(path.read_text("utf-8"))
        lines += [f"## {path.stem}.json", "", " ".join(schema.get("description", "").split()), ""]
        lines += [f"The whole schema: [schema/{path.name}](../schema/{path.name}).", ""]
        lines += ["| field | type | meaning |", "| --- | --- | --- |"]
        for name, field in schema["properties"].items():
            kinds = [schema["$defs"][kind] for kind in re.findall(r"`(\w+)`", _type(field))]
            meant = " ".join(one["description"] for one in (field, *kinds) if "description" in one)
            lines.append(f"| `{name}` | {_type(field)} | {_cell(meant)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    if "$ref" in field:
        return f"`{field['$ref'].rsplit('/', 1)[-1]}`"
    return f"{field.get('type', 'any')}" + (f" of {_type(field['items'])}" if "items" in field else "")


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
    return "required" if repr(value) == "PydanticUndefined" else f"`{json.dumps(value)}`"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


GENERATED: dict[str, Callable[[], str]] = {
    "command line": command_line,
    "configuration": configuration,
    "outcome schemas": schemas,
}
