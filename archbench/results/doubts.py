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
    known = quality.dropna(subset=["value"])
    bits_of = known[known.metric == "bits_per_byte"].drop_duplicates("run_id")
    least = known[known.metric != "bits_per_byte"].sort_values("value", kind="stable").drop_duplicates("run_id")
    both = bits_of.merge(least, on="run_id", suffixes=("", "_floor"))
    low = both[both.value < FAR_BELOW * both.value_floor]
    columns = (low[name].to_list() for name in ("architecture", "value", "value_floor", "metric_floor"))
    for who, least_bits, least_floor, metric in zip(*columns, strict=True):
        found_here = (float(least_bits), float(least_floor), _COMPRESSORS[metric])
        lowest[who] = min(lowest.get(who, found_here), found_here)
    for name, (bits, floor, compressor) in lowest.items():
        found.append(
            f"Not to be believed unexplained: {name} needs {bits:.3f} bits per byte, less than a quarter of what the "
            f"best compressor of the same text needs ({compressor}, {floor:.3f}). It has read this text before, or "
            "sees what it has to predict."
        )
    refused = rows[(rows.metric == "audit_passed") & (rows.value == 0)]
    for (whose, phase), _ in refused.groupby(["architecture", "phase"], sort=False):
        found.append(
            f"Not to be believed: the audit of {whose}'s phase {phase} failed (--unchecked); its audit rows say by how "
            "much (docs/reference/metrics.md)."
        )
    return found
