"""Parquet files with a checksum inside, so that no damage to them is read as data.

Two entries of the file's own metadata hold it: ``archbench_seal`` says that there is one, ``archbench_sha256`` is the
SHA-256 of the whole file, taken with 64 zeros in its own place. Pages have checksums too, which other readers check.
Any reader of Parquet reads such a file. Files that archbench wrote before there were seals are read with their
pages' checksums, if they have any.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from archbench.errors import ArchbenchError, StorageError
from archbench.files.loader import read_bytes
from archbench.files.parquet_size import LIMIT_VARIABLE, TooLargeError, read_bounded

if TYPE_CHECKING:
    import pyarrow as pa

LIMIT = 1 << 30
"""Most bytes of a Parquet file."""

_MARK, _SEAL = "archbench_seal", "archbench_sha256"
_PLACE = b"0" * 64
# As Thrift's compact protocol writes the entry: the key, then a field of type string with 64 bytes.
_ENTRY = re.compile(rb"archbench_sha256\x18\x40([0-9a-f]{64})")


def sealed_parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file with its seal."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Made in memory first: tables are small, and every disk error is then an OSError.
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_MARK: "sha256", _SEAL: _PLACE.decode()})
    content: bytes = sink.getvalue().to_pybytes()
    place = _place_of_seal(content)
    assert place is not None, "the writer has put the metadata elsewhere"
    return content[:place] + _digest(content, place).encode() + content[place + len(_PLACE) :]


def is_sealed(content: bytes) -> bool:
    """Whether the file is whole: True; False: it has no seal, so nobody knows.

    Raises:
        ValueError: it is not what was written.
    """
    place = _place_of_seal(content)
    if place is None:
        # Damage may have hit one of the seal's marks; the other tells that there was one.
        if _MARK.encode() in content or _SEAL.encode() in content:
            raise ValueError("its checksum is damaged")
        return False
    if content[place : place + len(_PLACE)] != _digest(content, place).encode():
        raise ValueError("its content and its checksum do not match")
    return True


def read_parquet(
    path: str | Path,
    columns: Iterable[str] | None = None,
    *,
    error: type[ArchbenchError] = StorageError,
    next_step: str,
) -> tuple[pa.Table, bytes]:
    """The table of a Parquet file whose seal, if it has one, is whole; and the file's content.

    Args:
        columns: those to read, as far as there are; None for all.

    Raises:
        ArchbenchError: of the class ``error``: it cannot be read, or is damaged.
    """
    import pyarrow as pa

    content = read_bytes(path, limit=LIMIT, error=error, next_step=next_step)
    try:
        is_sealed(content)
        return read_bounded(pa.py_buffer(content), columns), content
    except TooLargeError as cause:
        step = f"Move it out of the folder, or, if you trust it, set {LIMIT_VARIABLE} to its number of rows"
        raise error(str(path), str(cause), step) from None
    except (pa.ArrowException, OSError, ValueError) as cause:
        reason = " ".join(str(cause).split())
        raise error(str(path), f"it is corrupt or not a Parquet file ({reason})", next_step) from cause


def _place_of_seal(content: bytes) -> int | None:
    start = content.rfind(_SEAL.encode())  # the metadata are the file's end
    found = _ENTRY.match(content, start) if start >= 0 else None
    return None if found is None else found.start(1)


def _digest(content: bytes, place: int) -> str:
    view = memoryview(content)
    digest = hashlib.sha256(view[:place])
    digest.update(_PLACE)
    digest.update(view[place + len(_PLACE) :])
    return digest.hexdigest()
