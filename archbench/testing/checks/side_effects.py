"""The hooks change nothing that is not theirs: not their arguments, not the seed, nothing that the process shares."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor, nn

from archbench.inference.sampling import Sampling
from archbench.testing.evaluation import Fault, check
from archbench.testing.global_state import NUMERICS, SURROUNDINGS, Watch
from archbench.testing.subject import Subject, logits_of, seed_generators
from archbench.training.generators import forked_generators

POSITIONS, NEW_TOKENS = 32, 4
"""Enough for a hook to do all that it does, and cheap for a model of 100 M parameters."""

SHOWN = 60
"""Most characters of printed text that a note repeats."""


@check(gate=True, needs=("logits", "generate", "train_step"))
def check_side_effects(subject: Subject) -> str:
    """What one architecture changes for the whole process affects the measurements of the next one."""
    for change in subject.import_changes:
        if not (library := _package(change.wrapper)) or library == _package(str(subject.architecture.file)):
            raise Fault(f"importing it changes all that runs later: {change.what}. {change.advice}")
        subject.note(f"on import {library} wraps what is not its own: {change.what}, which is put back")
    architecture, device, T = subject.architecture, subject.device, min(subject.T, POSITIONS)
    models: list[nn.Module] = []
    with _generators_kept(device):
        _observe("build", subject, lambda seed: models.append(subject.build(seed)))
        model, trained = models

        tokens = subject.tokens(2, T)
        own = {f"model's {name!r}": tensor for name, tensor in model.eval().state_dict(keep_vars=True).items()}
        _observe("the forward pass", subject, lambda seed: logits_of(model, tokens), {"tokens": tokens, **own})
        _observe("the forward pass", subject, lambda seed: model(tokens))  # no_grad would put the grad mode back

        batch, state = subject.batch(2, T), subject.state(trained)
        given = {"batch's inputs": batch.inputs, "batch's targets": batch.targets}
        _observe("train_step", subject, lambda seed: architecture.train_step(state, batch), given)

        prompt = subject.tokens(2, max(1, T // 2))

        def generate(seed: int) -> None:
            for _ in architecture.generate(model, prompt, NEW_TOKENS, Sampling()):
                pass

        _observe("generate", subject, generate, {"prompt": prompt, **own})
    return "build, forward, train_step and generate change nothing that is not theirs"


def _package(file: str) -> str:
    """The installed package that has the file; "" where none has."""
    file = Path(file).as_posix()
    return file.rpartition("/site-packages/")[2].partition("/")[0] if "/site-packages/" in file else ""


def _observe(
    hook: str, subject: Subject, call: Callable[[int], object], given: Mapping[str, Tensor] | None = None
) -> None:
    """Call a hook under two seeds; Fault where it leaves a trace besides its result.

    Args:
        hook: its name.
        subject: what is checked; printing is noted there.
        call: calls it; takes the seed that is set.
        given: name -> tensor that it may read but not write.
    """
    given = given or {}
    originals = {name: tensor.clone() for name, tensor in given.items()}
    left: list[dict[str, bytes]] = []
    for seed in (1, 2):
        watch = Watch(NUMERICS + SURROUNDINGS)
        try:
            _seed(seed, subject.device)
            with _standard_output() as output:
                call(seed)
            left.append(_generator_states(subject.device))
            changes = watch.changes() + watch.threads()
        finally:
            watch.close()
        if changes:
            raise Fault(f"in {hook} {', and '.join(change.what for change in changes)}. {changes[0].advice}")
        if output.text:
            subject.note(f"{hook} prints {output.text[:SHOWN]!r}, which a run shows on standard error")
        for name, tensor in given.items():
            _assert_kept(hook, name, tensor, originals[name])
        if torch.initial_seed() != seed:
            raise _seeded(hook, "torch", f"called under seed {seed} it leaves {torch.initial_seed()} behind")
    for name, state in left[0].items():
        if left[1][name] == state:
            raise _seeded(hook, name, "called under two seeds it leaves the same generator behind")


def _seeded(hook: str, library: str, how: str) -> Fault:
    return Fault(
        f"{hook} sets the seed of {library}: {how}, so that runs of different seeds are one and the same. Draw from "
        "torch's generator as it is, or from a torch.Generator of your own"
    )


def _assert_kept(hook: str, name: str, tensor: Tensor, original: Tensor) -> None:
    if tensor.shape != original.shape:
        raise Fault(f"{hook} changed the shape of the {name} from {tuple(original.shape)} to {tuple(tensor.shape)}")
    if torch.equal(tensor, original):
        return
    places = (tensor != original).nonzero()
    place = tuple(places[0].tolist())
    raise Fault(
        f"{hook} changed {len(places)} of the {tensor.numel()} values of the {name} in place, at {list(place)} from "
        f"{original[place].item()} to {tensor[place].item()}: the caller goes on using them. Change a clone()"
    )


@dataclass
class _Output:
    text: str = ""


@contextmanager
def _standard_output() -> Iterator[_Output]:
    """Captures what is written to standard output, by Python or past it; nothing gets through."""
    output = _Output()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        stdout, copy = sys.stdout, None
        _flush(stdout)
        with suppress(OSError):  # a process may have no standard output
            copy = os.dup(1)
            os.dup2(file.fileno(), 1)
        sys.stdout = file
        try:
            yield output
        finally:
            sys.stdout = stdout
            _flush(file)
            if copy is not None:
                os.dup2(copy, 1)
                os.close(copy)
            file.seek(0)
            output.text = file.read()


def _flush(file: IO[str] | None) -> None:
    for stream in (file, sys.__stdout__):
        if stream is not None:
            with suppress(OSError, ValueError):  # closed, so nothing is left to write
                stream.flush()


def _seed(seed: int, device: torch.device) -> None:
    seed_generators(seed, device)
    np.random.seed(seed)  # the global one, on purpose: a hook must not touch it
    random.seed(seed)


def _generator_states(device: torch.device) -> dict[str, bytes]:
    """Library -> the state of its global random number generator."""
    numpy_state = np.random.get_state()
    assert isinstance(numpy_state, tuple)
    states = {"torch": torch.get_rng_state().numpy().tobytes(), "random": repr(random.getstate()).encode()}
    states["numpy"] = numpy_state[1].tobytes() + repr(numpy_state[2:]).encode()
    if device.type == "cuda":
        states["torch.cuda"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return states


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with forked_generators(device):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
