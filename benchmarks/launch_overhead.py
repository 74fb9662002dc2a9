"""What a launcher costs a study, per cell: the same tiny runs through ``local`` and another launcher, in turns.

    python benchmarks/launch_overhead.py [--launcher ray] [--cells 12] [--workers 2] [--rounds 5]

The dispatcher is the real one, with its claims and records in a folder, and a cell is a real run of some seconds: one
layer of gpt1, a few updates, one scoring. First each worker measures one cell, so that its process has started; that is
the start, with the connection. Then, over the other cells:

- per cell: seconds until all were measured · workers / cells;
- beyond its run: the same less the seconds within the run, as its record has them. What else the machine does matters
  less here.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

from archbench.config import RunConfig
from archbench.data.corpora import load_corpus
from archbench.launch.choice import Choice
from archbench.results.claims import Claims, Owner
from archbench.study.dispatch import Dispatch, Unit
from archbench.study.outcome import Record
from archbench.study.run_cells import RunCell


def cells(folder: Path, first: int, count: int) -> list[Unit]:
    """One unit for each seed."""
    text = folder / "text.txt"
    if not text.exists():
        text.write_text(load_corpus("shakespeare").splits["validation"][0].text[:20_000])
    config = RunConfig(
        architecture="gpt1",
        profile="smoke",
        overrides={"n_layer": 1, "context_length": 32},
        phases=("train", "quality"),
        checked=False,
        data={"corpus": str(text), "tokenizer": "byte"},
        training={"steps": 4, "batch_size": 4},
        threads=1,
    )
    runs = [config.override(seed=seed) for seed in range(first, first + count)]
    return [Unit([RunCell("seed", run, f"{run.seed:016x}", 32)]) for run in runs]


def measured(launcher: str, count: int, workers: int) -> tuple[float, float, float]:
    """Seconds of the start, per cell, and per cell beyond its run."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        first, others = cells(folder, 0, workers), cells(folder, workers, count)
        settings = () if launcher == "local" else (("max_tasks", str(workers)),)
        begin = time.monotonic()
        with Choice(launcher, settings).launcher(folder, workers) as entered:
            claims = Claims(folder, Owner.this_process(launcher))
            dispatch = Dispatch(entered, claims, folder, Record, ())
            list(dispatch.measured(first, None, lambda cell: None))
            start = time.monotonic() - begin
            begin = time.monotonic()
            records = [record for _, record in dispatch.measured(others, None, lambda cell: None)]
            took = (time.monotonic() - begin) * workers / count
        assert [record.outcome for record in records] == ["ok"] * count, records
        return start, took, took - sum(record.seconds for record in records) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", default="ray")
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--workers", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pair = ("local", options.launcher)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in pair}
    for number in range(options.rounds):
        for name in pair if number % 2 == 0 else pair[::-1]:
            found[name].append(measured(name, options.cells, options.workers))
            print(f"round {number}, {name}: " + ", ".join(f"{one:.2f}" for one in found[name][-1]), flush=True)
    print(f"\n{options.rounds} rounds of {options.cells} cells on {options.workers} workers: median (least to most), s")
    print("launcher  start                   per cell                beyond its run")
    for name in pair:
        print(f"{name:9s} " + " ".join(f"{spread(list(column)):23s}" for column in zip(*found[name], strict=True)))
    for column, text in ((1, "per cell"), (2, "beyond its run")):
        extra = [other[column] - own[column] for own, other in zip(*found.values(), strict=True)]
        print(f"{options.launcher} costs a cell {spread(extra)} s more than local, {text}, over pairs of a round")


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
