"""The environment variables of child processes: this process's own, without what plugins have changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_overwritten: dict[str, str | None] = {}
"""Environment variables that plugins have changed in this process: their values before, None where there was none."""

handed_down: dict[str, str] = {}
"""Environment variables for child processes only: what this process tells them."""


@contextmanager
def changes_for_this_process_only() -> Iterator[None]:
    """Child processes do not see the changes to environment variables that are made in this context."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in before.keys() | os.environ.keys():
            if before.get(name) != os.environ.get(name):
                _overwritten.setdefault(name, before.get(name))


def clean_environment() -> dict[str, str]:
    """This process's environment variables without plugins' changes, for child processes."""
    variables = {**os.environ, **_overwritten, **handed_down}
    return {name: value for name, value in variables.items() if value is not None}
