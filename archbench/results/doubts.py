"""Reasons not to believe rows: one judgement for the terminal, tables, pages and outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

FAR_BELOW = 1 / 4
"""Of the best compressor's bits per byte. Published models of billions of parameters reach about this on web text; a
model trained in one run stays far above."""

_COMPRESSORS = {"floor_zlib": "zlib", "floor_bz2": "bz2", "floor_xz": "xz"}


def doubts(rows: pd.DataFrame) -> list[str]:
    """A sentence for each architecture whose bits per byte are far below the best compressor's, or whose audit failed.

    Args:
        rows: tidy rows of any runs, with the columns run_id, architecture, phase, metric and value.
    """
    found = []
    quality = rows[(rows.phase == "quality") & rows.metric.isin(["bits_per_byte", *_COMPRESSORS])]
    lowest: dict[str, tuple[float, float, str]] = {}
    for (name, _), own in quality.groupby(["architecture", "run_id"], sort=False):
        values = own.set_index("metric").value.dropna()
        floors = values[values.index.isin(_COMPRESSORS)]
        bits = values.get("bits_per_byte")
        if bits is None or floors.empty or not bits < FAR_BELOW * floors.min():
            continue
        found_here = (float(bits), float(floors.min()), _COMPRESSORS[str(floors.idxmin())])
        lowest[str(name)] = min(lowest.get(str(name), found_here), found_here)
    for name, (bits, floor, compressor) in lowest.items():
        found.append(
            f"Not to be believed unexplained: {name} needs {bits:.3f} bits per byte, less than a quarter of what the "
            f"best compressor of the same text needs ({compressor}, {floor:.3f}). It has read this text before, or "
            "sees what it has to predict."
        )
    refused = rows[(rows.metric == "audit_passed") & (rows.value == 0)]
    for (name, phase), _ in refused.groupby(["architecture", "phase"], sort=False):
        found.append(
            f"Not to be believed: the audit of {name}'s phase {phase} failed (--unchecked); its audit rows say by how "
            "much (docs/reference/metrics.md)."
        )
    return found
