"""Jobs of archbench itself whose memory must not grow with their size: each at two sizes, in bytes.

As :mod:`archbench.regression.benchmark`, this very file runs beside the archbench of either revision. Call it before
anything else in a process: memory that was freed would be used again, uncounted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import torch

import archbench
from archbench.config import DataConfig
from archbench.measure.memory import peak_extra_bytes, peak_memory

POSITIONS = (16_384, 32_768)
"""N of a loss, with C = 16 and V = 2,048: 128 and 256 MiB of logits."""

TEXT_BYTES = (32_000_000, 64_000_000)
"""As bytes; of both tokens are more than :mod:`archbench.data.token_stream` leaves in memory."""

SUBWORD_BYTES = (2_000_000, 5_000_000)
"""As pieces of words, of which a second makes a megabyte or two."""

RUNS = (40, 160)
"""Of :data:`ROWS` rows, as frames more than a megabyte each."""

ROWS = 1_000


class _NoPeakError(Exception):
    """This system does not tell the peak of a process's memory; the message is a clause."""


def counts() -> tuple[dict[str, float | None], dict[str, str]]:
    """Metric -> value, and why one is None."""
    jobs: dict[str, Callable[[Path], float]] = {
        "text_growth": lambda folder: _of_text(folder, TEXT_BYTES, subword=False),
        "subword_growth": lambda folder: _of_text(folder, SUBWORD_BYTES, subword=True),
        "results_growth": _of_results,
    }
    costs: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="archbench-regress-") as place:
        for metric, job in jobs.items():
            try:
                costs[metric] = job(Path(place))
            except (ImportError, _NoPeakError) as error:
                costs[metric], reasons[metric] = None, str(error)
    small, large = (_of_a_loss(N) for N in POSITIONS)
    return {"loss_bytes": large, "loss_growth": (large - small) / (POSITIONS[1] - POSITIONS[0]), **costs}, reasons


def _of_a_loss(N: int, C: int = 16, V: int = 2_048) -> int:
    """Most bytes in tensors of a loss of N positions from hidden states (N, C), and its gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, C, generator=generator).requires_grad_() for size in (N, V))
    targets = torch.randint(V, (N,), generator=generator)

    def job() -> None:
        archbench.linear_cross_entropy(hidden, weight, targets).backward()  # type: ignore[no-untyped-call]

    return peak_extra_bytes(job, torch.device("cpu"))


def _growth(job: Callable[[int], object], sizes: Sequence[int]) -> float:
    """Resident bytes that each unit of size beyond the first size adds to the process's peak."""
    peaks = []
    for size in sizes:
        with peak_memory("cpu") as memory:
            job(size)
        if memory.peak_bytes is None:
            raise _NoPeakError(memory.reason)
        peaks.append(memory.peak_bytes)
    return max(0.0, (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]))


def _of_text(folder: Path, sizes: Sequence[int], *, subword: bool) -> float:
    """Prepare a text file, as bytes or by a tokenizer that was trained before, and draw an epoch's batches."""
    from archbench.data.batches import BatchSampler
    from archbench.data.corpora import load_corpus
    from archbench.data.dataset import prepare
    from archbench.data.tokenizers import load_tokenizer

    lines = "".join(f"word{number % 89} {number % 97}\n" for number in range(20_000)).encode()
    for size in (len(lines), *sizes):
        with Path(folder, f"{size}.txt").open("wb") as file:
            for start in range(0, size, len(lines)):
                file.write(lines[: size - start])
    tokenizer = "byte"
    if subword:
        corpus = load_corpus(str(folder / f"{len(lines)}.txt"), cache=folder)
        load_tokenizer("bpe:300", corpus=corpus, cache=folder).save(folder / "bpe")
        tokenizer = f"saved:{folder / 'bpe'}"

    def job(size: int) -> None:
        file = Path(folder, f"{size}.txt")
        config = DataConfig(corpus=str(file), tokenizer=tokenizer, validation_fraction=0.1)
        data = prepare(config, cache=folder / "cache")
        batches = BatchSampler(data.train, batch_size=64, context_length=1024, seed=0)
        for step in range(batches.blocks_per_epoch // 64):
            batches.batch(step)

    return _growth(job, sizes)


_OF_A_TYPE = {"string": "text", "int64": 1, "double": 0.5, "bool": False}


def _of_results(folder: Path) -> float:
    """Read the newest three runs of a folder and count the others, as ``archbench results`` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from archbench.results.newest import NewestRuns
    from archbench.results.schema import SCHEMA_VERSION, arrow_schema

    schema = arrow_schema()
    for count in RUNS:
        Path(folder, str(count)).mkdir()
        for number in range(count):
            at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
            run_id = f"{at:%Y%m%dT%H%M%S}-{number:06x}"
            given = {"run_id": run_id, "time_utc": at, "schema_version": SCHEMA_VERSION}
            columns = [
                pa.array([given.get(field.name, _OF_A_TYPE.get(str(field.type)))] * ROWS, field.type)
                for field in schema
            ]
            pq.write_table(pa.Table.from_arrays(columns, schema=schema), Path(folder, str(count), f"{run_id}.parquet"))

    def job(count: int) -> None:
        runs = NewestRuns(folder / str(count))
        for frame in islice(runs, 3):
            assert len(frame) == ROWS
        assert runs.count() == count - 3

    return _growth(job, RUNS)
