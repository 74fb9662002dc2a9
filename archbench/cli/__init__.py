"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

from collections.abc import Sequence

from archbench.interruption import ended_at_once


def main(arguments: Sequence[str] | None = None) -> int:
    """:func:`archbench.cli.app.main`; a signal that comes before that is imported ends the process at once."""
    with ended_at_once():
        from archbench.cli.app import main as run

        return run(arguments)


__all__ = ["main"]
