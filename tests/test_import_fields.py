"""What is imported is what is computed: each field of a published configuration is followed, known, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import archbench
from archbench.errors import ArchbenchError, CheckpointError
from archbench.nn.published import IRRELEVANT
from parity import randomise

transformers = pytest.importorskip("transformers")

T = 16
GPT: dict[str, Any] = {"vocab_size": 40, "n_positions": T, "n_embd": 16, "n_layer": 1, "n_head": 2}
LLAMA: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": T,
}  # fmt: skip
MAMBA: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 8, "state_size": 3,
    "n_groups": 2,
}  # fmt: skip
GRIFFIN: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 48, "attention_window_size": 5,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt1": ("OpenAIGPTConfig", GPT),
    "gpt2": ("GPT2Config", {**GPT, "n_inner": 24}),
    "llama": ("LlamaConfig", LLAMA),
    "mistral": ("MistralConfig", {**LLAMA, "sliding_window": 5}),
    "mixtral": ("MixtralConfig", {**LLAMA, "sliding_window": 5, "num_local_experts": 3}),
    "gemma": ("GemmaConfig", LLAMA),
    "mamba2": ("Mamba2Config", MAMBA),
    "hybrid": ("RecurrentGemmaConfig", GRIFFIN),
}
"""Architecture -> transformers' configuration of its model type, and sizes of a tiny one."""

OTHERS: dict[str, tuple[Any, ...]] = {
    "n_embd": (24,), "hidden_size": (24,), "num_attention_heads": (2,), "num_key_value_heads": (1, 4), "n_head": (4,),
    "intermediate_size": (32,),    "head_dim": (4,), "vocab_size": (50,), "sliding_window": (3, 7),
    "hidden_act": ("gelu", "relu", "gelu_pytorch_tanh", "silu"), "afn": ("relu", "silu"),
    "activation_function": ("gelu", "relu", "gelu_pytorch_tanh"),
    "rope_parameters": (
        {"rope_type": "default", "rope_theta": 77.0},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
        {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
    ),
    "model_type": ("other",), "n_groups": (1, 4), "lru_width": (32,), "expand": (1,), "block_types": (["attention"],),
    "time_step_limit": ((0.0, 0.5), (0.01, float("inf"))),
}  # fmt: skip
"""Other values of fields that cannot have any."""


def others(field: str, value: Any) -> tuple[Any, ...]:
    """Values of a field that differ from ``value``."""
    if field in OTHERS:
        return tuple(other for other in OTHERS[field] if other != value)
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int | float):
        return (value + (1 if isinstance(value, int) else 0.25),)
    return (7, True, 0.5, "other") if value is None else ()


def changes(published: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(field, what was done to it, the configuration after it), for every field."""
    for field, value in published.items():
        for other in others(field, value):
            yield field, f"is {other!r}", {**published, field: other}
        yield field, "is null", {**published, field: None}
        yield field, "is absent", {name: one for name, one in published.items() if name != field}
    if "rope_parameters" in published:  # as transformers 4 wrote it
        older = {name: one for name, one in published.items() if name != "rope_parameters"}
        yield "rope_theta", "is 77", {**older, "rope_theta": 77.0}
        yield "rope_scaling", "is plain", {**older, "rope_theta": 77.0, "rope_scaling": {"type": "default"}}
        yield "rope_scaling", "has the base", {**older, "rope_scaling": {"rope_type": "default", "rope_theta": 77.0}}
        yield "rope_scaling", "wins", {**published, "rope_scaling": {"rope_type": "default", "rope_theta": 77.0}}
        yield "partial_rotary_factor", "is a half", {**published, "partial_rotary_factor": 0.5}


def accepted(kind: str, published: dict[str, Any]) -> Any:
    """transformers' configuration; None if it refuses this one, too."""
    try:
        return getattr(transformers, kind).from_dict(published)
    except Exception:  # noqa: BLE001  (each thing that it refuses has an error of its own)
        return None


def theirs(config: Any, tokens: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor] | None:
    """Random weights of transformers' model and their logits; None if it cannot run so."""
    torch.manual_seed(0)
    try:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        randomise(model)
        with torch.inference_mode():
            return model.state_dict(), model(tokens).logits
    except Exception:  # noqa: BLE001  (each thing that it refuses has an error of its own)
        return None


def disagreements(name: str, *, irrelevant: bool) -> tuple[list[str], set[str], set[str]]:
    """What is imported and not computed; the fields that are refused, and those that are followed.

    Args:
        irrelevant: whether to compute with other values of what is known not to matter, too.
    """
    architecture, (kind, sizes) = archbench.load(name), FAMILIES[name]
    published = getattr(transformers, kind)(**sizes).to_dict()
    if name == "hybrid":  # transformers writes it, and computes it from two others
        del published["head_dim"]
    tokens = torch.randint(40, (2, T), generator=torch.Generator().manual_seed(0))
    wrong: list[str] = []
    refused, followed, compared = set(), set(), []
    for field, what, changed in [("", "unchanged", published), *changes(published)]:
        try:
            config = architecture.import_config(changed)
        except CheckpointError as error:
            refused.add(field)
            if error.culprit != f"published configuration, field {field}" and accepted(kind, changed):
                wrong.append(f"{field} {what}: {error}")
            continue
        if field in IRRELEVANT and not irrelevant:
            continue
        if (meant := accepted(kind, changed)) is None:
            continue
        if (same := (meant.to_dict(), config)) in compared:
            continue
        compared.append(same)
        if (expected := theirs(meant, tokens)) is None:
            continue
        followed.add(field)
        weights, logits = expected
        try:
            ours = architecture.build(config).eval()
            ours.load_state_dict(architecture.import_weights(weights, config))
            with torch.inference_mode():
                difference = (ours(tokens) - logits).abs().max().item()
        except ArchbenchError as error:  # weights of another shape, say
            wrong.append(f"{field} {what}: {error}")
        else:
            if not difference < 1e-4:
                wrong.append(f"{field} {what}: logits differ by {difference:.2g}")
    return wrong, refused, followed


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_is_followed_or_known_not_to_matter_or_refused_by_name(name: str) -> None:
    wrong, refused, followed = disagreements(name, irrelevant=False)
    assert not wrong, "\n".join(wrong)
    assert {"", "vocab_size"} <= followed
    assert "model_type" in refused


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_known_not_to_matter_does_not(name: str) -> None:
    wrong, _, followed = disagreements(name, irrelevant=True)
    assert not wrong, "\n".join(wrong)
    assert "pad_token_id" in followed
    assert {"initializer_range", "w_init_variance_scale"} & followed, "how weights are drawn"


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma", {"hidden_activation": "gelu"}, "hidden_activation"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"logit_scale": 0.06}, "logit_scale"),
        ("mixtral", {"hidden_size": 16, "n_shared_experts": 1}, "n_shared_experts"),
    ],
)
def test_what_an_architecture_does_not_compute_is_refused_by_name(
    name: str, change: dict[str, Any], field: str
) -> None:
    kind, sizes = FAMILIES[name]
    with pytest.raises(CheckpointError) as caught:
        archbench.load(name).import_config({**getattr(transformers, kind)(**sizes).to_dict(), **change})
    assert caught.value.culprit == f"published configuration, field {field}"


def test_a_window_that_mistral_does_not_name_is_transformers_default() -> None:
    published = transformers.MistralConfig(**LLAMA).to_dict()
    del published["sliding_window"]
    config: Any = archbench.load("mistral").import_config(published)
    assert config.window == transformers.MistralConfig().sliding_window == 4096


def test_a_hook_need_not_look_at_what_is_null_or_private_or_known(minimal_plugin: str, tmp_path: Path) -> None:
    config = "ModelConfig(vocab_size=published['size'], context_length=8)"
    hook = f"@hookimpl\ndef import_config(published):\n    return {config}\n"
    (tmp_path / "plugin.py").write_text(f"{minimal_plugin}\n\n{hook}")
    architecture = archbench.load("bigram", plugins=[tmp_path / "plugin.py"])
    known = {"size": 77, "use_cache": True, "_name_or_path": "there", "head_dim": None}
    assert architecture.import_config(known).vocab_size == 77
    with pytest.raises(CheckpointError, match="field head_dim"):
        architecture.import_config({**known, "head_dim": 3})
