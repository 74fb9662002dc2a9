"""What a launcher costs a study, per cell: the same cells through ``local`` and another launcher, in turns.

    python benchmarks/launch_overhead.py [--launcher ray] [--launcher-set NAME=VALUE] [--cells 40] [--workers 2]
        [--rounds 5] [--train]

The dispatcher is the real one, with its claims and records in a folder. A cell is a run that is finished and lacks only
its record, as after a kill at the last moment: it takes next to nothing, so what remains is the launcher's. With
``--train`` each cell is trained instead, for a few updates. First each worker measures one cell, so that its process is
there; that is the start, with the connection. Then, over the other cells:

- per cell: seconds until all were measured · workers / cells;
- beyond its run: the same less the seconds within the run, as its record has them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from archbench.config import RunConfig
from archbench.data.corpora import load_corpus
from archbench.launch.choice import LOCAL, Choice
from archbench.results.claims import Claims, Owner
from archbench.study.dispatch import Dispatch, Unit
from archbench.study.outcome import Record
from archbench.study.run_cells import RunCell


def units(text: Path, first: int, count: int) -> list[Unit]:
    """One for each seed: one layer of gpt1, a few updates, one scoring."""
    config = RunConfig(
        architecture="gpt1",
        profile="smoke",
        overrides={"n_layer": 1, "context_length": 32},
        phases=("train", "quality"),
        checked=False,
        data={"corpus": str(text), "tokenizer": "byte"},
        training={"steps": 4, "batch_size": 4, "checkpoint_every": None},
        threads=1,
    )
    runs = [config.override(seed=seed) for seed in range(first, first + count)]
    return [Unit([RunCell("seed", run, f"{run.seed:016x}", 32)]) for run in runs]


def measured(
    launcher: Choice, workers: int, first: Sequence[Unit], others: Sequence[Unit], finished: Path | None
) -> tuple[float, float, float]:
    """Seconds of the start, per cell, and per cell beyond its run.

    Args:
        finished: folder of a run that every cell has already; None to train each.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for unit in [*first, *others] if finished is not None else []:
            shutil.copytree(finished, folder / "runs" / unit.key)
        begin = time.monotonic()
        with launcher.launcher(folder, workers) as entered:
            dispatch = Dispatch(entered, Claims(folder, Owner.this_process(launcher.name)), folder, Record, ())
            list(dispatch.measured(first, None, lambda cell: None))
            start = time.monotonic() - begin
            begin = time.monotonic()
            records = [record for _, record in dispatch.measured(others, None, lambda cell: None)]
            took = (time.monotonic() - begin) * workers / len(others)
        assert [record.outcome for record in records] == ["ok"] * len(others), records
        return start, took, took - sum(record.seconds for record in records) / len(others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", default="ray")
    parser.add_argument("--launcher-set", dest="settings", action="append", default=[])
    parser.add_argument("--cells", type=int, default=40)
    parser.add_argument("--workers", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    settings = [tuple(one.split("=", 1)) for one in options.settings]
    other = Choice(options.launcher, (("max_tasks", str(options.workers)), *settings))
    pair = {"local": LOCAL, options.launcher: other}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in pair}
    with tempfile.TemporaryDirectory() as place:
        text = Path(place) / "text.txt"
        text.write_text(load_corpus("shakespeare").splits["validation"][0].text[:20_000])
        finished = None
        if not options.train:
            (unit,) = units(text, 0, 1)
            assert unit.cells[0].measure(Path(place), ()).outcome == "ok"
            finished = Path(place) / "runs" / unit.key
        for number in range(options.rounds):
            for name in list(pair)[:: 1 if number % 2 == 0 else -1]:
                first, others = units(text, 0, options.workers), units(text, options.workers, options.cells)
                found[name].append(measured(pair[name], options.workers, first, others, finished))
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
