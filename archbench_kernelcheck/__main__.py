"""``python -m archbench_kernelcheck``: the static check of any Triton kernel."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

from rich.console import Console

from archbench.errors import ArchbenchError, UsageError
from archbench_kernelcheck.checking import Launches, check_on
from archbench_kernelcheck.chips import CHIPS
from archbench_kernelcheck.figures import violations
from archbench_kernelcheck.tables import rows, table

PIPE_WIDTH = 200


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m archbench_kernelcheck", description=__doc__)
    parser.add_argument("file", type=Path, help="defines launches(chip: str) -> list[Launch]")
    parser.add_argument("--chip", action="append", metavar="NAME", help=f"one of {', '.join(CHIPS)}; default: all")
    parser.add_argument("--only", default="", help="only launches whose name contains this")
    parser.add_argument("--workers", type=int, help="processes at once; default: one per usable CPU")
    parser.add_argument("--json", action="store_true", help="tidy rows as JSON lines")
    parser.add_argument("--sass", type=Path, metavar="FOLDER", help="write the machine code of every launch there")
    options = parser.parse_args()

    def load() -> Launches:
        every = _launches_of(options.file)
        return lambda chip: [launch for launch in every(chip) if options.only in launch.name]

    try:
        if options.sass is not None:
            options.sass.mkdir(parents=True, exist_ok=True)
        results = check_on(options.chip or [], load, workers=options.workers, code=options.sass)
    except ArchbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        for row in rows(results):
            print(json.dumps(row))
    else:
        Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False).print(table(results))
    return int(any(violations(result) for result in results))


def _launches_of(path: Path) -> Launches:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(str(path), "is not a Python file", "Name a file that defines launches(chip)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    if not hasattr(module, "launches"):
        raise UsageError(str(path), "defines no launches(chip: str)", "Define it; it returns a list of Launch")
    launches: Launches = module.launches
    return launches


if __name__ == "__main__":
    sys.exit(main())
