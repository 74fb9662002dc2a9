"""A GGUF file whose lengths, offsets or types lie is refused at once, in little memory, with the file's name."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest

from archbench.data.gguf import read_gguf
from archbench.data.gguf_header import parsed
from archbench.errors import CheckpointError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(
    name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, dimensions: int | None = None
) -> bytes:
    counted = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", counted, *shape, kind, offset)


def file(*, keys: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), n_keys: int | None = None,
         n_tensors: int | None = None, version: int = 3, data: int = 64) -> bytes:  # fmt: skip
    counts = struct.pack(
        "<QQ", len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    )
    head = b"GGUF" + struct.pack("<I", version) + counts + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


HUGE = 2**60
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends within"),
    "only magic": (b"GGUF", "ends within its header"),
    "version": (file(version=9), "of version 9"),
    "4e9 tensors": (file(n_tensors=4_000_000_000), "0 dimensions"),
    "2^63 keys": (file(n_keys=2**63), "ends within|twice"),
    "a name of 2^60 bytes": (file(keys=(struct.pack("<Q", HUGE) + b"x",)), "ends within its header"),
    "a text of 2^60 bytes": (file(keys=(key("a", 8, struct.pack("<Q", HUGE)),)), "ends within its header"),
    "an array of 2^60 bytes": (file(keys=(key("a", 9, struct.pack("<IQ", 0, HUGE)),)), "ends within its header"),
    "an array of 2^63 texts": (file(keys=(key("a", 9, struct.pack("<IQ", 8, 2**63)),)), "ends within its header"),
    "an array of arrays": (file(keys=(key("a", 9, struct.pack("<IQ", 9, 2**40)),)), "type 9"),
    "an unknown type of value": (file(keys=(key("a", 77, b""),)), "type 77"),
    "a name that is no text": (file(keys=(struct.pack("<Q", 2) + b"\xff\xfe" + bytes(8),)), "UTF-8"),
    "a key twice": (file(keys=(key("a", 0, b"1"), key("a", 0, b"2"))), "'a' is there twice"),
    "a tensor twice": (file(tensors=(tensor("t"), tensor("t", offset=32))), "'t' is there twice"),
    "tensors on each other": (file(tensors=(tensor("t"), tensor("u", offset=8))), "'u' lies on 't'"),
    "a tensor of 2^60 numbers": (file(tensors=(tensor("t", (HUGE,)),)), "ends at byte"),
    "a tensor of 2^240 numbers": (file(tensors=(tensor("t", (HUGE,) * 4),)), "ends at byte"),
    "an offset of 2^63": (file(tensors=(tensor("t", offset=2**63),)), "ends at byte"),
    "no numbers": (file(tensors=(tensor("t", (4, 0)),)), "shape"),
    "4e9 dimensions": (file(tensors=(tensor("t", dimensions=4_000_000_000),)), "dimensions"),
    "an unknown type of tensor": (file(tensors=(tensor("t", kind=4_000_000_000),)), "type 4000000000"),
    "half a block": (file(tensors=(tensor("t", (31,), kind=8),)), "blocks of 32"),
    "an alignment of 0": (file(keys=(key("general.alignment", 4, struct.pack("<I", 0)),)), "alignment"),
    "an alignment that is a text": (file(keys=(key("general.alignment", 8, text("x")),)), "alignment"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_lie_in_the_header_is_refused_in_little_memory(case: str, tmp_path: Path) -> None:
    content, cause = HOSTILE[case]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=cause) as caught:
        read_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in caught.value.culprit
    assert peak < 80 << 20  # a buffer as large as the largest header


def test_what_is_right_is_read() -> None:
    content = file(keys=(key("a", 9, struct.pack("<IQ3h", 3, 3, 1, -2, 3)),), tensors=(tensor("t", (2, 8)),))
    metadata, tensors = parsed(content, len(content), {0: (1, 4)})
    assert metadata == {"a": [1, -2, 3]}
    assert (tensors["t"].shape, tensors["t"].n_bytes) == ((8, 2), 64)
