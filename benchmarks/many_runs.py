"""Time and memory of ``archbench results`` on a folder of many runs.

    python benchmarks/many_runs.py [--runs 1000 10000] [--rounds 5] [--folder DIR]

Each run is the committed reference run (4,743 rows) under a name of its own: 1,000 are 4.7 million rows. The command
runs in a process of its own, the sizes in turns; printed are medians and ranges of its wall time, medians of its CPU
time and of its peak resident memory. The first line is an interpreter that only imports what the command needs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq

REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "20261123T112407-da218d.parquet"
IMPORTS = ("-c", "import archbench.cli.results, pandas, pyarrow.parquet")
"""Interpreter arguments."""


def write_runs(folder: Path, count: int) -> None:
    """``count`` copies of the reference run, with run ids and times of their own."""
    table = pq.read_table(REFERENCE)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(count):
        at = start + timedelta(minutes=number)
        run_id = f"{at:%Y%m%dT%H%M%S}-{number:06x}"
        own = table.set_column(0, table.schema.field(0), pa.array([run_id] * len(table)))
        own = own.set_column(1, table.schema.field(1), pa.array([at] * len(table), table.schema.field(1).type))
        pq.write_table(own, folder / f"{run_id}.parquet")


def cost(arguments: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MiB of an interpreter with these arguments.

    Raises:
        SystemExit: it failed.
    """
    begun = time.perf_counter()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, *arguments],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the runs are written, and removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        commands: dict[str, list[str]] = {"python and its imports": [*IMPORTS]}
        for count in options.runs:
            folder = Path(place, str(count))
            folder.mkdir()
            write_runs(folder, count)
            shown = ["-m", "archbench", "results", str(folder)]
            commands[f"{count:,} runs"] = shown
            commands[f"{count:,} runs, --where"] = [*shown, "--where", "phase=quality"]
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for turn in range(options.rounds + 1):
            for name, arguments in commands.items():
                measured = cost(arguments)
                found[name] += [measured] if turn else []  # the first reads the files from the disk
        shutil.rmtree(place, ignore_errors=True)
    for name, samples in found.items():
        wall, cpu, peak = zip(*samples, strict=True)
        spread = f"{min(wall):.2f} to {max(wall):.2f}"
        print(f"{name:24} wall {median(wall):6.2f} s ({spread})  CPU {median(cpu):6.2f} s  {median(peak):5.0f} MiB")


if __name__ == "__main__":
    main()
