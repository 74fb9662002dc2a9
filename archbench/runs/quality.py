"""Quality: how well the trained model predicts held-out text, compared with n-gram counts and compressors."""

from __future__ import annotations

import pyarrow as pa
import torch
from torch import nn

from archbench.config import RunConfig
from archbench.data.dataset import Dataset, prepare
from archbench.files.parquet import sealed_parquet
from archbench.files.writing import write_bytes
from archbench.measure.memory import most_memory, peak_memory
from archbench.measure.score_audit import ScoreAudit
from archbench.measure.scoring import QualityScore, score
from archbench.measure.text_floors import floors_of
from archbench.runs.audit import Audit, scoring_leaves_alone
from archbench.runs.folder import RunFolder
from archbench.runs.models import count_parameters, load_architecture, trained_model
from archbench.runs.rows import Rows
from archbench.training.distribution import ALONE, Ranks


def score_validation(
    model: nn.Module,
    data: Dataset,
    config: RunConfig,
    context_length: int,
    device: torch.device,
    report: Audit,
    audit: ScoreAudit | None = None,
    ranks: Ranks = ALONE,
) -> QualityScore:
    """Score the whole validation split, in the windows that ``config.quality`` says; ``report`` gets what is found.

    Of several ranks all call it, and each scores its share.
    """
    with scoring_leaves_alone(model, report):
        result = score(
            model,
            data.validation,
            separator=data.tokenizer.separator,
            context_length=context_length,
            stride=config.quality.stride,
            batch_size=config.quality.batch_size,
            device=device,
            dtype=getattr(torch, config.dtype),
            audit=audit,
            ranks=ranks,
        )
    for finding in audit.findings if audit is not None else ():
        report(finding)
    return result


def tokens_seen(run: RunFolder) -> int | None:
    """Tokens that the run trained its model on before this phase; None of published weights."""
    if "train" in run.config.phases:
        return next(int(row["tokens_seen"]) for row in run.read_rows("train") if row["metric"] == "training_seconds")
    return 0 if run.config.weights is None else None


def run_quality(run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool, ranks: Ranks = ALONE) -> None:
    """Score the whole validation split, each token once, and keep the nats of every document and block.

    Args:
        ranks: the processes that score together, which all call it; the first one's rows are the run's.

    Raises:
        ConformanceError: the audit finds that the score depends on more than what was read.
    """
    config = run.config
    architecture, model_config = load_architecture(run)
    data = prepare(config.data, sha256=run.facts.get("corpus_sha256"))
    model = trained_model(run, architecture, model_config, device)
    rows.common |= {
        "parameters": count_parameters(model),
        "batch_size": config.quality.batch_size,
        "tokens_seen": tokens_seen(run),
        "world_size": ranks.size,
    }
    ranks.shard_model(model, device)

    report, audit = Audit(run, "quality"), ScoreAudit(config.seed, getattr(torch, config.dtype))

    with peak_memory(device) as memory, rows.recording_attention():
        result = score_validation(model, data, config, model_config.context_length, device, report, audit, ranks)
    worst = most_memory(ranks.gather_objects(memory))
    if not ranks.leads:
        return

    rows.add("loss", result.loss)
    rows.add("perplexity", result.perplexity)
    rows.add("bits_per_byte", result.bits_per_byte)
    rows.add("tokens_scored", result.tokens)
    rows.add("bytes_scored", result.bytes)
    rows.add("documents", len(result.documents))
    if data.corpus.splits:  # shards may be of a text that nobody knows
        # A text that is scored as a whole leaves none to count n-grams in.
        for name, bits_per_byte in floors_of(data, counting=config.data.validation_fraction != 1).items():
            rows.add(f"floor_{name}", bits_per_byte)
    rows.add_memory(worst, quiet=quiet)
    rows.add("audit_tolerance", audit.tolerance)
    report.add_to(rows)

    documents = pa.table(
        {
            "document": [document.name for document in result.documents],
            "tokens": [document.tokens for document in result.documents],
            "bytes": [document.bytes for document in result.documents],
            "nats": [document.nats for document in result.documents],
        }
    )
    owners = [number for number, document in enumerate(result.documents) for _ in document.block_nats]
    nats = [nats for document in result.documents for nats in document.block_nats]
    blocks = pa.table({"document": pa.array(owners, pa.int64()), "nats": pa.array(nats, pa.float64())})
    for name, table in (("documents", documents), ("blocks", blocks)):
        file = run.path / f"{name}.parquet"
        with run.storing(file):
            write_bytes(file, sealed_parquet(table))
