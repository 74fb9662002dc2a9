"""Reading a Parquet file whose size in memory is bounded by its size on disk.

Run lengths and dictionaries make a megabyte of Parquet into gigabytes of Arrow. So the footer is looked at first, and
only known columns are read, their texts as dictionaries until it is known how long they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

LIMIT_VARIABLE = "ARCHBENCH_MOST_ROWS"
"""Environment variable: rows of the largest Parquet file that is read, instead of the bounds below."""

MOST_ROWS = 1_000_000
"""Rows of a file whatever its size: a ladder of 120 runs, the largest committed study, has 320,000."""

BYTES_A_ROW = 4
"""On disk, of larger files. An update of a long training has four rows, of 28 bytes and more, since losses differ."""

TEXT_A_ROW = 2048
"""Bytes of all texts of a row, on average; they have about 400. An error in ``status`` may have 15,000."""

_SLACK = 64 << 20
"""Bytes that are read without looking further."""


class TooLargeError(Exception):
    """A file that would be far larger in memory than one that archbench writes; the message says by how much."""


def read_bounded(content: pa.Buffer, columns: Iterable[str] | None = None) -> pa.Table:
    """Those of ``columns``, or all, that are in a Parquet file; page checksums are verified.

    Raises:
        TooLargeError: its rows, its pages or its texts are too many.
        pyarrow.ArrowException, OSError: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(pa.BufferReader(content))
    metadata, schema = opened.metadata, opened.schema_arrow
    names = [name for name in columns if name in schema.names] if columns is not None else schema.names
    types = {name: schema.field(name).type for name in names}
    if nested := [name for name, type in types.items() if pa.types.is_nested(type)]:
        raise TooLargeError(f"its column {nested[0]!r} is nested")
    size, rows = content.size, metadata.num_rows
    if rows > (most := most_rows(size)):
        raise TooLargeError(f"its {rows:,} rows are more than the {most:,} that a file of its size may have")
    stated = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    _check(stated, max(_SLACK, 16 * size))
    texts = [name for name, type in types.items() if pa.types.is_string(type) or pa.types.is_dictionary(type)]
    file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts, page_checksum_verification=True)
    table = file.read(columns=names, use_threads=False)
    _check(sum(_text_bytes(table[name]) for name in texts), max(_SLACK, TEXT_A_ROW * rows))
    fields = [schema.field(name) for name in table.column_names]
    fields = [one.with_type(one.type.value_type) if pa.types.is_dictionary(one.type) else one for one in fields]
    table = table.cast(pa.schema(fields, metadata={**(schema.metadata or {}), **(metadata.metadata or {})}))
    table.validate(full=True)  # texts are UTF-8
    return table


def most_rows(size: int) -> int:
    """Rows that a file of so many bytes may have."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    return int(given) if given.isdecimal() else max(MOST_ROWS, size // BYTES_A_ROW)


def _check(needed: int, most: int) -> None:
    if needed > most and LIMIT_VARIABLE not in os.environ:
        cause = f"it has {needed >> 20:,} MiB in memory, more than the {most >> 20:,} that a file of its size may have"
        raise TooLargeError(cause)


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of the texts when each row has its own."""
    import pyarrow as pa
    import pyarrow.compute as pc

    total = 0
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type) and chunk.type.value_type != pa.null():
            total += pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() or 0
        else:
            total += chunk.nbytes
    return total
