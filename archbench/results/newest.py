"""Runs one at a time, the newest first: a folder of any size is shown from bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from archbench.results.filters import Where, conditions, matches, require_known
from archbench.results.reading import as_frame, files_under, read_table
from archbench.results.schema import TRIALS
from archbench.results.store import RUN_ID, run_time

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class NewestRuns:
    """The runs under a path, as :func:`archbench.results.reading.read_results` orders them.

    Files that are named by their run are opened in the order of these names, and no more of them than are asked for.
    Of the others, conditions read only the columns concerned.

    Args:
        path: as for :func:`archbench.results.reading.read_results`.
        where: conditions on rows.
        trials: also the runs by which studies choose learning rates and predict times.

    Attributes:
        hidden: trials and pilots that were left out so far.

    Raises:
        StorageError, UsageError: as :func:`archbench.results.reading.read_results`; a damaged file when it is opened.
    """

    def __init__(self, path: str | Path, where: Where | None = None, *, trials: bool = False) -> None:
        self._place, self._wanted = str(path), conditions(where)
        self._trials = trials or "role" in self._wanted
        self._files = iter(sorted(files_under(path), key=_age, reverse=True))
        self._left: list[tuple[Path, str]] = []  # runs of the file that was looked into last
        self._opened: tuple[Path, pa.Table] | None = None
        self._values: dict[str, dict[object, None]] = {name: {} for name in self._wanted}
        self.hidden = 0

    def __iter__(self) -> Iterator[pd.DataFrame]:
        """The rows of each run, with the columns of a frame of all; continues after the last one that was taken."""
        import pyarrow.compute as pc

        while self._left or self._look_on():
            file, run_id = self._left.pop(0)
            if self._opened is None or self._opened[0] != file:
                self._opened = file, read_table(file)
            table = self._opened[1]
            table = table.filter(pc.equal(table["run_id"], run_id))
            yield as_frame(table.filter(matches(table, self._wanted)) if self._wanted else table)

    def count(self) -> int:
        """Runs that are left: files not opened count as one each where there are no conditions.

        Raises:
            UnknownNameError: no row under the path has a value that is asked for.
        """
        left, self._left = len(self._left), []
        if not self._wanted:
            return left + sum(1 for _ in self._files)
        while self._look_on():
            left, self._left = left + len(self._left), []
        require_known({name: list(values) for name, values in self._values.items()}, self._wanted, self._place)
        return left

    def _look_on(self) -> bool:
        """Look into files until one has a run that is asked for; False if there is none any more."""
        import pyarrow as pa
        import pyarrow.compute as pc

        for file in self._files:
            table = read_table(file, {"run_id", "role", *self._wanted})
            for name, values in self._values.items():
                values.update(dict.fromkeys(table[name].unique().to_pylist()))
            table = table.filter(matches(table, self._wanted)) if self._wanted else table
            found = table["run_id"].unique().to_pylist()
            if not self._trials:
                table = table.filter(pc.invert(pc.is_in(table["role"], value_set=pa.array(TRIALS))))
                shown = table["run_id"].unique().to_pylist()
                self.hidden += len(found) - len(shown)
                found = shown
            self._left = [(file, run_id) for run_id in found]
            if found:
                return True
        return False


def _age(file: Path) -> tuple[datetime, str]:
    """When its newest run began, and that run's id."""
    if RUN_ID.fullmatch(file.stem):
        return run_time(file.stem), file.stem
    table = read_table(file, {"run_id", "time_utc"})
    if not table.num_rows:
        return datetime.min.replace(tzinfo=UTC), ""
    return table["time_utc"][0].as_py(), table["run_id"][0].as_py()
