"""What an architecture's hooks return and raise is checked at the door, and costs next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import archbench
from archbench import errors

PROMPT = torch.zeros(2, 3, dtype=torch.int64)
SAMPLING = archbench.Sampling(greedy=True)


@pytest.fixture
def bigram(install: Callable[..., Path], minimal_plugin: str) -> Callable[..., archbench.Architecture]:
    """The example plugin with pieces of its source replaced."""

    def load(**replace: str) -> archbench.Architecture:
        source = minimal_plugin
        for hook, body in replace.items():
            start = source.index(f"def {hook}(")
            stop = source.find("\n\n", start)
            signature = source[start : source.index("\n", start)]
            source = source[:start] + f"{signature}\n    {body}\n" + (source[stop:] if stop > 0 else "")
        install("acme-bigram", "bigram", source)
        return archbench.load("bigram")

    return load


def model_of(architecture: archbench.Architecture) -> torch.nn.Module:
    return architecture.build(architecture.config())


def test_a_working_plugin_builds_and_generates_through_the_same_door_as_the_built_in(bigram: Any) -> None:
    for architecture in (bigram(), archbench.load("gpt1")):
        model = architecture.build(architecture.config(vocab_size=300, context_length=16))
        assert model(PROMPT).shape == (2, 3, 300)
        tokens = list(architecture.generate(model, PROMPT, 4, SAMPLING))
        assert [tuple(token.shape) for token in tokens] == [(2,)] * 4


@pytest.mark.parametrize(
    ("body", "phrase"),
    [("pass", "build hook returned None"), ("return {'a': 1}", "build hook returned a dict. Return a torch.nn.Module")],
)
def test_build_must_return_a_module(bigram: Any, body: str, phrase: str) -> None:
    with pytest.raises(errors.HookResultError, match=phrase):
        model_of(bigram(build=body))


@pytest.mark.parametrize(
    ("body", "phrase"),
    [
        ("pass", "train_step hook returned None"),
        ("return 1.5", "returned a float"),
        ("import torch; return torch.zeros(3)", r"a Tensor of shape \(3,\) and dtype torch.float32.*shape \(\)"),
    ],
)
def test_train_step_must_return_one_loss(bigram: Any, body: str, phrase: str) -> None:
    with pytest.raises(errors.HookResultError, match=phrase):
        bigram(train_step=body).train_step(None, None)


@pytest.mark.parametrize(
    ("body", "phrase"),
    [
        ("pass", "generate hook returned None"),
        ("return [prompt]", "returned a list. Return an iterator"),
        ("return iter([prompt])", r"iterator that yields a Tensor of shape \(2, 3\).*shape \(2,\) and dtype int64"),
        ("yield prompt[:, 0].float()", "dtype torch.float32"),
        ("yield None", "iterator that yields None"),
    ],
)
def test_generate_must_return_an_iterator_of_token_ids(bigram: Any, body: str, phrase: str) -> None:
    architecture = bigram(generate=body)
    with pytest.raises(errors.HookResultError, match=phrase):
        list(architecture.generate(model_of(architecture), PROMPT, 4, SAMPLING))


def test_what_a_hook_raises_is_named_and_chained_also_in_the_middle_of_a_text(bigram: Any) -> None:
    architecture = bigram(generate="yield prompt[:, 0]; yield prompt[:, 1]; raise ZeroDivisionError('oh')")
    tokens = architecture.generate(model_of(architecture), PROMPT, 4, SAMPLING)
    assert next(tokens).shape == next(tokens).shape == (2,)
    with pytest.raises(errors.HookFailedError, match=r"generate.*ZeroDivisionError: oh") as caught:
        next(tokens)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_archbenchs_own_errors_pass_through_a_hook_unchanged(bigram: Any) -> None:
    architecture = bigram()
    too_long = torch.zeros(1, 65, dtype=torch.int64)
    with pytest.raises(errors.UsageError, match="prompt"):
        list(architecture.generate(model_of(architecture), too_long, 4, SAMPLING))


def test_a_caller_that_stops_early_ends_the_plugins_generator_at_once(bigram: Any) -> None:
    architecture = bigram(
        generate="try:\n        yield prompt[:, 0]; yield prompt[:, 0]\n    finally:\n        model.ended = True"
    )
    model = model_of(architecture)
    tokens: Iterator[torch.Tensor] = architecture.generate(model, PROMPT, 4, SAMPLING)
    next(tokens)
    tokens.close()  # type: ignore[attr-defined]
    assert model.ended


def test_import_weights_is_optional_and_its_absence_is_named(bigram: Any) -> None:
    architecture = bigram()
    with pytest.raises(errors.MissingHookError, match=r"import_weights\(state_dict, config\)"):
        architecture.import_weights({}, architecture.config())


def test_the_facade_costs_less_than_ten_microseconds_a_training_step(bigram: Any) -> None:
    architecture = bigram(train_step="return state")
    loss = torch.zeros(())
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(200):
            architecture.train_step(loss, None)
        best = min(best, (time.perf_counter() - start) / 200)
    assert best < 10e-6
