"""Writing runs: one Parquet file a run, never overwritten, never visible half written.

A file is written under a hidden temporary name in the same folder, flushed to disk and then linked to its own
name, which fails if that name is taken. So readers see only whole files, and any number of processes write at once.
The configuration (JSON) appears before the rows, so every Parquet file has one beside it, with the file's digest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.errors import ArchbenchWarning, StorageError
from archbench.files.parquet import sealed_parquet
from archbench.files.seal import sealed
from archbench.files.writing import flush, temporary_beside, write_bytes
from archbench.results.metrics import UNITS
from archbench.results.reading import DIGESTS, digest, run_failed
from archbench.results.schema import COLUMNS, OK, SCHEMA_VERSION, Column, arrow_schema, did_you_mean_column

if TYPE_CHECKING:
    import pyarrow as pa

RUN_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")
"""What :func:`new_run_id` makes."""

_TIME_FORMAT = "%Y%m%dT%H%M%S"
_SHOWN = "%Y-%m-%d %H:%M:%S UTC"


STEP_BACK = timedelta(minutes=1)
"""How far a clock is set back when it is corrected over the network; its drift in a day is a few seconds."""


def new_run_id(
    out: str | Path | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    *,
    digits: str | None = None,
) -> str:
    """A new run's id, such as ``20261123T004455-3f9a2c``: the UTC time, so that ids sort by age, and random digits.

    Args:
        out: the results folder. If its newest run is of the same second, or the clock has been set back since then by
            no more than :data:`STEP_BACK`, the new run gets the second after it, so that their order is that of age.
        now: the clock.
        digits: six hex digits that another process looks for; None for random ones.
    """
    time = now().replace(microsecond=0)
    newest = max((found for name in _run_names(out) if (found := _time_of(name)) is not None), default=None)
    if newest is not None and time <= newest <= time + STEP_BACK:
        time = newest + timedelta(seconds=1)
    elif newest is not None and newest > time:
        ahead = f"{out}: its newest run began at {newest:{_SHOWN}}, and by this machine's clock it is {time:{_SHOWN}}"
        step = "Correct the clock; until then name the new run by its id, because the last one is the newest by time"
        warnings.warn(f"{ahead}. {step}.", ArchbenchWarning, stacklevel=2)
    return f"{time.strftime(_TIME_FORMAT)}-{digits or secrets.token_hex(3)}"


def _run_names(out: str | Path | None) -> list[str]:
    with contextlib.suppress(OSError):  # the folder is not there yet
        return [] if out is None else os.listdir(out)
    return []


def _time_of(name: str) -> datetime | None:
    with contextlib.suppress(StorageError):
        return run_time(name)
    return None


def run_time(run_id: str) -> datetime:
    """When the run started, from its id.

    Raises:
        StorageError: the id was not made by :func:`new_run_id`.
    """
    try:
        return datetime.strptime(run_id.split("-")[0], _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise StorageError(
            f"run id {run_id!r}", "it does not start with a time", "Use new_run_id() to make one"
        ) from None


def prepare_folder(out: str | Path) -> Path:
    """The folder, created if missing; files can be written to it, which is tested before the work begins.

    Raises:
        StorageError: it cannot be created or written.
    """
    folder = Path(out)
    trial = temporary_beside(folder / "trial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(trial, "xb") as file:
            file.write(b"archbench")
        trial.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)
        reason = "it is a file" if folder.is_file() else error.strerror or error
        if folder.is_symlink() and not folder.exists():
            reason = f"it is a link to {os.readlink(folder)}, which does not exist"
        cause = f"results cannot be written there ({reason})"
        raise StorageError(str(folder), cause, "Choose a folder that can be written with --out") from error
    return folder


@contextlib.contextmanager
def prepared_folder(out: str | Path) -> Iterator[None]:
    """Within this context there is the folder, as :func:`prepare_folder` makes it.

    An error that ends the context takes what was made along, unless something lies in it by then.

    Raises:
        StorageError: as :func:`prepare_folder`.
    """
    folder = Path(out)
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        prepare_folder(folder)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: neither are its parents
            for place in new:
                place.rmdir()
        raise


def write_run(
    out: str | Path,
    run_id: str,
    rows: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    common: Mapping[str, Any] | None = None,
    *,
    replace: bool = False,
    extend: bool = False,
) -> Path:
    """Write one run's rows and configuration; both appear whole or not at all.

    Args:
        out: the results folder; created if missing.
        run_id: from :func:`new_run_id`; also sets ``run_id`` and ``time_utc`` of every row.
        rows: one mapping a measurement, column name -> value. A missing nullable column is null, a missing
            ``repeat`` 0, a missing ``status`` ok, and a missing ``unit`` the one of
            :data:`archbench.results.metrics.METRICS`.
        config: the frozen RunConfig, as JSON-ready values. The file has the digest of the rows too
            (:data:`archbench.results.reading.DIGESTS`).
        common: columns that are the same in every row; a row's own value wins.
        replace: atomically replace this run's file if it says that the run failed (:func:`run_failed`).
        extend: atomically replace it, whatever it says: the rows are those in it and more.

    Returns:
        Path of the Parquet file, ``out/run_id.parquet``; the configuration is ``out/run_id.json``.

    Raises:
        StorageError: a row does not fit the schema (row and column are named), the run was already written, or
            the folder cannot be written. Nothing else is overwritten, and no partial file appears.
    """
    folder = Path(out)
    final = folder / f"{run_id}.parquet"
    table = run_table(run_id, rows, common or {})
    content = sealed_parquet(table)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            replaces = final.exists() and (extend or (replace and run_failed(final)))
            if final.exists() and not replaces:
                raise FileExistsError(errno.EEXIST, "File exists", str(final))
            # A writer that is killed between the two leaves the replaced file, which its JSON must know too.
            known = [content, final.read_bytes()] if replaces else [content]
            # A JSON file without its Parquet file is what a killed writer leaves; it may be replaced.
            _publish(folder / f"{run_id}.json", described(config, *known).encode(), replace=True)
            _publish(final, content, replace=replaces)
    except FileExistsError as error:
        raise StorageError(str(final), "this run was already written", "Give the new run an id of its own") from error
    except OSError as error:
        raise StorageError(
            str(folder), f"run {run_id} cannot be written ({error.strerror or error})", _rescue(folder, run_id)
        ) from error
    return final


def described(config: Mapping[str, Any], *results: bytes) -> str:
    """The text of the JSON beside a run: its configuration, with the digests of the contents of its Parquet file."""
    return sealed({**config, DIGESTS: [digest(content) for content in results]})


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One writer at a time, so that the JSON beside a run is its own; death releases the folder."""
    if sys.platform == "win32":
        import filelock

        with filelock.FileLock(folder / ".writing"):  # which goes when it is released
            yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # file systems without locks: run ids are random, so two never meet
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _rescue(folder: Path, run_id: str) -> str:
    """The next step if the rows cannot be stored, and where they are kept."""
    kept = sorted((folder / run_id).glob("rows-*.jsonl")) if (folder / run_id).is_dir() else []
    where = f"; the rows measured are kept in {folder / run_id}/rows-*.jsonl" if kept else ""
    return f"Free some space, or choose another folder with --out{where}"


def _publish(path: Path, content: bytes, *, replace: bool) -> None:
    """Make ``path`` appear with all of ``content``, durably.

    Without ``replace`` an existing file is never touched. That is atomic where hard links exist; on a file system
    without them the check and the rename are two steps.
    """
    if replace:
        write_bytes(path, content)
    else:
        temporary = temporary_beside(path)
        write_bytes(temporary, content)
        try:
            _link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    flush(path.parent)  # the new name, too, must survive a power cut


_WITHOUT_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
"""What file systems without hard links answer: Linux, macOS, Windows."""


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, "File exists", str(path)) from error
        os.rename(temporary, path)


def run_table(run_id: str, rows: Sequence[Mapping[str, Any]], common: Mapping[str, Any]) -> pa.Table:
    """The rows as an Arrow table of the exact schema; see :func:`write_run`.

    Raises:
        StorageError: naming row and column.
    """
    import pyarrow as pa

    columns = {column.name: column for column in COLUMNS}
    fixed: dict[str, Any] = {"repeat": 0, "world_size": 1, "status": OK}
    fixed |= {name: _checked(columns, name, value, "the common columns") for name, value in common.items()}
    fixed |= {"run_id": run_id, "time_utc": run_time(run_id), "schema_version": SCHEMA_VERSION}
    values: dict[str, list[Any]] = {name: [fixed.get(name)] * len(rows) for name in columns}
    for number, row in enumerate(rows):
        place = f"row {number} ({row.get('phase')}/{row.get('metric')})"
        for name, value in row.items():
            values[name][number] = _checked(columns, name, value, place)
        known_unit = UNITS.get((values["phase"][number], values["metric"][number]))
        unit = values["unit"][number] = values["unit"][number] or known_unit
        if not unit:
            step = "Give the row a unit (1 for a plain number), or add the metric to archbench/results/metrics.py"
            raise StorageError(f"{place}, column 'unit'", "it has no unit", step)
        if known_unit not in (None, unit):
            raise StorageError(
                f"{place}, column 'unit'", f"{unit!r} instead of {known_unit!r}", "Convert the value to that unit"
            )
    for name, column in columns.items():
        if not column.nullable and None in values[name]:
            number = values[name].index(None)
            place = f"row {number} ({rows[number].get('phase')}/{rows[number].get('metric')})"
            raise StorageError(f"{place}, column {name!r}", "it is missing", f"Set it: {column.description}")
    schema = arrow_schema()
    arrays = [pa.array(values[field.name], type=field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


_ACCEPTED: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int64": (int,),
    "double": (float, int),
    "bool": (bool,),
    "timestamp": (datetime,),
}


def _checked(columns: Mapping[str, Column], name: str, value: Any, place: str) -> Any:
    """``value`` as a plain Python value of the column's type."""
    column = columns.get(name)
    if column is None:
        raise StorageError(f"{place}, column {name!r}", "there is no such column", did_you_mean_column(name))
    plain = value.item() if hasattr(value, "item") else value  # NumPy's and torch's scalars
    if plain is None:
        return None
    is_bool = isinstance(plain, bool)
    if not isinstance(plain, _ACCEPTED[column.type]) or is_bool != (column.type == "bool"):
        cause = f"{value!r} is a {type(value).__name__}, not a {column.type}"
        raise StorageError(f"{place}, column {name!r}", cause, f"It means: {column.description}")
    return plain
