"""Run files: everything a run depends on, in TOML, so that a known result can be had again."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from archbench.errors import UsageError


def read_run_file(path: str) -> dict[str, Any]:
    """Fields of :class:`archbench.RunConfig`, by section, as the file has them; nothing is validated here.

    Raises:
        UsageError: there is no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--file {path}", f"it cannot be read ({error.strerror})", "Check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        step = 'Write it as TOML, for instance: architecture = "gpt2", and below it [training] with steps = 2000'
        raise UsageError(f"--file {path}", f"it is not TOML ({error})", step) from None
