"""Training: the recipe, loss and seconds of every step, memory, and utilisation of the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from statistics import median

import torch
from torch import nn

from archbench.config import ModelConfig
from archbench.data.batches import BatchSampler
from archbench.data.dataset import prepare
from archbench.measure.clock import Clock, clock_for
from archbench.measure.energy import energy_used
from archbench.measure.flops import count_flops, on_meta
from archbench.measure.memory import most_memory, peak_memory
from archbench.measure.peaks import measure_gemm, mfu, published_peak
from archbench.measure.shape_runs import KINDS
from archbench.measure.steady import count_outliers, has_trend
from archbench.plugin.architecture import Architecture
from archbench.presentation.terminal import echo
from archbench.runs.audit import Audit
from archbench.runs.folder import RunFolder
from archbench.runs.models import count_parameters, initial_model, load_architecture
from archbench.runs.quality import score_validation
from archbench.runs.rows import Rows
from archbench.runs.scaling import communication_share, efficiency, scaling_seconds
from archbench.trackers.feed import Feed
from archbench.training.captured_update import updates_of
from archbench.training.distribution import ALONE, Ranks
from archbench.training.generators import forked_generators
from archbench.training.loop import train
from archbench.training.progress import Progress
from archbench.training.rehearsal import rehearse
from archbench.training.state import TrainState
from archbench.training.step_audit import StepAudit
from archbench.training.steps import check_linear_head


def run_train(run: RunFolder, device: torch.device, rows: Rows, *, quiet: bool, ranks: Ranks = ALONE) -> None:
    """Train the run's model to its budget, from the last checkpoint if there is one.

    Args:
        ranks: the processes that train together, which all call it; the first one's rows are the run's.

    Raises:
        ConformanceError: the audit of a step finds another loss, other tokens or another update.
        PluginError: the architecture cannot be trained by several ranks.
    """
    config, recipe = run.config, run.config.training
    architecture, model_config = load_architecture(run)
    data = prepare(config.data, sha256=run.facts.get("corpus_sha256"))
    dtype = getattr(torch, config.dtype)
    T, B = model_config.context_length, recipe.batch_size

    model = initial_model(run, architecture, model_config, device)
    sampler = BatchSampler(
        data.train, batch_size=B * recipe.accumulation, context_length=T, seed=config.seed, sampling=recipe.sampling
    )
    rows.common |= {"parameters": count_parameters(model), "batch_size": B * recipe.accumulation}
    rows.common["world_size"] = ranks.size
    _record_attention(model, T, dtype, device, rows)
    flops = count_flops(on_meta(model), batch_size=1, context_length=T)
    flops_per_token = flops.training_per_token

    check_linear_head(model)
    blocks = ranks.shard_model(model, device)
    state = TrainState.create(
        model, recipe, device=device, dtype=config.dtype, float8=config.float8, compile=config.compile, ranks=ranks
    )
    if ranks.size > 1:
        rehearse(state, architecture.train_step, sampler, config.architecture)
    updates = updates_of(config.updates, state, architecture.train_step)
    report, clock = Audit(run, "train"), clock_for(device)

    def validate(trained: nn.Module) -> float:
        return score_validation(trained, data, config, T, device, report, ranks=ranks).loss

    held_out_tokens = sum(len(document.tokens) for document in data.validation)
    held_out_bytes = data.validation_bytes

    def bits_per_byte(loss: float) -> float | None:
        return None if held_out_bytes is None else loss * held_out_tokens / math.log(2) / held_out_bytes

    def tell_trackers(step: int, seen: int, values: Mapping[str, float]) -> None:
        validation = values.get("validation_loss")
        bits = None if validation is None else bits_per_byte(validation)
        feed.log(step, seen, {**values, **({} if bits is None else {"validation_bits_per_byte": bits})})

    with Feed(run.path) as feed, peak_memory(device) as memory, energy_used(device) as energy:
        history = train(
            state,
            sampler,
            recipe,
            updates=updates,
            clock=clock,
            flops_per_token=flops_per_token,
            validate=validate if recipe.validate_every is not None else None,
            checkpoints=run.checkpoints,
            progress=Progress("silent" if quiet else "auto", label=f"{config.architecture} {config.preset}, train"),
            observe=tell_trackers if config.trackers and ranks.leads else None,
            audit=StepAudit(state, config.seed, clock, report),
        )

    if device.type == "cuda" and ranks.size > 1:  # ranks on CPUs share a machine, and its counter
        every = ranks.gather([math.nan if energy.joules is None else energy.joules])
        energy.joules = None if bool(every.isnan().any()) else float(every.sum())
    worst = most_memory(ranks.gather_objects(memory))
    if ranks.size > 1 and history.diverged_at is None:
        _add_scaling(run, state, architecture, model_config, sampler, len(history.steps), clock, rows)
    if not ranks.leads:
        return
    if blocks is not None:
        rows.add("fsdp_blocks", blocks)

    if config.updates != "eager":
        rows.add("graph_captured", updates.kind == "graph", operation=updates.reason)
        rows.add("capture_seconds", updates.capture_seconds)
        if updates.reason is not None and not quiet:
            echo(f"phase train: its updates are not from a CUDA graph: {updates.reason}", error=True)
    firsts = set(history.first_steps)  # one per process; a resumed run has several
    asked = set(updates.asked) - firsts if updates.kind == "graph" else set()
    tokens = 0
    for record in history.steps:
        tokens += record.tokens
        at = {"repeat": record.step, "tokens_seen": tokens, "world_size": history.world_size(record.step)}
        rows.add("loss", record.loss, **at)
        rows.add("grad_norm", record.grad_norm, **at)
        rows.add("learning_rate", record.lr, **at)
        taken = "first_step" if record.step in firsts else "asked_step" if record.step in asked else "step"
        rows.add(f"{taken}_seconds", record.seconds, **at)
    for step, seen, loss in history.validations:
        rows.add("validation_loss", loss, repeat=step, tokens_seen=seen)
        rows.add("validation_bits_per_byte", bits_per_byte(loss), repeat=step, tokens_seen=seen)

    alike = [record for record in history.steps if history.world_size(record.step) == ranks.size]
    seconds = [record.seconds for record in alike if record.step not in firsts | asked]
    totals = {"tokens_seen": tokens}
    rows.add("steps", len(history.steps), **totals)
    rows.add("training_seconds", history.seconds, **totals)
    rows.add("flops_per_token", flops_per_token, **totals)
    if flops.counted_on != "meta":
        rows.add("flops_counted_on", KINDS.index(flops.counted_on), **totals)
    emulated = config.float8 != "none" and device.type == "cpu"  # its speed is no float8's
    if seconds and not emulated:
        speed = history.steps[0].tokens / median(seconds)
        rows.add("tokens_per_second", speed, **totals)
        if ranks.size > 1:
            rows.add("tokens_per_second_per_device", speed / ranks.size, **totals)
        rows.add("model_flops_per_second", speed * flops_per_token, **totals)
        rows.add("outliers", count_outliers(seconds), **totals)
        rows.add("stationary", not has_trend(seconds), **totals)
        published, measured = published_peak(device, dtype), measure_gemm(device, dtype)
        rows.add("peak_flops_published", published, **totals)
        rows.add("peak_flops_measured", measured, **totals)
        rows.add("mfu", mfu(speed / ranks.size * flops_per_token, published or measured), **totals)
    here = sum(record.tokens for record in history.steps if record.step >= max(firsts, default=0))
    if not emulated:
        rows.add_energy(energy, here, quiet=quiet, **totals)
    rows.add_memory(worst, quiet=quiet, **totals)
    report.add_to(rows)
    if history.diverged_at is not None:
        rows.add("diverged", history.diverged_at, repeat=history.diverged_at, **totals)


def _add_scaling(
    run: RunFolder,
    state: TrainState,
    architecture: Architecture,
    model_config: ModelConfig,
    sampler: BatchSampler,
    number: int,
    clock: Clock,
    rows: Rows,
) -> None:
    """Measure what sharing costs, by updates after the last, on the batch of that number; all ranks call it."""
    config, step = run.config, architecture.train_step
    own = state.next_batch(sampler, number)[0].to(state.device)
    share = communication_share(state, step, own, clock)
    if state.ranks.leads:
        rows.add("communication_share", share)
    if not config.scaling_efficiency:
        return

    def alone() -> TrainState:
        model = initial_model(run, architecture, model_config, state.device)
        numbers = partial(TrainState.create, dtype=config.dtype, float8=config.float8)
        return numbers(model, config.training, device=state.device, compile=config.compile)

    together, by_one = scaling_seconds(state, alone, step, sampler, number, clock)
    if not state.ranks.leads:
        return
    rows.extend("shared_step_seconds", together)
    rows.extend("one_device_step_seconds", by_one)
    rows.add("scaling_efficiency", efficiency(together, by_one, state.ranks.size))


def _record_attention(model: nn.Module, T: int, dtype: torch.dtype, device: torch.device, rows: Rows) -> None:
    """Record the attention backend of a training step in every row, from one forward pass before the clock starts."""
    tokens = torch.zeros(1, T, dtype=torch.int64, device=device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
    with forked_generators(device), rows.recording_attention(), autocast:
        model.train()(tokens)  # with gradients, on which the choice depends
