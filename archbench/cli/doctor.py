"""``archbench doctor``: what this machine is, what it can reach at best, and how much its clock wavers."""

from __future__ import annotations

from archbench.cli.options import Json, Plugins


def doctor(plugin: Plugins = None, json: Json = False) -> None:
    """Examine this machine: environment, measured peaks, noise floor, plugins and optional extras."""
