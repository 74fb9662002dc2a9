"""Several ranks train as one process does: the same losses, and checkpoints that any number of ranks continues."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from archbench_plugins.gpt1 import GPT1
from torch.autograd.profiler import profile

import archbench
from archbench.config import ParallelName, SamplingName, TrainingConfig
from archbench.data.batches import Batch, BatchSampler
from archbench.data.dataset import EncodedDocument
from archbench.errors import PluginError
from archbench.measure.clock import CPUClock
from archbench.measure.score_audit import ScoreAudit
from archbench.measure.scoring import QualityScore, position_losses, score
from archbench.runs.ranks import device_of_rank
from archbench.training import distribution
from archbench.training.distribution import PeerError, Ranks, repeated_blocks
from archbench.training.history import TrainingHistory
from archbench.training.loop import train
from archbench.training.rehearsal import rehearse
from archbench.training.state import TrainState
from archbench.training.step_audit import Finding, StepAudit
from archbench.training.steps import next_token_step
from rank_groups import on_ranks
from test_builtin_architectures import NAMES
from training_setup import T, V, losses, model_config, recipe, sampler

STEPS = 50
TOLERANCE = 1e-5
"""Relative, of a loss in float32 after up to 50 updates: sums over ranks are in another order."""

SMALL: dict[str, Any] = {"n_layer": 2, "context_length": T, "vocab_size": V}
MORE: dict[str, dict[str, Any]] = {"hybrid": {"n_layer": 3}}


def training(name: str, ranks: Ranks, config: TrainingConfig, checkpoints: Path | None = None) -> TrainingHistory:
    """A small model of that architecture, trained; every audited step is right."""
    architecture = archbench.load(name)
    sizes = {**SMALL, **MORE.get(name, {})}
    torch.manual_seed(1)
    model = architecture.build(architecture.config("nano", **sizes))
    blocks = ranks.shard_model(model, torch.device("cpu"))
    assert blocks == (sizes["n_layer"] if ranks.sharded else None)
    state = TrainState.create(model, config, ranks=ranks)
    batches: BatchSampler = sampler(config.batch_size * config.accumulation)
    if ranks.size > 1:
        rehearse(state, architecture.train_step, batches, name)
    audit = StepAudit(state, 0, CPUClock(), right)
    return train(
        state,
        batches,
        config,
        clock=CPUClock(),
        step=architecture.train_step,
        checkpoints=checkpoints,
        audit=audit,
    )


def right(finding: Finding) -> None:
    assert not finding.failed, finding.meaning


def all_losses(ranks: Ranks, names: list[str], config: TrainingConfig) -> dict[str, list[float]]:
    return {name: losses(training(name, ranks, config)) for name in names}


RECIPE = recipe(steps=STEPS, batch_size=4, accumulation=2, learning_rate=5e-4)
"""At twice the rate gated-deltanet's loss has a spike, which makes 1.7e-5 of rounding."""


@pytest.fixture(scope="module")
def alone() -> dict[str, list[float]]:
    return all_losses(Ranks(), NAMES, RECIPE)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_have_the_losses_of_one_process(size: int, parallel: ParallelName, alone: dict[str, list[float]]) -> None:
    """Two micro-batches of four sequences, which do not divide by three; and all ranks report the same."""
    for every in on_ranks(size, all_losses, NAMES, RECIPE, parallel=parallel):
        for name in NAMES:
            assert every[name] == pytest.approx(alone[name], rel=TOLERANCE), name
            assert every[name][-1] < every[name][0]


def continued(ranks: Ranks, folder: Path, config: TrainingConfig) -> list[float]:
    return losses(training("mixtral", ranks, config, folder))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_checkpoint_is_continued_by_another_number_of_ranks(parallel: ParallelName, tmp_path: Path) -> None:
    """Two ranks, then three, then one process: the losses of one that never stopped, from the one format of files."""
    config = recipe(steps=18, batch_size=4, accumulation=2, checkpoint_every=6, learning_rate=1e-3)
    whole = continued(Ranks(), tmp_path / "whole", config)
    folder = tmp_path / "changing"
    for size, until in ((2, 6), (3, 12)):
        stopped = on_ranks(size, until_step, folder, config, until, parallel=parallel)
        assert all(len(found) == until for found in stopped)
    assert continued(Ranks(), folder, config) == pytest.approx(whole, rel=TOLERANCE)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000012", "step-00000018"]


def until_step(ranks: Ranks, folder: Path, config: TrainingConfig, step: int) -> list[float]:
    """The losses of a training that is interrupted after that many updates, on one rank."""
    signalled = ranks.size - 1

    class Interrupting(StepAudit):
        def due(self, number: int) -> bool:
            if number == step - 1 and ranks.rank == signalled:
                os.kill(os.getpid(), signal.SIGTERM)
            return False

    signal.signal(signal.SIGTERM, interrupt)
    name, sizes = "mixtral", SMALL
    architecture = archbench.load(name)
    torch.manual_seed(1)
    model = architecture.build(architecture.config("nano", **sizes))
    ranks.shard_model(model, torch.device("cpu"))
    state = TrainState.create(model, config, ranks=ranks)
    with pytest.raises(KeyboardInterrupt if ranks.rank == signalled else PeerError):
        train(
            state, sampler(config.batch_size * config.accumulation), config, clock=CPUClock(),
            step=architecture.train_step, checkpoints=folder, audit=Interrupting(state, 0, CPUClock(), right),
        )  # fmt: skip
    assert state.step == step
    return [0.0] * state.step


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def refusals(ranks: Ranks) -> dict[str, str]:
    """By the kind of wrong training step, why it is refused before the training."""
    found = {}
    for name, step in WRONG.items():
        torch.manual_seed(1)
        state = TrainState.create(GPT1(model_config()), RECIPE, ranks=ranks)
        before = [parameter.detach().clone() for parameter in state.module.parameters()]
        with pytest.raises(PluginError) as refused:
            rehearse(state, step, sampler(8), name)
        found[name] = refused.value.cause
        assert all(map(torch.equal, before, state.module.parameters()))
    return found


def not_by_model(state: TrainState, batch: Batch) -> torch.Tensor:
    loss = batch_loss(state.module, batch)
    state.backward(loss)
    state.update()
    return loss


def own_backward(state: TrainState, batch: Batch) -> torch.Tensor:
    loss = batch_loss(state.model, batch)
    loss.backward()
    state.update()
    return loss


def unused_parameter(state: TrainState, batch: Batch) -> torch.Tensor:
    states = state.model(batch.inputs, logits=False)
    loss = states.detach().square().mean() + sum(parameter.sum() for parameter in state.module.blocks.parameters())
    state.backward(loss)
    state.update()
    return loss.detach()


def batch_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())


WRONG = {"not_by_model": not_by_model, "own_backward": own_backward, "unused_parameter": unused_parameter}


@pytest.mark.slow
def test_a_training_step_that_cannot_be_shared_is_refused_before_training() -> None:
    first, second = on_ranks(2, refusals)
    assert first == second
    assert "state.model" in first["not_by_model"]
    assert "state.backward" in first["own_backward"]
    assert "embedding" in first["unused_parameter"]


def hooked(ranks: Ranks) -> str:
    model = GPT1(model_config())
    model.blocks[1].attention.qkv.weight.register_hook(lambda gradient: gradient)
    with pytest.raises(PluginError) as refused:
        ranks.shard_model(model, torch.device("cpu"))
    return refused.value.cause


def test_fsdp_refuses_a_tensor_hook_that_it_would_lose() -> None:
    assert "blocks.1.attention.qkv.weight" in hooked(Ranks(0, 2, "fsdp"))


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_takes_its_own_gpu_and_then_joins_by_nccl(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 5 of two machines with four GPUs each. Tensors on the CPU, such as losses, go by gloo."""
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **named: calls.append((backend, named)))
    monkeypatch.setattr(distribution, "store_at", lambda *_: dist.HashStore())
    variables = {
        "RANK": str(rank), "LOCAL_RANK": str(rank % 4), "WORLD_SIZE": "8", "MASTER_ADDR": "x", "MASTER_PORT": "1",
    }  # fmt: skip
    ranks = distribution.join(variables, "g", torch.device(device_of_rank("cuda", variables)), "fsdp")
    taken, (backend, named) = calls
    assert (taken, backend) == (torch.device(f"cuda:{rank % 4}"), "cpu:gloo,cuda:nccl")
    assert (named["rank"], named["world_size"]) == (ranks.rank, ranks.size) == (rank, 8)


def exchanges(ranks: Ranks) -> dict[int, tuple[list[str], list[bool]]]:
    """By the number of micro-batches, the exchanges of gradients in an update, and which forward passes begin one."""
    found = {}
    for accumulation in (1, 3):
        torch.manual_seed(1)
        model = GPT1(model_config())
        ranks.shard_model(model, torch.device("cpu"))
        state = TrainState.create(model, recipe(batch_size=4, accumulation=accumulation), ranks=ranks)
        wanted: list[bool] = []
        if not ranks.sharded:
            state.model.register_forward_pre_hook(lambda one, _, w=wanted: w.append(one.require_backward_grad_sync))
        next_token_step(state, state.next_batch(sampler(4 * accumulation), 0)[0])  # DDP chooses its buckets
        wanted.clear()
        with profile() as recorded:
            next_token_step(state, state.next_batch(sampler(4 * accumulation), 1)[0])
        names = [event.name for event in recorded.function_events if event.name.startswith("gloo:")]
        found[accumulation] = [name for name in names if "reduce" in name], wanted
    return found


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_only_the_last_micro_batch_exchanges_gradients(parallel: ParallelName) -> None:
    first, second = on_ranks(2, exchanges, parallel=parallel)
    assert first == second
    assert first[1][0]
    assert first[3][0] == first[1][0]
    if parallel == "ddp":  # which decides in the forward pass
        assert (first[1][1], first[3][1]) == ([True], [False, False, True])


class CountedTokens:
    """Tokens that count how many of them were read."""

    def __init__(self, tokens: npt.NDArray[np.uint16]) -> None:
        self.tokens, self.read = tokens, 0

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, places: npt.NDArray[np.int64], mode: Any) -> npt.NDArray[np.uint16]:
        self.read += places.size
        return self.tokens.take(places, mode=mode)


@pytest.mark.parametrize("sampling", ["epochs", "random"])
def test_each_rank_reads_its_rows_of_the_batch_and_no_others(sampling: SamplingName) -> None:
    """Of two micro-batches of four sequences, which do not divide by three; the batch spans two epochs."""
    tokens = CountedTokens((np.arange(70 * T) % V).astype(np.uint16))
    batches = BatchSampler(tokens, batch_size=8, context_length=T, seed=0, sampling=sampling)  # type: ignore[arg-type]
    whole = batches.batch(8)
    shares, weights = [], []
    for rank, n in enumerate((4, 2, 2)):
        state = TrainState.create(GPT1(model_config()), recipe(batch_size=4, accumulation=2))
        state.ranks, tokens.read = Ranks(rank, 3), 0
        share, of_all = state.next_batch(batches, 8)
        assert (len(share.inputs), tokens.read, of_all) == (n, n * (T + 1), whole.targets.numel())
        shares.append(share)
        weights.append(state.weight)
    assert weights == pytest.approx([1.5, 0.75, 0.75])
    for name in ("inputs", "targets"):
        rows = [row for micro in range(2) for share in shares for row in getattr(share.split(2)[micro], name).tolist()]
        assert rows == getattr(whole, name).tolist()


def scores(ranks: Ranks) -> tuple[QualityScore, list[float], list[float], int]:
    """Of validation text and its positions, with what an audit finds, by a model whose forward passes are counted."""
    torch.manual_seed(1)
    model = GPT1(model_config())
    ranks.shard_model(model, torch.device("cpu"))
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    random = np.random.default_rng(5)
    texts = [EncodedDocument(str(n), random.integers(V, size=n).astype(np.uint16), n) for n in (700, 1, 30, 90)]
    audit = ScoreAudit(0, torch.float32)
    scored = score(model, texts, separator=0, context_length=T, stride=5, batch_size=3, audit=audit, ranks=ranks)
    windows = [texts[0].tokens[at : at + T + 1].astype(np.int64) for at in range(0, 300, T)]
    losses = position_losses(model, windows, batch_size=4, ranks=ranks)
    findings = [finding.value or 0.0 for finding in audit.findings]
    assert findings == pytest.approx([0.0] * 3, abs=audit.tolerance)
    return scored, losses.tolist(), findings, len(passes)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "parallel"), [(2, "ddp"), (3, "fsdp")])
def test_ranks_have_the_score_of_one_process_to_the_last_bit(size: int, parallel: ParallelName) -> None:
    """Each passes its share of the windows through the model, FSDP's ranks as often as each other."""
    (alone,) = on_ranks(1, scores)
    found = on_ranks(size, scores, parallel=parallel)
    assert all(one[:3] == alone[:3] for one in found)
    (passes,) = {one[3] for one in found}
    assert passes < alone[3] / size + 6  # the audit's five are not shared


def test_each_layer_of_a_list_is_a_block() -> None:
    model = GPT1(model_config())
    assert repeated_blocks(model) == list(model.blocks)
    assert repeated_blocks(torch.nn.Linear(2, 2)) == []
