"""What a model exports is the same model: in transformers, in the readers of its own field, and imported again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import archbench
from archbench.errors import MissingHookError, UsageError
from parity import randomise

V, T = 61, 40
BY_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "gpt1": {"n_head": 2, "d_model": 24, "d_ff": 96},
    "gpt2": {"n_head": 2, "d_model": 24, "d_ff": 40},
    "llama": {"n_head": 4, "n_kv_head": 2, "d_model": 24, "d_head": 8, "d_ff": 40, "rope_theta": 500.0},
    "mistral": {"n_head": 4, "n_kv_head": 2, "d_model": 24, "d_head": 8, "d_ff": 40, "window": 7},
    "mixtral": {"n_head": 4, "n_kv_head": 2, "d_model": 24, "d_head": 8, "d_ff": 16, "n_expert": 3},
    "gemma": {"n_head": 3, "n_kv_head": 1, "d_model": 24, "d_head": 12, "d_ff": 40},
    "mamba2": {"n_head": 6, "n_group": 3, "d_model": 24, "d_head": 8, "d_state": 5, "tied_head": False},
    "hybrid": {
        "n_layer": 3, "n_head": 2, "window": 7, "d_model": 24, "d_recurrent": 32, "d_ff": 20, "rope_theta": 500.0,
    },
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "rwkv7": {
        "d_model": 64, "d_head": 32, "d_ff": 40, "decay_rank": 4, "rate_rank": 5, "value_rank": 6, "gate_rank": 7,
    },
    "gated-deltanet": {"n_head": 2, "d_model": 24, "d_head": 7, "d_value": 9, "d_ff": 20, "tied_head": False},
}  # fmt: skip
UNTYPICAL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gpt2", {"bias": False}),
    ("llama", {"tied_head": True}),
    ("mistral", {"window": None}),
    ("mixtral", {"window": 7, "n_active": 1}),
    ("mamba2", {"tied_head": True, "d_conv": 3}),
    ("hybrid", {"pattern": "ar", "n_kv_head": 2}),
    ("gated-deltanet", {"tied_head": True}),
)
"""Shapes that a configuration says and whose weights look otherwise."""


def sizes(name: str, **changes: Any) -> dict[str, Any]:
    return {"vocab_size": V, "context_length": T, "n_layer": 2} | (BY_TRANSFORMERS | OTHERS)[name] | changes


def random_model(name: str, **changes: Any) -> tuple[Any, Any, nn.Module]:
    """Architecture, configuration and a model of which no parameter, gain or bias has its initial value."""
    architecture = archbench.load(name)
    config = architecture.config("nano", **sizes(name, **changes))
    torch.manual_seed(0)
    model = architecture.build(config).eval()
    randomise(model, lambda parameter, tensor: tensor.dim() == 1 and name not in ("gemma", "hybrid"))  # gains of 1 + w
    return architecture, config, model


def written(folder: Path, name: str, **changes: Any) -> tuple[Any, nn.Module, dict[str, Tensor]]:
    """The model's configuration and the model; the folder then has it as transformers reads it."""
    architecture, config, model = random_model(name, **changes)
    weights = architecture.export_weights(model.state_dict(), config)
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(architecture.export_config(config)))
    return config, model, weights


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in (*BY_TRANSFORMERS, *OTHERS)), *UNTYPICAL], ids=str
)
def test_the_import_of_an_export_is_the_same_to_the_last_bit(name: str, changes: dict[str, Any]) -> None:
    architecture, config, model = random_model(name, **changes)
    weights = architecture.export_weights(model.state_dict(), config)
    published = json.loads(json.dumps(architecture.export_config(config)))
    assert architecture.import_config(published) == config
    again = architecture.import_weights(weights, config)
    assert again.keys() == model.state_dict().keys()
    for parameter, tensor in model.state_dict().items():
        assert torch.equal(again[parameter], tensor), parameter


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in BY_TRANSFORMERS), *(one for one in UNTYPICAL if one[0] in BY_TRANSFORMERS)],
    ids=str,
)
def test_transformers_computes_the_same_logits_whole_and_from_its_cache(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.24")
    _, ours, _ = written(tmp_path, name, **changes)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not {kind: names for kind, names in report.items() if names}, "every tensor has its place"
    tokens = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = ours(tokens)
        assert expected.abs().max() > 0.5, "the tolerance is small beside the logits"
        torch.testing.assert_close(theirs.eval()(tokens).logits, expected, atol=1e-5, rtol=0)
        if name == "gpt1":  # transformers gives it no cache
            return
        cache = transformers.DynamicCache(config=theirs.config)
        for start, end in [(0, 3), *((position, position + 1) for position in range(3, T))]:
            logits = theirs(tokens[:, start:end], cache=cache, use_cache=True).logits
            torch.testing.assert_close(logits, expected[:, start:end], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("gpt1", {"d_ff": 40}, "d_ff"),
        ("mamba2", {"n_head": 5, "n_group": 1}, "n_head"),
        ("hybrid", {"logit_cap": 0.0}, "logit_cap"),
    ],
)
def test_what_the_published_class_cannot_compute_is_refused(name: str, changes: dict[str, Any], field: str) -> None:
    architecture = archbench.load(name)
    with pytest.raises(UsageError) as refused:
        architecture.export_config(architecture.config("nano", **sizes(name, **changes)))
    assert field in refused.value.culprit


def test_the_hooks_are_optional(tmp_path: Path, minimal_plugin: str) -> None:
    (tmp_path / "plain.py").write_text(minimal_plugin)
    plain: Any = archbench.load("bigram", plugins=[tmp_path / "plain.py"])
    for hook, arguments in (("export_config", ({},)), ("export_weights", ({}, {}))):
        assert not plain.offers(hook)
        with pytest.raises(MissingHookError) as missing:
            getattr(plain, hook)(*arguments)
        assert hook in str(missing.value)
