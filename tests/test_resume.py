"""A resumed run gives the losses of an unbroken one, bit for bit on a CPU, whenever and however often it is killed."""

from __future__ import annotations

import multiprocessing.connection
import multiprocessing.process
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from archbench.config import TrainingConfig
from archbench.errors import CheckpointError
from archbench.measure.clock import CPUClock
from archbench.training.history import TrainingHistory
from archbench.training.loop import train
from training_setup import FORKSERVER, losses, new_state, recipe, run, sampler


def stopped_after(updates: int, config: TrainingConfig, folder: Path, **options: object) -> None:
    """A run that is gone in the middle of an update, as by a crash."""

    class StoppedError(Exception):
        pass

    def step(state, batch):  # type: ignore[no-untyped-def]
        if state.step == updates:
            raise StoppedError
        from archbench.training.steps import next_token_step

        return next_token_step(state, batch)

    state = new_state(config, **options)  # type: ignore[arg-type]
    batches = sampler(config.batch_size * config.accumulation)
    with pytest.raises(StoppedError):
        train(state, batches, config, clock=CPUClock(), step=step, checkpoints=folder)


@pytest.mark.parametrize(
    ("optimizer", "schedule"), [("adamw", "cosine"), ("adam", "wsd"), ("sgd", "cosine"), ("muon", "wsd")]
)
def test_a_resumed_run_equals_an_unbroken_one_with_dropout(tmp_path: Path, optimizer: str, schedule: str) -> None:
    config = recipe(steps=20, optimizer=optimizer, schedule=schedule, checkpoint_every=4, accumulation=2)
    stopped_after(11, config, tmp_path, dropout=0.2)
    stopped_after(18, config, tmp_path, dropout=0.2)
    torch.rand(17)  # another process has drawn other random numbers
    resumed = run(config, tmp_path, dropout=0.2)
    unbroken = run(config, dropout=0.2)
    assert resumed.resumed_from == 16
    assert resumed.first_steps == [0, 8, 16], "one a process, whose time is not like the others'"
    assert losses(resumed) == losses(unbroken)
    for name in ("step", "lr", "grad_norm", "tokens"):
        assert [getattr(r, name) for r in resumed.steps] == [getattr(r, name) for r in unbroken.steps], name


def test_weights_after_a_resume_are_those_of_the_unbroken_run_and_so_in_bfloat16(tmp_path: Path) -> None:
    config = recipe(steps=12, checkpoint_every=5)
    stopped_after(7, config, tmp_path, dtype="bfloat16")
    resumed, unbroken = (new_state(config, dtype="bfloat16") for _ in range(2))
    train(resumed, sampler(), config, clock=CPUClock(), checkpoints=tmp_path)
    train(unbroken, sampler(), config, clock=CPUClock())
    weights = unbroken.module.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in resumed.module.state_dict().items())


def test_validations_and_step_seconds_of_before_are_kept(tmp_path: Path) -> None:
    class Clock:
        def mark(self) -> float:
            return 0.0

        def seconds(self, start: float, end: float) -> float:
            return 1 / 3

    config = recipe(seconds=5.0, checkpoint_every=4, validate_every=3)

    def once(checkpoints: Path | None, stop_at: int | None = None) -> TrainingHistory:
        def validate(model: torch.nn.Module) -> float:
            if stop_at is not None and len(seen) == stop_at:
                raise KeyboardInterrupt
            seen.append(1)
            return 1.5

        seen: list[int] = []
        return train(new_state(config), sampler(), config, clock=Clock(), validate=validate, checkpoints=checkpoints)

    with pytest.raises(KeyboardInterrupt):
        once(tmp_path, stop_at=2)
    resumed, unbroken = once(tmp_path), once(None)
    assert resumed.resumed_from == 9, "interrupted amid a validation it has a checkpoint of just before"
    assert resumed.validations == unbroken.validations
    assert resumed.steps == unbroken.steps, "a budget in seconds goes on where it stood"


def test_a_finished_run_resumes_to_its_own_history(tmp_path: Path) -> None:
    config = recipe(steps=6)
    finished = run(config, tmp_path)
    again = run(config, tmp_path)
    assert again.resumed_from == 6
    assert again.steps == finished.steps
    assert again.first_steps == [0]


def test_another_recipe_data_or_model_cannot_continue_a_run(tmp_path: Path) -> None:
    config = recipe(steps=6)
    run(config, tmp_path)
    with pytest.raises(CheckpointError, match="training configuration"):
        run(recipe(steps=7), tmp_path)
    with pytest.raises(CheckpointError, match="data, tokenizer or seed"):
        train(new_state(config), sampler(seed=1), config, clock=CPUClock(), checkpoints=tmp_path)
    with pytest.raises(CheckpointError, match="dtype"):
        train(new_state(config, dtype="bfloat16"), sampler(), config, clock=CPUClock(), checkpoints=tmp_path)
    other = new_state(config)
    other.model.blocks = other.model.blocks[:1]  # type: ignore[union-attr, index, assignment]
    with pytest.raises(CheckpointError, match="of another model"):
        train(other, sampler(), config, clock=CPUClock(), checkpoints=tmp_path)


def _train_in_a_process(folder: Path | None, answer: multiprocessing.connection.Connection) -> None:
    class TellingClock(CPUClock):
        told = False

        def mark(self) -> int:
            if not self.told:
                self.told = True
                answer.send("the first update begins")
            return super().mark()

    torch.set_num_threads(1)
    config = recipe(steps=60, checkpoint_every=2)
    history = train(new_state(config, dropout=0.1), sampler(), config, clock=TellingClock(), checkpoints=folder)
    answer.send((losses(history), history.resumed_from))


def _begin(folder: Path | None) -> tuple[multiprocessing.process.BaseProcess, multiprocessing.connection.Connection]:
    receiver, sender = FORKSERVER.Pipe(duplex=False)
    process = FORKSERVER.Process(target=_train_in_a_process, args=(folder, sender))
    process.start()
    sender.close()
    receiver.recv()
    return process, receiver


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_with_the_losses_of_an_unbroken_one(tmp_path: Path) -> None:
    process, receiver = _begin(None)
    began = time.monotonic()
    unbroken, _ = receiver.recv()
    seconds = time.monotonic() - began
    process.join(60)

    moments = random.SystemRandom()
    for _ in range(4):
        process, _ = _begin(tmp_path)
        time.sleep(moments.uniform(0.0, 0.25 * seconds))
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    process, receiver = _begin(tmp_path)
    resumed, resumed_from = receiver.recv()
    process.join(60)
    assert resumed_from is not None
    assert 0 < resumed_from < 60
    assert resumed == unbroken
