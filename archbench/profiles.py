"""Profiles: how much work a run does. Plain values, so that the command line can name them without pydantic."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        "preset": "nano",
        "vocabulary": "tokenizer",
        "dtype": "float32",
        "data": {"corpus": "shakespeare", "tokenizer": "byte"},
        "training": {"steps": 20, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 10},
        "quality": {"batch_size": 16},
        "speed": {"batch_sizes": [1], "new_tokens": 8, "repeats": 3, "warmup": 1},
    },
    "quick": {
        "preset": "nano",
        "vocabulary": "tokenizer",
        "dtype": "float32",
        "data": {"corpus": "shakespeare", "tokenizer": "bpe:1024"},
        "training": {
            # Post-LN transformers need a long warm-up at this rate: with 5 %, GPT-1 learns only token frequencies.
            "tokens": 1_000_000,
            "batch_size": 8,
            "learning_rate": 2e-3,
            "warmup_fraction": 0.2,
            "validate_every": 250,
            "checkpoint_every": 250,
        },
        "quality": {"batch_size": 16},
        "speed": {"batch_sizes": [1, 8], "new_tokens": 32, "repeats": 5, "warmup": 2},
    },
    "standard": {
        "preset": "paper",
        "vocabulary": "preset",
        "dtype": "bfloat16",
        "data": {"corpus": "shakespeare", "tokenizer": "bpe:8192"},
        "training": {
            "tokens": 20_000_000,
            "batch_size": 32,
            "learning_rate": 2.5e-4,
            "validate_every": 200,
            "checkpoint_every": 200,
        },
        "quality": {"batch_size": 32},
        "speed": {"batch_sizes": [1, 16], "new_tokens": 128, "repeats": 10, "warmup": 3},
    },
    "paper": {
        "preset": "paper",
        "vocabulary": "preset",
        "dtype": "bfloat16",
        "data": {"corpus": "shakespeare", "tokenizer": "bpe:8192"},
        "training": {
            # Radford et al. 2018, section 4.1: batches of 64 × 512 tokens, Adam at 2.5e-4, warm-up over 2,000 updates
            # of about 2.4 million (100 epochs of BooksCorpus), cosine to zero, decoupled decay 0.01.
            "tokens": 80_000_000_000,
            "batch_size": 64,
            "learning_rate": 2.5e-4,
            "betas": [0.9, 0.999],
            "weight_decay": 0.01,
            "min_lr_ratio": 0.0,
            "warmup_fraction": 0.001,
            "validate_every": 2000,
            "checkpoint_every": 2000,
        },
        "quality": {"batch_size": 32},
        "speed": {"batch_sizes": [1, 16, 64], "new_tokens": 64, "repeats": 20, "warmup": 3},
    },
}
"""smoke: seconds. quick: a minute or two on two CPU cores. standard: a GPU. paper: the published recipe."""


def filled(defaults: Mapping[str, Any], values: Mapping[str, Any], budgets: Collection[str]) -> dict[str, Any]:
    """``values`` over ``defaults``, section by section; a budget in ``values`` replaces the profile's."""
    from pydantic import BaseModel

    result = dict(defaults)
    if any(values.get(budget) is not None for budget in budgets):
        result = {name: value for name, value in result.items() if name not in budgets}
    for name, value in values.items():
        default = result.get(name)
        section = dict(value) if isinstance(value, BaseModel) else value
        result[name] = (
            filled(default, section, budgets) if isinstance(default, dict) and isinstance(section, dict) else section
        )
    return result
