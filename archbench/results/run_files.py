"""The files of one run, found by its id, its Parquet file or its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from archbench.errors import UnknownNameError, UsageError, did_you_mean
from archbench.results.schema import OUTCOMES
from archbench.results.store import RUN_ID

_CELLS = "cells"
"""Folder of a study with a record of each cell."""

_ABOVE = 4
"""Folders above a run in which its study may be: STUDY/runs/KEY."""


@dataclass(frozen=True)
class RunFiles:
    """Where a run's files are, or would be; not all need be there.

    Attributes:
        rows: its Parquet file.
        config: the JSON file beside it.
        folder: with what its phases kept, and checkpoints.
    """

    rows: Path
    config: Path
    folder: Path

    @classmethod
    def at(cls, place: Path) -> RunFiles:
        """Those of the run whose folder or Parquet file is at ``place``."""
        folder = place.with_suffix("")
        return cls(folder.with_suffix(".parquet"), folder.with_suffix(".json"), folder)

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def present(self) -> list[Path]:
        """The folder, the rows, and last the configuration: what is left of a removal is always a run."""
        return [path for path in (self.folder, self.rows, self.config) if path.exists()]


def run_files(run: str, results: str | Path = "results") -> RunFiles:
    """The files of ``run``: an id in the folder ``results`` or in a study there, or the path of a file or folder of it.

    Raises:
        UnknownNameError: there is no such run.
        UsageError: the path is that of something else.
    """
    place = Path(run)
    if RUN_ID.fullmatch(run):
        found = next((one for one in all_runs(Path(results)) if one.run_id == run), None)
        if found is None and not RunFiles.at(place).present:
            step = did_you_mean(run, [one.run_id for one in all_runs(Path(results))])
            raise UnknownNameError(f"run {run}", f"there is no such run in {results}", step)
        return found or RunFiles.at(place)
    if not place.exists():
        step = did_you_mean(run, [one.run_id for one in all_runs(Path(results))])
        raise UnknownNameError(f"run {run}", f"there is no such file or folder, and it is no id of {results}", step)
    if not RUN_ID.fullmatch(place.stem):
        raise UsageError(run, "it is no run's file or folder", "Name a run by its id; archbench results lists them")
    return RunFiles.at(place)


def description_beside(run_id: str, places: Iterable[str | Path]) -> Path | None:
    """The JSON file of a run, if it is in one of the folders, or beside one of the files, that were read."""
    folders = (place if place.is_dir() else place.parent for place in map(Path, places))
    return next((file for folder in folders if (file := folder / f"{run_id}.json").is_file()), None)


def all_runs(folder: Path) -> Iterator[RunFiles]:
    """Every run in a folder of results and in the studies below it that has rows."""
    for file in sorted(folder.rglob("*.parquet")):
        if RUN_ID.fullmatch(file.stem):
            yield RunFiles.at(file)


def referring(run: RunFiles) -> Path | None:
    """The outcome, or the record of a cell, of a study above the run that refers to it; None if none does."""
    said = run.run_id.encode()
    for folder in list(run.folder.absolute().parents)[:_ABOVE]:
        for file in [*(folder / name for name in OUTCOMES), *sorted((folder / _CELLS).glob("*.json"))]:
            if file.is_file() and said in file.read_bytes():
                return file
    return None
