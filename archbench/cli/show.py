"""``archbench show``: one architecture's size, layers and costs, without allocating it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archbench.cli.options import Json, Name, Plugins, Preset, Set, assignments, named

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
    """Show an architecture: configuration, parameters, FLOPs, cache bytes and layers, all on the meta device."""
    from archbench.plugin.registry import load

    loaded = load(named(architecture, "show"), plugin or ())
    overrides: dict[str, Any] = {**assignments(set_, "--set")}
    config = loaded.config(preset, **overrides)
    facts = _facts(loaded, config, preset)
    (_print_json if json else _print_tables)(facts)


def _facts(architecture: Architecture, config: ModelConfig, preset: str) -> dict[str, Any]:
    """Everything shown, as plain values in base units."""
    import torch

    from archbench.measure.flops import cache_bytes_per_token, count_flops, layer_table

    with torch.device("meta"):
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
    """Layers that do something; those that differ only in a number of their path (``blocks.0``, ``blocks.1``) as one.

    ``parameters`` and ``forward_flops_per_token`` are sums over the ``count`` layers of a row, so they still add up.
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


def _print_json(facts: dict[str, Any]) -> None:
    from archbench.cli.output import print_json

    print_json(facts)


def _print_tables(facts: dict[str, Any]) -> None:
    from archbench.cli.output import console, table
    from archbench.presentation.quantities import quantity

    out = console()
    out.print(f"{facts['name']}: {facts['summary']}", style="bold")
    out.print(f"{facts['paper']}\n{facts['package']} {facts['version']}; presets: {', '.join(facts['presets'])}\n")

    fields = table(f"preset {facts['preset']}", "value", "meaning", right=("value",))
    for name, value in facts["config"].items():
        fields.add_row(
            name,
            f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value),
            facts["meaning"][name],
        )
    out.print(fields)

    T = facts["config"]["context_length"]
    costs = table("cost", "value", "", right=("value",))
    costs.add_row("parameters", f"{facts['parameters']:,}", "tied ones once")
    costs.add_row(
        "forward", quantity(facts["forward_flops_per_token"], "FLOP/token"), f"a whole context of {T:,} tokens"
    )
    costs.add_row("training", quantity(facts["training_flops_per_token"], "FLOP/token"), "forward and backward")
    cache = facts["cache_bytes_per_token"]
    costs.add_row("cache", "none" if cache is None else quantity(cache, "B/token"), "a sequence and position")
    out.print()
    out.print(costs)

    numbers = ("count", "parameters", "forward FLOP/token")
    layers = table("layer", "type", "output (B, T, ...)", *numbers, right=numbers)
    for row in folded(facts["layers"]):
        shape = "" if row["output_shape"] is None else " × ".join(map(str, row["output_shape"]))
        path = row["path"] or "(the model itself)"
        layers.add_row(
            path,
            row["type"],
            shape,
            str(row["count"]),
            f"{row['parameters']:,}",
            f"{row['forward_flops_per_token']:,.0f}",
        )
    out.print()
    out.print(layers)
