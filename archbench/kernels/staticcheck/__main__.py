"""``python -m archbench.kernels.staticcheck``: the static check of any Triton kernel."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from rich.console import Console

from archbench.errors import ArchbenchError, UsageError
from archbench.kernels.staticcheck.checking import check
from archbench.kernels.staticcheck.chips import CHIPS, chip_named
from archbench.kernels.staticcheck.compilation import pretended
from archbench.kernels.staticcheck.figures import violations
from archbench.kernels.staticcheck.table import rows, table

PIPE_WIDTH = 200


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m archbench.kernels.staticcheck", description=__doc__)
    parser.add_argument("file", type=Path, help="defines launches(chip: str) -> list[Launch]")
    parser.add_argument("--chip", action="append", metavar="NAME", help=f"one of {', '.join(CHIPS)}; default: all")
    parser.add_argument("--only", default="", help="only launches whose name contains this")
    parser.add_argument("--workers", type=int, help="processes at once; default: one per usable CPU")
    parser.add_argument("--json", action="store_true", help="tidy rows as JSON lines")
    parser.add_argument("--sass", type=Path, metavar="FOLDER", help="write the machine code of every launch there")
    options = parser.parse_args()
    try:
        chips = [chip_named(name) for name in options.chip or CHIPS]
        module = None
        jobs = []
        for chip in chips:
            with pretended(chip):
                module = module or _loaded(options.file)
                jobs += [(chip, launch) for launch in module.launches(chip.name) if options.only in launch.name]
        if options.sass is not None:
            options.sass.mkdir(parents=True, exist_ok=True)
        results = check(jobs, workers=options.workers, code=options.sass)
    except ArchbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        for row in rows(results):
            print(json.dumps(row))
    else:
        Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False).print(table(results))
    return int(any(violations(result) for result in results))


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(str(path), "is no Python file", "Name a file that defines launches(chip)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    if not hasattr(module, "launches"):
        raise UsageError(str(path), "defines no launches(chip: str)", "Define it; it returns a list of Launch")
    return module


if __name__ == "__main__":
    sys.exit(main())
