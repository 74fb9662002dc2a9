"""From the rows of a comparison's runs: scores by document, verdicts, and what training took."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from archbench.files.parquet import read_parquet
from archbench.study.compare_plan import ComparePlan
from archbench.study.comparison_outcome import Cell, Model, Spent, Units
from archbench.study.contract import Contender
from archbench.study.learning_rates import Tuning
from archbench.study.outcome import Record
from archbench.study.run_cells import RunCell, Stage, run_folder
from archbench.study.run_study import rows_by_key
from archbench.study.task_accuracy import AccuracyRow, answers_of, judged
from archbench.study.verdicts import QualityRow, Scores, judge

FEWEST_DOCUMENTS = 30
"""With fewer documents their blocks of 512 tokens are resampled instead (a block bootstrap: Künsch 1989)."""


TIMED: tuple[Stage, ...] = ("speed", "cost")
"""Stages whose times are compared."""

MOST_SWEEPS = 100
"""Architectures that were added later number their sweeps from the next multiple on."""


@dataclass(frozen=True)
class Results:
    """The cells of a comparison and the rows of their runs.

    Attributes:
        cells: each with its record.
        frames: cell key -> rows, for every run that did not fail.
    """

    plan: ComparePlan
    folder: Path
    cells: Sequence[tuple[RunCell, Record]]
    frames: Mapping[str, pd.DataFrame]

    @classmethod
    def read(cls, plan: ComparePlan, folder: Path, cells: Sequence[tuple[RunCell, Record]]) -> Results:
        """Read the rows; a StorageError if they cannot be read."""
        return cls(plan, folder, cells, rows_by_key(folder, cells))

    @property
    def finished(self) -> dict[str, pd.DataFrame]:
        """The rows of the runs that finished. Of a diverged run only the loss curve counts."""
        return {cell.key: self.frames[cell.key] for cell, record in self.cells if record.outcome == "ok"}

    @property
    def causes(self) -> dict[str, str]:
        """Cell key -> why its run did not finish."""
        return {record.key: record.cause or "" for _, record in self.cells if record.outcome != "ok"}

    def of(self, stage: Stage) -> list[RunCell]:
        """The cells of a stage."""
        return [cell for cell, _ in self.cells if cell.stage == stage]

    def mixed_machines(self) -> str | None:
        """Why speed is not compared: times that belong together come from several machines; None if they do not."""
        places: dict[tuple[str, int], set[str]] = {}
        for cell, record in self.cells:
            if cell.stage in TIMED and cell.key in self.finished:
                row = self.finished[cell.key].iloc[0]
                turns = (cell.stage, 0 if cell.block is None else cell.block // MOST_SWEEPS)
                places.setdefault(turns, set()).add(f"{record.host or 'the machine of the study'} ({row.device_name})")
        for (stage, _), found in places.items():
            if len(found) > 1:
                return f"the {stage} runs, which are compared, were timed on {' and '.join(sorted(found))}"
        return None

    def machine(self) -> dict[str, Any]:
        """The machine on which the first cell ran."""
        row = next(iter(self.frames.values())).iloc[0]
        names = ("device", "device_name", "torch_version", "python_version", "malloc")
        return {name: None if pd.isna(row[name]) else getattr(row[name], "item", row[name].__str__)() for name in names}

    def quality(self, tunings: Mapping[str, Tuning]) -> tuple[list[QualityRow], Units]:
        """The verdict on each architecture in ``tunings``, and the units that the text was resampled by.

        Raises:
            StorageError: a run's scores cannot be read.
        """
        records: dict[str, list[Record]] = {name: [] for name in tunings}
        for cell, record in self.cells:
            if cell.stage == "seed" and cell.architecture in records:
                records[cell.architecture].append(record)
        finished = {name: [record for record in own if record.outcome == "ok"] for name, own in records.items()}
        scores, units = unit_scores(self.folder, finished)
        counted = []
        for name, own in records.items():
            ended = Counter(record.outcome for record in own)
            flagged = tunings[name].flagged
            counted.append(replace(scores[name], diverged=ended["diverged"], lost=ended["failed"], flagged=flagged))
        first, *others = sorted(counted, key=lambda one: one.architecture != self.plan.baseline)
        order = list(records)
        rows = judge(first, others, margin=self.plan.margin)
        return sorted(rows, key=lambda row: order.index(row.architecture)), units

    def accuracy(self, names: Sequence[str]) -> list[AccuracyRow]:
        """The verdict on each architecture at each task that its fresh seeds were asked.

        Raises:
            StorageError: what a seed answered cannot be read.
        """
        seeds: dict[str, list[Path]] = {name: [] for name in names}
        for cell, record in self.cells:
            if cell.stage == "seed" and record.outcome == "ok" and cell.architecture in seeds:
                seeds[cell.architecture].append(run_folder(self.folder, record))
        return judged({name: answers_of(runs) for name, runs in seeds.items()}, self.plan.baseline)

    def spent(self, name: str) -> Spent:
        """What training took: medians over fresh seeds."""
        values: dict[str, list[float]] = {"training_tokens": [], "training_flops": [], "training_seconds": []}
        finished = self.finished
        for cell in self.of("seed"):
            if cell.architecture == name and cell.key in finished:
                frame = finished[cell.key]
                rows = frame[frame.phase == "train"].drop_duplicates("metric").set_index("metric")
                tokens = float(rows.tokens_seen["training_seconds"])
                values["training_tokens"].append(tokens)
                values["training_flops"].append(tokens * float(rows.value["flops_per_token"]))
                values["training_seconds"].append(float(rows.value["training_seconds"]))
        medians = {key: statistics.median(each) if each else None for key, each in values.items()}
        return Spent(architecture=name, **medians)


def conclusion(plan: ComparePlan, quality: Sequence[QualityRow]) -> str:
    """One sentence for each architecture: its verdict."""
    sentences = []
    for row in quality:
        if row.verdict == "baseline":
            continue
        if row.difference is None or row.combined_low is None or row.combined_high is None:
            sentences.append(f"{row.architecture}: {row.verdict} ({row.reason}).")
            continue
        more = "fewer" if row.difference < 0 else "more"
        change = f"{abs(row.difference):.2%} {more} bits per byte than {plan.baseline}"
        interval = f"95 % interval {row.combined_low:+.2%} to {row.combined_high:+.2%}"
        why = f"; {row.reason}" if row.reason else ""
        seeds = f"; {row.seeds_needed} seeds each should decide it" if row.seeds_needed else ""
        sentences.append(f"{row.architecture}: {row.verdict}, {change} ({interval}{why}{seeds}).")
    return " ".join(sentences)


def model_of(one: Contender) -> Model:
    """A contender as the outcome has it."""
    return Model.of(one, **one.measures)


def cell_of(cell: RunCell, record: Record) -> Cell:
    """A cell as the outcome has it."""
    config = cell.config
    rate = config.training.learning_rate if "train" in config.phases else None
    return Cell.of(cell, seed=config.seed, learning_rate=rate, **record.model_dump())


def unit_scores(folder: Path, finished: Mapping[str, Sequence[Record]]) -> tuple[dict[str, Scores], Units]:
    """Bits per byte and nats of every unit, for each finished seed; and what the units are.

    Units are the non-empty documents of the validation text, or their blocks if there are fewer than
    :data:`FEWEST_DOCUMENTS`.

    Raises:
        StorageError: a run's scores cannot be read.
    """
    documents = {name: [_table(folder, one, "documents") for one in records] for name, records in finished.items()}
    some = next((tables[0] for tables in documents.values() if tables), None)
    filled = np.zeros(0, dtype=bool) if some is None else (some["bytes"] > 0).to_numpy()
    by_document = int(filled.sum()) >= FEWEST_DOCUMENTS
    scores, count = {}, 0
    for name, records in finished.items():
        if by_document:
            units = [table["nats"].to_numpy()[filled] for table in documents[name]]
        else:
            units = [_table(folder, one, "blocks")["nats"].to_numpy() for one in records]
        count = max(count, *(len(one) for one in units), 0)
        nats: npt.NDArray[np.float64] = np.stack(units) if units else np.zeros((0, count))
        bits = [_bits(table) for table in documents[name]]
        scores[name] = Scores(name, bits, nats, np.ones(nats.shape[1]))
    kind: Literal["documents", "blocks"] = "documents" if by_document else "blocks"
    return scores, Units(kind=kind, count=count, empty=int((~filled).sum()))


def _bits(documents: pd.DataFrame) -> float:
    return float(documents["nats"].sum() / np.log(2) / documents["bytes"].sum())


def _table(folder: Path, record: Record, name: str) -> pd.DataFrame:
    file = run_folder(folder, record) / f"{name}.parquet"
    step = f"Delete {folder / 'cells' / record.key}.json to measure that cell again"
    frame: pd.DataFrame = read_parquet(file, next_step=step)[0].to_pandas()
    return frame
