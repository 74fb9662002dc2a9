"""``archbench show``: size, layers and costs of one architecture, without allocating it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archbench.cli.options import Json, Name, Plugins, Preset, Set, assignments, named
from archbench.cli.output import print_json
from archbench.presentation.quantities import count, quantity
from archbench.presentation.tables import Column, Table, table

if TYPE_CHECKING:
    from archbench.config import ModelConfig
    from archbench.plugin.architecture import Architecture


def show(
    architecture: Name = None,
    preset: Preset = "nano",
    set_: Set = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Show an architecture: configuration, parameters, FLOPs, cache bytes and layers. No memory is allocated."""
    from archbench.plugin.description_cache import described_once

    name = named(architecture, "show")
    overrides: dict[str, Any] = {**assignments(set_, "--set")}

    def anew() -> dict[str, Any]:
        from archbench.plugin.registry import load

        loaded = load(name, plugin or ())
        return _facts(loaded, loaded.config(preset, **overrides), preset)

    if ":" in name:  # what a source finds is not decided by the texts of plugins
        facts = anew()
    else:
        facts = described_once(plugin or (), "show", name, preset, repr(sorted(overrides.items())), make=anew)
    (print_json if json else _print_tables)(facts)


def _facts(architecture: Architecture, config: ModelConfig, preset: str) -> dict[str, Any]:
    """Everything shown, as plain values in base units."""
    from archbench.measure.flops import cache_bytes_per_token, count_flops, layer_table
    from archbench.measure.meta_device import meta_device

    with meta_device():
        model = architecture.build(config)
    T = config.context_length
    flops = count_flops(model, 1, T)
    info = architecture.info
    return {
        "name": info.name,
        "summary": info.summary,
        "paper": info.paper,
        "package": architecture.package,
        "version": architecture.version,
        "preset": preset,
        "presets": list(info.presets),
        "config": config.model_dump(mode="json"),
        "meaning": {name: field.description or "" for name, field in type(config).model_fields.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "forward_flops_per_token": flops.forward_per_token,
        "training_flops_per_token": flops.training_per_token,
        **({} if flops.counted_on == "meta" else {"flops_counted_on": flops.counted_on}),
        "cache_bytes_per_token": cache_bytes_per_token(model, 1, T),
        "layers": [
            {
                "path": row.path,
                "type": row.type,
                "parameters": row.parameters,
                "forward_flops_per_token": row.forward_flops / T,
                "output_shape": row.output_shape,
            }
            for row in layer_table(model, 1, T)
        ],
    }


def folded(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Layers with parameters or FLOPs; those that differ only in a number of the path (``blocks.0``) share a row.

    ``parameters`` and ``forward_flops_per_token`` are sums over the ``count`` layers of a row.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for layer in layers:
        if not layer["parameters"] and not layer["forward_flops_per_token"]:
            continue
        path = ".".join("*" if part.isdigit() else part for part in layer["path"].split("."))
        size = (layer["parameters"], layer["forward_flops_per_token"])
        row = rows.setdefault(
            (path, layer["type"], size),
            {**layer, "path": path, "count": 0, "parameters": 0, "forward_flops_per_token": 0},
        )
        row["count"] += 1
        row["parameters"] += size[0]
        row["forward_flops_per_token"] += size[1]
    return list(rows.values())


def _print_tables(facts: dict[str, Any]) -> None:
    from archbench.presentation.terminal import echo, paragraph
    from archbench.presentation.terminal import show as show_table

    paragraph(f"{facts['name']}: {facts['summary']}", style="bold")
    paragraph(f"{facts['paper']}\n{facts['package']} {facts['version']}; presets: {', '.join(facts['presets'])}\n")
    for number, part in enumerate((_fields(facts), _costs(facts), _layers(facts))):
        if number:
            echo()
        show_table(part)


def _fields(facts: dict[str, Any]) -> Table:
    columns = Column(f"preset {facts['preset']}", "name"), Column("value"), Column("meaning", "text")
    rows = ((name, _short(value), facts["meaning"][name]) for name, value in facts["config"].items())
    return table("fields", "", columns, rows)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return f"{len(value)} fields"  # --json has them
    return f"{value:,}" if type(value) is int else str(value)


def _costs(facts: dict[str, Any]) -> Table:
    columns = Column("cost", "name"), Column("value"), Column("", "text")
    cache = facts["cache_bytes_per_token"]
    counted = f", counted on {facts['flops_counted_on']} tensors" if "flops_counted_on" in facts else ""
    context = f"a whole context of {facts['config']['context_length']:,} tokens"
    rows = (
        ("parameters", count(facts["parameters"]), "tied ones once"),
        ("forward", quantity(facts["forward_flops_per_token"], "FLOP/token"), context),
        ("training", quantity(facts["training_flops_per_token"], "FLOP/token"), f"forward and backward{counted}"),
        ("cache", "none" if cache is None else quantity(cache, "B/token"), "a sequence and position"),
    )
    return table("costs", "", columns, rows)


def _layers(facts: dict[str, Any]) -> Table:
    columns = (
        Column("layer", "name"), Column("type", "name", priority=1), Column("output (B, T, ...)", "name", priority=2),
        Column("count"), Column("parameters", show=count), Column("forward FLOP/token", show=count),
    )  # fmt: skip
    rows = (
        (
            row["path"] or "(the model itself)", row["type"], " × ".join(map(str, row["output_shape"] or ())),
            row["count"], row["parameters"], row["forward_flops_per_token"],
        )
        for row in folded(facts["layers"])
    )  # fmt: skip
    return table("layers", "", columns, rows)
