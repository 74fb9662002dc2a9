"""How the shared decoder takes its steps, and how it took them.

eager    each operation of each token is asked of the device one by one: what the code costs
graph    one replay a token: of a captured CUDA graph, or on a CPU of a recorded list of torch's calls
static   the steps that are replayed, asked one by one: the graph's twin
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from archbench.errors import UnknownNameError, did_you_mean

KINDS = ("eager", "graph", "static")

ambient = "eager"


@dataclass
class Decodings:
    """What ran: each kind, and why the decoder was eager where it was asked for another."""

    kinds: set[str] = field(default_factory=set)
    reasons: set[str] = field(default_factory=set)


_records: list[Decodings] = []


@contextmanager
def decoding(kind: str) -> Iterator[Decodings]:
    """Within this context :func:`archbench.decode_with_cache` takes steps of this kind, where it can.

    Yields what ran: nothing falls back unseen.

    Raises:
        UnknownNameError: there is no such kind.
    """
    global ambient
    if kind not in KINDS:
        raise UnknownNameError(f"decoding {kind!r}", "there is no such kind", did_you_mean(kind, KINDS))
    record = Decodings()
    _records.append(record)
    previous, ambient = ambient, kind
    try:
        yield record
    finally:
        ambient = previous
        _records[:] = [other for other in _records if other is not record]


def record_decoding(kind: str, reason: str | None = None) -> None:
    """Note what runs, and with ``reason`` why it is not what was asked for."""
    for record in _records:
        record.kinds.add(kind)
        if reason is not None:
            record.reasons.add(reason)
    if reason is not None:
        logging.getLogger("archbench").info("decoding is %s, not %s: %s", kind, ambient, reason)
