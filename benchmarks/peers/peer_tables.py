"""Rows of the comparison in a file, and as tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from archbench.presentation.tables import Column, Table, markdown, table

if TYPE_CHECKING:
    from archbench.report.figures import Figure

Row = dict[str, Any]

KEY = (
    "part",
    "architecture",
    "size",
    "job",
    "batch",
    "length",
    "new_tokens",
    "dtype",
    "dropout",
    "compile",
    "threads",
    "peer",
)
COLUMNS = (
    *KEY, "rounds", "median_s", "p10", "p90", "ratio", "ratio_p10", "ratio_p90", "cpu_s", "peak_bytes", "work",
    "state_bytes", "same_loss", "same_tokens", "cached", "decoded_by", "why_not", "products", "peer_version", "torch",
    "archbench", "git_revision", "malloc", "machine",
)  # fmt: skip
"""Base units: seconds, bytes; ``work`` is FLOPs of a training step or prompt, bytes read by a decoding step."""


def read(path: Path) -> list[Row]:
    table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in table.astype({"dropout": float}).astype(object).to_dict("records")  # "0" in CSV
    ]


def replaced(path: Path, new: list[Row]) -> None:
    """Add ``new`` to the file's rows, in the place of those of the same key."""

    def key(row: Row) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in KEY)

    rows = {key(row): row for row in read(path)} if path.exists() else {}
    rows |= {key(row): row for row in new}
    table = pd.DataFrame(rows.values(), columns=list(COLUMNS))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        table.to_csv(path, index=False, float_format="%.6g")
    else:
        table.to_parquet(path)


ORDER = ("gpt1", "gpt2", "llama", "mistral", "mixtral", "gemma", "mamba2", "gated-deltanet", "rwkv7", "hybrid")
SIZES = ("nano", "small", "paper")
SPEED = {"train": "Training", "prefill": "Prefill", "decode": "Decoding"}
CAPTIONS = {
    "train": "Milliseconds of a step of B × T tokens, forward, backward and update.",
    "prefill": "Milliseconds from the call to the first token after B prompts of P.",
    "decode": "Milliseconds a token, of B sequences at a time, after prompts of P; archbench's steps as named.",
}
HOW = (
    "Ratios are seconds of the peer over archbench's in the same round: above 1, archbench is faster; median, and 10th "
    "to 90th percentile. "
    "Same: the peer has our weights, and its first two losses agree within 1e-4, or all its greedy tokens do. "
    "Other model: of the same sizes, but not the same function."
)


def tables_of(rows: list[Row]) -> list[Table]:
    """Tables of training, prefill, decoding, memory and growth; without those that would be empty."""
    made = [_summary_table(rows), *(_speed_table(rows, job) for job in SPEED)]
    made += [_memory_table(rows), *(_growth_table(rows, job) for job in SPEED)]
    return [one for one in made if one.rows]


def markdown_of(rows: list[Row]) -> str:
    return "\n".join(line for one in tables_of(rows) for line in markdown(one))


def page_of(rows: list[Row]) -> str:
    from archbench.report.contents import Contents
    from archbench.report.page import page
    from archbench.report.styles import style_of

    names = list(dict.fromkeys(row["architecture"] for row in rows))
    figures = tuple(one for one in (_growth_figure(rows), _ratio_figure(rows)) if one is not None)
    facts = {
        name: ", ".join(dict.fromkeys(str(row[name]) for row in rows if row[name] is not None))
        for name in ("machine", "threads", "torch", "archbench", "git_revision", "malloc")
    }
    versions = {f"{row['peer']} {row['peer_version']}" for row in rows if row["peer_version"]}
    facts["peers"] = ", ".join(sorted(versions))
    contents = Contents(
        title="archbench and its peers", subtitle="benchmarks/peers.py", verdict=None, tables=tuple(tables_of(rows)),
        lead=figures[0] if figures else None, figures=figures, missing=(), facts=tuple(facts.items()),
        styles={name: style_of(name) for name in names}, said="Built-in architectures beside published implementations",
        limits=("One machine: ratios elsewhere differ.", "Initial weights and random tokens: speed alone."),
    )  # fmt: skip
    return page([contents], title="archbench and its peers")


def _cells(rows: list[Row], part: str, job: str) -> Iterator[tuple[Row, list[Row]]]:
    """Cell by cell: our row, and those of the peers that took part, the fastest first."""
    kept = [row for row in rows if row["part"] == part and row["job"] == job and row["ratio"] is not None]
    for ours in sorted(kept, key=lambda row: (ORDER.index(row["architecture"]), SIZES.index(row["size"]))):
        if ours["peer"] == "archbench":
            same = [row for row in kept if row is not ours and all(row[name] == ours[name] for name in KEY[:-1])]
            yield ours, sorted(same, key=lambda row: row["ratio"])


def _ratio(row: Row) -> str:
    return f"{row['ratio']:.2f} ({row['ratio_p10']:.2f}–{row['ratio_p90']:.2f})"


def _name(row: Row) -> str:
    return f"{row['peer']}{'' if row['cached'] or row['job'] == 'train' else ' (no cache)'}"


def _same(row: Row) -> str:
    if row["same_loss"] is None and row["same_tokens"] is None:
        return "other model" if row["why_not"] else "not compared"
    return "DIFFERS" if False in (row["same_loss"], row["same_tokens"]) else "same"


def _what(row: Row) -> str:
    extra = "" if row["dtype"] == "float32" else f", {row['dtype']}"
    extra += f", dropout {row['dropout']:g}" if row["dropout"] else ""
    return f"{row['size']}{extra}{', compiled' if row['compile'] else ''}"


def _summary_table(rows: list[Row]) -> Table:
    """The fastest peer's ratio, from the lowest to the highest of all cells, by architecture and job."""
    ranges: dict[str, dict[str, list[float]]] = {}
    for job in SPEED:
        for ours, peers in _cells(rows, "speed", job):
            if peers:
                ranges.setdefault(ours["architecture"], {}).setdefault(job, []).append(peers[0]["ratio"])
    lines = [
        (name, *(f"{min(found[job]):.2f} – {max(found[job]):.2f}" if job in found else None for job in SPEED))
        for name, found in ranges.items()
    ]
    columns = (Column("architecture", "name"), *(Column(title, "text") for title in SPEED.values()))
    caption = "The fastest peer's ratio to archbench, of all sizes, batches and lengths below: lowest and highest."
    return table("summary", "The fastest peer, at a glance", columns, lines, caption=caption, notes=(HOW,))


def _speed_table(rows: list[Row], job: str) -> Table:
    lines = []
    for ours, peers in _cells(rows, "speed", job):
        best = next(iter(peers), None)
        others = ", ".join(f"{_name(row)} {row['ratio']:.2f}" for row in peers[1:])
        shown = (_name(best), best["median_s"] * 1e3, _ratio(best), _same(best)) if best else ("none", None, "", "")
        case = [ours["architecture"], _what(ours), f"{ours['batch']} × {ours['length']}"]
        if job == "decode":
            case.append((ours.get("decoded_by") or "eager").partition(":")[0])
        lines.append((*case, ours["median_s"] * 1e3, ours["cpu_s"] * 1e3, *shown, others))
    columns = (
        Column("architecture", "name"), Column("size", "text"), Column("B × T" if job == "train" else "B × P", "text"),
        *([Column("steps", "text")] if job == "decode" else []),
        Column("archbench, ms"), Column("CPU, ms"), Column("fastest peer", "name"), Column("ms"),
        Column("ratio", "text"), Column("computes", "text"), Column("others' ratios", "list"),
    )  # fmt: skip
    return table(job, SPEED[job], columns, lines, caption=CAPTIONS[job])


def _memory_table(rows: list[Row]) -> Table:
    lines = []
    for ours, peers in _cells(rows, "memory", "train"):
        others = ", ".join(f"{row['peer']} {row['peak_bytes'] / 2**20:,.0f} ({row['ratio']:.2f})" for row in peers)
        case = (ours["architecture"], _what(ours), f"{ours['batch']} × {ours['length']}")
        lines.append((*case, ours["peak_bytes"] / 2**20, others))
    columns = (
        Column("architecture", "name"), Column("size", "text"), Column("B × T", "text"), Column("archbench, MiB"),
        Column("peers, MiB (over archbench)", "list"),
    )  # fmt: skip
    caption = (
        "The most resident memory in two training steps, of weights, optimizer and activations: of a process of its "
        "own, less what it had with libraries loaded."
    )
    return table("memory", "Peak memory of training", columns, lines, caption=caption)


def _growth_table(rows: list[Row], job: str) -> Table:
    """Our times at each length, and the last over the first: of time, of what theory counts, and of a peer."""
    by_name: dict[str, list[tuple[Row, list[Row]]]] = {}
    for ours, peers in _cells(rows, "growth", job):
        by_name.setdefault(ours["architecture"], []).append((ours, peers))
    lengths = sorted({ours["length"] for cells in by_name.values() for ours, _ in cells})
    lines = []
    for name, cells in by_name.items():
        cells = sorted(cells, key=lambda cell: cell[0]["length"])
        (first, first_peers), (last, last_peers) = cells[0], cells[-1]
        at = {ours["length"]: ours["median_s"] * 1e3 for ours, _ in cells}
        least = {row["peer"]: row for row in first_peers}
        peer = next((row for row in last_peers if row["peer"] in least), None)
        theirs = (
            (peer["peer"], peer["median_s"] / least[peer["peer"]]["median_s"], _ratio(peer)) if peer else ("", None, "")
        )
        work = last["work"] / first["work"] if first["work"] and last["work"] else None
        lines.append((name, *(at.get(one) for one in lengths), last["median_s"] / first["median_s"], work, *theirs))
    columns = (
        Column("architecture", "name"), *(Column(f"{int(one):,}") for one in lengths), Column("last / first"),
        Column("theory"), Column("fastest peer at the last", "name"), Column("its last / first"),
        Column("ratio at the last", "text"),
    )  # fmt: skip
    what = {"train": "a step of 1 × T tokens", "prefill": "reading T tokens", "decode": "a token after T"}[job]
    counts = "bytes that a step reads" if job == "decode" else "FLOPs"
    caption = f"Milliseconds of {what}, by length, preset nano; theory is the same ratio of {counts}."
    return table(f"growth-{job}", f"Growth of {SPEED[job].lower()}", columns, lines, caption=caption)


def _growth_figure(rows: list[Row]) -> Figure | None:
    from archbench.report.figures import Axis, Figure, Panel, Series
    from archbench.report.styles import style_of

    panels = []
    for job, title in (("train", "a training step"), ("prefill", "a prompt"), ("decode", "a token")):
        lines: dict[str, list[Row]] = {}
        for ours, _ in _cells(rows, "growth", job):
            lines.setdefault(ours["architecture"], []).append(ours)
        values = {
            name: [tuple(row[one] for row in cells) for one in ("length", "median_s", "p10", "p90")]
            for name, cells in lines.items()
        }
        series = tuple(Series(name, style_of(name), *given, drawn="line+points") for name, given in values.items())
        if series:
            lengths = tuple(sorted({x for one in series for x in one.x}))
            across = Axis("T", "token", "log", lengths)
            panels.append(Panel(title, across, Axis("seconds", "s", "log"), series))
    caption = "Medians of archbench, preset nano, one sequence; bars: 10th to 90th percentile. Scales are logarithmic."
    return Figure("growth", "Growth with the length", caption, tuple(panels)) if panels else None


def _ratio_figure(rows: list[Row]) -> Figure | None:
    from archbench.report.figures import Axis, Figure, Panel, Rule, Series
    from archbench.report.styles import style_of

    panels = []
    for job, title in SPEED.items():
        lines = [
            (f"{ours['architecture']} {_what(ours)} {ours['batch']} × {ours['length']}", peers[0])
            for ours, peers in _cells(rows, "speed", job)
            if peers
        ][::-1]
        series = tuple(
            Series(
                best["architecture"], style_of(best["architecture"]), (best["ratio"],), (float(place),),
                (best["ratio_p10"],), (best["ratio_p90"],), (best["peer"],), drawn="points", sideways=True,
            )
            for place, (_, best) in enumerate(lines)
        )  # fmt: skip
        ticks = tuple(float(place) for place in range(len(lines)))
        y = Axis("", ticks=ticks, labels=tuple(label for label, _ in lines), limits=(-0.6, len(lines) - 0.4))
        if lines:
            panels.append(Panel(title, Axis("fastest peer / archbench"), y, series, rules=(Rule(1.0),)))
    caption = "Right of 1, archbench is faster than the fastest peer. Bars: 10th to 90th percentile of the rounds."
    return Figure("ratios", "Beside the fastest peer", caption, tuple(panels), "switch") if panels else None
