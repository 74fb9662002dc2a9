"""Write the golden files anew: ``python tests/golden/freeze.py [NAME ...]``. Only when a contract is meant to change:
what they hold is on people's disks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from golden.snapshots import HERE, SNAPSHOTS, current


def freeze(names: list[str]) -> None:
    os.chdir(HERE)
    for name in names or SNAPSHOTS:
        (HERE / f"{name}.json").write_text(json.dumps(current(name), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    freeze(sys.argv[1:])
