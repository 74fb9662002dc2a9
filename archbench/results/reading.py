"""Reading results back, as one pandas data frame, the newest run first."""

from __future__ import annotations

import glob
import hashlib
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from archbench.errors import ArchbenchWarning, StorageError
from archbench.files.loader import read_json
from archbench.files.parquet import read_parquet
from archbench.results.filters import Where, conditions, matches, require_known
from archbench.results.schema import (
    COLUMNS,
    OK,
    OUTCOMES,
    ROLES,
    ROWS,
    SCHEMA_VERSION,
    TRIALS,
    arrow_schema,
    file_version,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

DIGESTS = "parquet"
"""Key in the JSON beside a run: size and SHA-256 of its Parquet file. A second entry is that of the record of a
failure that the file replaces, in case the writer was killed between the two files."""

_NEEDED = ("run_id", "phase", "metric", "status")
"""Columns by which files of older versions are completed."""

_AGAIN = "Move it away and repeat the run; archbench fsck says whether its rows can be recovered"


def read_results(
    path: str | Path | Sequence[str | Path] = "results",
    where: Where | None = None,
    *,
    errors: Literal["raise", "warn"] = "raise",
    trials: bool = False,
    known: bool = False,
) -> pd.DataFrame:
    """The measurements under ``path``: newest run first, rows of a run in the order of measurement.

    Args:
        path: a results folder (files directly in it), one Parquet file, a glob pattern, or several of these.
        where: selects rows: ``{"phase": "decode", "batch_size": [1, 8]}`` or ``["phase=decode", "batch_size=1"]``.
            All columns must match; several values of one column are alternatives; an empty value (None in a
            mapping) means null.
        errors: ``warn`` skips unreadable files, each with an :class:`ArchbenchWarning`.
        trials: also rows of the runs by which a study chooses learning rates and predicts times
            (:data:`archbench.results.schema.TRIALS`). A condition on ``role`` decides by itself.
        known: every value in ``where`` must be some row's: a name that is mistyped is an error, not an empty answer.

    Returns:
        One row per measurement, with the columns of :data:`archbench.results.schema.COLUMNS`; nullable integers and
        booleans are pandas' ``Int64`` and ``boolean``. Empty, with the same columns, if there is no run.

    Raises:
        StorageError: there are no results, or a file is corrupt, not archbench's, or from a newer archbench.
        UsageError: ``where`` has an unknown column, a value of the wrong type, or (``known``) one that no row has.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = conditions(where)
    tables: list[pa.Table] = []
    for file in files_under(path):
        try:
            table = read_table(file)
        except StorageError as error:
            if errors == "raise":
                raise
            warnings.warn(f"{error} Left out.", ArchbenchWarning, stacklevel=2)
            continue
        if table.num_rows:
            tables.append(table)
    tables.sort(key=lambda table: (table["time_utc"][0].as_py(), table["run_id"][0].as_py()), reverse=True)
    table = pa.concat_tables(tables) if tables else arrow_schema().empty_table()
    if known:
        require_known({name: table[name].unique().to_pylist() for name in wanted}, wanted, str(path))
    table = table.filter(matches(table, wanted)) if wanted else table
    if not trials and "role" not in wanted:
        table = table.filter(pc.invert(pc.is_in(table["role"], value_set=pa.array(TRIALS))))
    return as_frame(table)


def as_frame(table: pa.Table) -> pd.DataFrame:
    """The rows as pandas has them: nullable integers and booleans."""
    import pandas as pd
    import pyarrow as pa

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=nullable.get)
    return frame


def run_failed(file: str | Path) -> bool:
    """Whether an error or a signal ended the run in that Parquet file: a row's ``status`` says so.

    Raises:
        StorageError: as :func:`read_results`.
    """
    import pyarrow.compute as pc

    return bool(pc.any(pc.not_equal(read_table(Path(file))["status"], OK)).as_py())


def files_under(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The Parquet files that ``path`` stands for, as in :func:`read_results`, sorted by name.

    Raises:
        StorageError: there are none.
    """
    if not isinstance(path, str | Path):
        return [file for part in path for file in files_under(part)]
    start = Path(path)
    if start.is_dir():
        return _finished(start.iterdir())
    if start.exists():
        return [start]
    pattern = re.sub(r"(?:\*\*/)+", "**/", str(path))  # each ** walks all folders below those of the last one
    if pattern.count("**") > 2:
        raise StorageError(str(path), "it has more than two **", "Name the folders between them")
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]
    if not found:
        raise StorageError(
            str(path), "there are no results", "Run archbench run gpt1, or name another folder, file or pattern"
        )
    return _finished(file for part in found for file in (part.iterdir() if part.is_dir() else [part]))


def _finished(files: Any) -> list[Path]:
    # Hidden files are unfinished: being written, or left by a killed writer.
    return sorted(
        file for file in files if file.suffix == ".parquet" and not file.name.startswith(".") and file.is_file()
    )


def read_table(file: Path, columns: Collection[str] | None = None) -> pa.Table:
    """The rows of one file in the current schema.

    Args:
        columns: those wanted; None for all. They are in the schema's order.

    Raises:
        StorageError: it is damaged, not archbench's, or from a newer archbench.
    """
    wanted = {column.name for column in COLUMNS} if columns is None else {*columns, *_NEEDED}
    table, content = read_parquet(file, [one.name for one in COLUMNS if one.name in wanted], next_step=_AGAIN)
    _check_pair(file, content)
    version = file_version(table.schema)
    if version is None:
        raise StorageError(
            str(file), "archbench did not write it", "Name a results file, or move this one out of the folder"
        )
    if version > SCHEMA_VERSION:
        cause = f"its schema version is {version}, but this archbench reads versions up to {SCHEMA_VERSION}"
        raise StorageError(str(file), cause, "Install the newest archbench")
    return _upgraded(table if version >= 4 else _with_roles(table, file), file, wanted)


def digest(content: bytes) -> dict[str, Any]:
    """What the JSON beside a run says of its Parquet file."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _check_pair(file: Path, content: bytes) -> None:
    """Refuse a file that is whole, but another one than the JSON beside it describes.

    A JSON file that is itself damaged stops nobody: rows have their own checksum. ``archbench fsck`` names it.
    """
    beside = file.with_suffix(".json")
    if file.name == ROWS or not beside.is_file():
        return
    try:
        described = read_json(beside, next_step="", sealing="optional")
    except StorageError:
        return
    known = described.get(DIGESTS) if isinstance(described, dict) else None
    if isinstance(known, list) and digest(content) not in known:
        cause = f"it is not the file that {beside.name} beside it describes"
        raise StorageError(str(file), cause, f"Restore both files, or read it elsewhere, without {beside.name}")


def _with_roles(table: pa.Table, file: Path) -> pa.Table:
    """A table from before version 4 with the columns ``role``, as the study's outcome beside it says, and
    ``tokens_seen`` of quality rows, as the run's training says."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def of_run(values: Mapping[str, Any], type: pa.DataType) -> pa.Array:
        index = pc.index_in(table["run_id"], value_set=pa.array(values, pa.string()))
        return pc.take(pa.array(values.values(), type), index)

    if "role" not in table.column_names:
        table = table.append_column("role", of_run(_roles(file), pa.string()))
    if "tokens_seen" not in table.column_names:
        return table
    trained = table.filter(pc.equal(table["metric"], "training_seconds"))
    seen = dict(zip(trained["run_id"].to_pylist(), trained["tokens_seen"].to_pylist(), strict=True))
    scored = pc.if_else(pc.equal(table["phase"], "quality"), of_run(seen, pa.int64()), None)
    place = table.column_names.index("tokens_seen")
    return table.set_column(place, "tokens_seen", pc.coalesce(table["tokens_seen"], scored))


def _roles(file: Path) -> dict[str, str]:
    """Id of each run of the study that wrote this file -> its role; empty if no study did."""
    roles: dict[str, str] = {}
    outcomes = [file.with_name(name) for name in OUTCOMES if file.name == ROWS and file.with_name(name).is_file()]
    for outcome in outcomes:
        try:
            content = read_json(outcome, next_step=_AGAIN, sealing="optional")
            cells = content.get("cells") or [{**trial, "stage": "point"} for trial in content["trials"]]
            roles |= {str(cell["run_id"]): ROLES[cell["stage"]] for cell in cells if cell["run_id"] is not None}
        except (StorageError, KeyError, TypeError, AttributeError) as error:
            cause = f"{outcome.name} beside it cannot be read ({error}), which says which rows are trials"
            raise StorageError(str(file), cause, "Run the study's command again to write both anew") from error
    if file.name == ROWS and not outcomes:
        unmarked = f"{file}: without the outcome of its study beside it nothing says which of its rows are trials"
        warnings.warn(f"{unmarked}. All are read.", ArchbenchWarning, stacklevel=5)
    return roles


def _upgraded(table: pa.Table, file: Path, wanted: Collection[str]) -> pa.Table:
    """The wanted columns in the current schema: those that older versions lack are null, except ``status``."""
    import pyarrow as pa

    schema = pa.schema([field for field in arrow_schema() if field.name in wanted])
    arrays = []
    for field in schema:
        if field.name == "status" and field.name not in table.column_names:
            arrays.append(pa.repeat(OK, table.num_rows))  # before version 3 failed runs left no file
            continue
        if field.name not in table.column_names:
            if not field.nullable:
                raise StorageError(str(file), f"it lacks the column {field.name!r}", "Move it away and repeat the run")
            arrays.append(pa.nulls(table.num_rows, field.type))
            continue
        try:
            arrays.append(table[field.name].cast(field.type))
        except pa.ArrowException as error:
            cause = f"column {field.name!r} is not a {field.type} ({error})"
            raise StorageError(str(file), cause, "Move it away and repeat the run") from error
    # The column schema_version keeps the version that the file was written in.
    return pa.Table.from_arrays(arrays, schema=schema)
