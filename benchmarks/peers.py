"""Every built-in architecture against its published implementations: training, prefill, decoding, memory, growth.

    pip install transformers litgpt x-transformers rwkv flash-linear-attention   # others are skipped by name
    python benchmarks/peers.py --quick                                       # everything small: two minutes
    python benchmarks/peers.py gpt1 llama --size nano --size small --out peers.csv
    python benchmarks/peers.py gpt1 --size paper --job train --batch 2 --length 512 --nanogpt nanoGPT/model.py
    python benchmarks/peers.py --growth --out peers.csv             # nano, training and decoding up to 4,096
    python benchmarks/peers.py gpt1 --memory --job train                      # one process for each contender
    python benchmarks/peers.py gpt1 --profile --size small --batch 8 --peer nanoGPT --nanogpt nanoGPT/model.py
    python benchmarks/peers.py --from peers.csv --markdown tables.md --page peers.html

All contenders of a cell take turns in one process (A B C, C B A, …) on the same tokens, threads, allocator, dtype,
recipe and, where a peer has the same parameters, the same weights; of those the first two losses of training must agree
within 1e-4, and all greedy tokens. Ours trains by the plugin's ``train_step`` and decodes by its ``generate``. A peer
has the shortest code that a user could write around its model (``benchmarks/peers/``): fused AdamW, gradients set to
None and clipped, autocast, logits of the last position only, caches of its own; with ``--compile`` all are compiled.

A ratio is their seconds over ours in the same round, so that above 1 archbench is faster; of the ratios, median, 10th
and 90th percentile. Training: seconds of a step of B × T tokens. Prefill: from the call to the first token after B × P.
Decode: the median gap between tokens after them. Existing rows of ``--out`` stay, unless a cell is measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "tests")]  # which know published models

import torch  # noqa: E402
from peers import nanogpt_peer  # noqa: E402
from peers.contender import Cell  # noqa: E402
from peers.operator_profile import profile_of  # noqa: E402
from peers.peer_tables import COLUMNS, ORDER, markdown_of, page_of, read, replaced  # noqa: E402
from peers.turns import PEERS, Turns, agreement, peak_bytes, take_turns  # noqa: E402

import archbench  # noqa: E402
from archbench.kernels.product_choice import choose_products, record_products  # noqa: E402
from archbench.measure.flops import cache_bytes, count_flops  # noqa: E402
from archbench.measure.machine import cpu_model, git_revision  # noqa: E402
from archbench.measure.malloc import tune_malloc  # noqa: E402
from archbench.measure.product_speeds import ProductSpeeds, room_for_copies  # noqa: E402
from archbench.measure.sizes import decode_step_bytes  # noqa: E402

GROWTH = {"train": (256, 512, 1024, 2048, 4096), "prefill": (128, 512, 2048, 4096), "decode": (128, 512, 2048, 4096)}
PAPER = ("gpt1", "gpt2", "mamba2", "rwkv7")
"""Published sizes that fit a small machine: about that of GPT-1."""


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """In the order in which they are measured: architecture by architecture."""
    common: dict[str, Any] = {"dropout": options.dropout, "compile": options.compile}
    for name, dtype in product(options.names, options.dtype):
        if options.growth:
            for job in options.job:
                for length in options.length or GROWTH[job]:
                    yield Cell(name, options.size[0], job, 1, length, dtype, new_tokens=16, **common)
            continue
        for size, job, B in product(options.size, options.job, options.batch):
            if size == "paper" and name not in PAPER:
                print(f"{name} paper: too large here; {', '.join(PAPER)} have published sizes of about GPT-1's")
                continue
            for length in (options.length or [256]) if job == "train" else options.prompt:
                cell = Cell(name, size, job, B, length, dtype, new_tokens=options.new_tokens, **common)
                yield cell


def theory_of(cell: Cell) -> tuple[float | None, int | None]:
    """FLOPs of a training step or a prompt, bytes that a decoding step reads; and bytes of the state that it keeps."""
    with torch.device("meta"):
        model = cell.plugin.build(cell.config)
    if cell.job == "decode":
        positions = cell.length + cell.new_tokens // 2
        return decode_step_bytes(model, cell.batch, positions), cache_bytes(model, cell.batch, positions)
    flops = count_flops(model, cell.batch, cell.length)
    tokens = cell.batch * cell.length
    return tokens * (flops.training_per_token if cell.job == "train" else flops.forward_per_token), None


def rows_of(cell: Cell, found: dict[str, Turns], about: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each contender, and for each peer that takes no part, with the reason."""
    ours, rows = found["archbench"], []
    key = {name: value for name, value in asdict(cell).items() if name in COLUMNS}
    for name, turns in found.items():
        row = {**dict.fromkeys(COLUMNS), **key, **about, "peer": name, "why_not": turns.why_not}
        if name == "archbench":
            row["work"], row["state_bytes"] = theory_of(cell)
        if turns.seconds:
            seconds = sorted(turns.seconds.values())
            ratios = sorted(turns.seconds[one] / ours.seconds[one] for one in turns.seconds)
            row |= dict(zip(("median_s", "p10", "p90"), _spread(seconds), strict=True))
            row |= dict(zip(("ratio", "ratio_p10", "ratio_p90"), _spread(ratios), strict=True))
            row |= {
                "rounds": len(seconds),
                "cached": turns.cached,
                "decoded_by": turns.decoded_by,
                "cpu_s": median(turns.cpu.values()),
                "peer_version": PEERS[name].version,
            }
            row["same_loss"], row["same_tokens"] = agreement(cell, ours, turns)
        rows.append(row)
    return rows


def _spread(ordered: list[float]) -> tuple[float, float, float]:
    last = len(ordered) - 1
    return median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)]


def memory_rows(cell: Cell, names: list[str], about: dict[str, Any], arguments: list[str]) -> list[dict[str, Any]]:
    """Peak memory, each in a process of its own; nothing is timed."""
    rows = []
    for name in names:
        line = json.dumps({"cell": asdict(cell), "peer": name})
        command = [sys.executable, __file__, *arguments, "--one", line]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{cell.architecture} by {name}: its process ended with {done.returncode}\n{done.stderr}")
        if (peak := json.loads(done.stdout.splitlines()[-1])) is not None:
            key = {one: value for one, value in asdict(cell).items() if one in COLUMNS}
            rows.append({**dict.fromkeys(COLUMNS), **key, **about, "peer": name, "peak_bytes": peak})
    ours = rows[0]["peak_bytes"]
    return [row | {"ratio": row["peak_bytes"] / ours} for row in rows]


def shown(row: dict[str, Any]) -> str:
    what = f"{row['architecture']:14} {row['size']:5} {row['job']:12} B {row['batch']} T {row['length']:4}"
    if row["peak_bytes"]:
        return f"{what} {row['peer']:26} {row['peak_bytes'] / 2**20:9.1f} MiB  ratio {row['ratio']:.2f}"
    if row["median_s"] is None:
        return f"{what} {row['peer']:26} skipped: {row['why_not']}"
    ratio = f"{row['ratio']:.2f} ({row['ratio_p10']:.2f}–{row['ratio_p90']:.2f})"
    same = {None: "–", True: "same", False: "DIFFERS"}
    return (
        f"{what} {row['peer']:26} {row['median_s'] * 1e3:9.2f} ms  CPU {row['cpu_s'] * 1e3:9.2f}  ratio {ratio} of "
        f"{row['rounds']}  loss {same[row['same_loss']]}  tokens {same[row['same_tokens']]}"
    )


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ORDER)}; default: all")
    parser.add_argument("--size", action="append", choices=["nano", "small", "paper"], help="default: nano and small")
    parser.add_argument("--job", action="append", choices=["train", "prefill", "decode"], help="default: all")
    parser.add_argument("--peer", action="append", choices=[*PEERS][1:], help="default: all")
    parser.add_argument("--batch", action="append", type=int, help="B; default: 1 and 8")
    parser.add_argument("--length", action="append", type=int, help="T of a training step; default: 256")
    parser.add_argument("--prompt", action="append", type=int, help="P; default: 32 and 384")
    parser.add_argument("--growth", action="store_true", help="B 1 at growing lengths instead, of the first --size")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens decoded a turn")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"], help="default: float32")
    parser.add_argument("--dropout", type=float, default=0.0, help="of gpt1 and gpt2; losses are not compared then")
    parser.add_argument("--compile", action="store_true", help="compile the training step of all")
    parser.add_argument("--seconds", type=float, default=4.0, help="of turns, a cell")
    parser.add_argument("--rounds", type=int, default=5, help="least rounds of a cell")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--nanogpt", type=Path, metavar="FILE", help="model.py of a nanoGPT checkout, or its folder")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time, by processes of their own")
    parser.add_argument("--profile", action="store_true", help="operators of a training step by kind, side by side")
    parser.add_argument("--quick", action="store_true", help="nano, B 1, P 32, T 128, a second a cell")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".csv or .parquet: rows, beside those it has")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="show these rows; measure nothing")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write tables of all rows there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write an HTML page of them there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {*ORDER}:
        parser.error(f"no built-in architecture: {', '.join(unknown)}. There are {', '.join(ORDER)}")
    quick = options.quick
    options.names = options.names or [*ORDER]
    options.size = options.size or (["nano"] if quick or options.growth else ["nano", "small"])
    options.job = options.job or (
        ["train"] if options.profile else ["train", "decode"] if options.growth else ["train", "prefill", "decode"]
    )
    options.batch = options.batch or ([1] if quick else [1, 8])
    options.prompt = options.prompt or ([32] if quick else [32, 384])
    options.length = options.length or ([128] if quick and not options.growth else None)
    options.dtype = options.dtype or ["float32"]
    if quick:
        options.seconds, options.rounds, options.new_tokens = 0.5, 3, 8
    if options.nanogpt:
        nanogpt_peer.MODEL = options.nanogpt / "model.py" if options.nanogpt.is_dir() else options.nanogpt
    return options


def main(arguments: list[str] | None = None, *, malloc: str = "default") -> list[dict[str, Any]]:
    """Measure, show, write; returns the rows of this call. ``malloc`` is how the allocator was set before."""
    options = parsed(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.one:
        one = json.loads(options.one)
        print(json.dumps(peak_bytes(Cell(**one["cell"]), one["peer"])))
        return []
    about = {
        "part": "growth" if options.growth else "memory" if options.memory else "speed",
        "threads": torch.get_num_threads(), "torch": torch.__version__, "machine": cpu_model(), "malloc": malloc,
        "archbench": archbench.__version__, "git_revision": git_revision(),
    }  # fmt: skip
    names = ["archbench", *(options.peer or [*PEERS][1:])]
    passed = [f"--nanogpt={nanogpt_peer.MODEL}"] if nanogpt_peer.MODEL else []
    passed += [f"--threads={options.threads}"] if options.threads else []
    rows: list[dict[str, Any]] = []
    said: set[tuple[str, str]] = set()
    for cell in () if options.source else cells_of(options):
        if options.profile:
            print(f"{cell.architecture} {cell.size}, training, {cell.batch} x {cell.length}, {cell.dtype}")
            print("\n".join(profile_of(cell, names)), flush=True)
            continue
        if options.memory:
            new = memory_rows(cell, names, about, passed)
        else:
            with record_products() as products:
                found = take_turns(cell, names, seconds=options.seconds, rounds=(options.rounds, 40))
            new = rows_of(cell, found, {**about, "products": "+".join(sorted(products)) or None})
        for row in new:
            reason = (row["peer"], str(row["why_not"]))
            if row["median_s"] is not None or row["peak_bytes"] or reason not in said:
                print(shown(row), flush=True)
            if row["median_s"] is None:
                said.add(reason)
        rows += new
        if options.out:
            replaced(options.out, new)
        cell.__dict__.pop("weights", None)
    everything = read(options.source) if options.source else read(options.out) if options.out else rows
    if options.markdown:
        options.markdown.write_text(markdown_of(everything), encoding="utf-8")
    if options.page:
        options.page.write_text(page_of(everything), encoding="utf-8")
    return rows


if __name__ == "__main__":
    choose_products(ProductSpeeds(), packing=room_for_copies())  # as a run does
    main(malloc=tune_malloc())
