"""Plugins that are wrong in one place: the text of a right one, edited or with lines added, loaded from a file."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import archbench
from archbench.testing.subject import Subject

ROOT = Path(__file__).parent.parent
SOURCES = {"gpt1": ROOT / "plugins/gpt1.py", "bigram": ROOT / "tests/example_plugins/bigram.py"}
TINY: dict[str, dict[str, Any]] = {
    "gpt1": {"vocab_size": 61, "context_length": 24, "n_layer": 1, "d_model": 32, "n_head": 2, "d_ff": 64},
    "bigram": {"vocab_size": 61, "context_length": 24},
}


Edit = tuple[str, str]
"""Old text and new."""


def tiny(name: str, **sizes: Any) -> Subject:
    """The plugin as it is, at a size of milliseconds."""
    architecture = archbench.load(name, plugins=[] if name == "gpt1" else [SOURCES[name]])
    return Subject(architecture, architecture.config("nano", **TINY[name] | sizes))


def edited(folder: Path, name: str, *edits: Edit, more: str = "", **sizes: Any) -> Subject:
    """The same with each of ``edits`` made everywhere, and ``more`` text before its first hook."""
    text = SOURCES[name].read_text().replace(f'"{name}"', '"wrong"')
    for old, new in [*edits, ("@hookimpl\ndef describe", f"{more}\n\n@hookimpl\ndef describe")]:
        assert old in text, f"the edit of {old!r} changes nothing: {name} is written in another way now"
        text = text.replace(old, new)
    path = folder / "wrong.py"
    path.write_text(text)
    architecture = archbench.load("wrong", plugins=[path])
    return Subject(architecture, architecture.config("nano", **TINY[name] | sizes))


TEMPLATE = """
import os, random, signal, threading
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from archbench import ArchitectureInfo, ModelConfig, decode_without_cache, hookimpl, next_token_step

class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, config.vocab_size)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("mean", torch.zeros(16))

    def past(self, x):  # the mean of each position and those before it
        return self.mix(x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)[:, None])

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = self.drop(x + torch.tanh(self.past(x)))
{forward}
        return self.head(x)

@hookimpl
def describe():
    presets = {{"nano": ModelConfig(vocab_size=61, context_length=24)}}
    return ArchitectureInfo("wrong", "A wrong model", "Nobody 2020", ModelConfig, presets)

@hookimpl
def build(config):
{build}
    return Model(config)

@hookimpl
def train_step(state, batch):
{train_step}
    return next_token_step(state, batch)

@hookimpl
def generate(model, prompt, max_new_tokens, sampling):
{generate}
    return decode_without_cache(model, prompt, max_new_tokens, sampling)
"""


def plugin(folder: Path, forward: str = "", *, build: str = "", train_step: str = "", generate: str = "") -> Subject:
    """A right model with lines added to its forward pass (``x`` is (B, T, C)) or to its hooks."""
    parts = {"build": build, "train_step": train_step, "generate": generate}
    body = {name: textwrap.indent(textwrap.dedent(lines), " " * 4) for name, lines in parts.items()}
    file = folder / "wrong.py"
    file.write_text(TEMPLATE.format(forward=textwrap.indent(textwrap.dedent(forward), " " * 8), **body))
    architecture = archbench.load("wrong", plugins=[file])
    return Subject(architecture, architecture.config("nano"))
