"""Families are made equally large without becoming something else, and one that cannot be says how near it came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import archbench
from archbench.errors import ConfigError, HookFailedError, UnknownNameError, UsageError
from archbench.measure.flops import measured_cache_bytes
from archbench.study.matching import Match, match
from archbench.testing.subject import Subject

NAMES = [entry.name for entry in archbench.available() if entry.package == "archbench"]
GIVEN = {"vocab_size": 1024, "context_length": 128}
GPT1_NANO = 2 * (12 * 192**2 + 13 * 192)
LLAMA_NANO = 2 * (192 * (6 + 2 * 2) * 32 + 192**2 + 3 * 192 * 512 + 2 * 192) + 192

FEW = ("llama", "mamba2", "hybrid")
"""Of each way to be made larger one: heads and feed-forward layers, the heads of a recurrence, a pattern of both."""
few = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FEW else [pytest.mark.slow]) for name in NAMES]
)


def matched(name: str, target: float, *arguments: Any, preset: str = "nano", **given: Any) -> Match:
    return match(archbench.load(name), preset, {**GIVEN, **given}, target, *arguments)


def config_of(found: Match) -> Any:
    return archbench.load(found.architecture).config("nano", **found.overrides)


def counted(model: nn.Module, config: Any) -> int:
    """Non-embedding active parameters by the names that the built-in plugins give theirs."""
    outside = ("embedding.", "position_embedding.", "output.")
    total = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(outside))
    experts = sum(
        p.numel() for name, p in model.named_parameters() if name.endswith(("experts.gate_up", "experts.down"))
    )
    return total - (experts * (config.n_expert - config.n_active) // config.n_expert if experts else 0)


def alternating(targets: tuple[float, float], named: Sequence[str] = NAMES) -> list[Any]:
    """Each family named with one of the targets, in turns; all with both where slow tests are asked for."""
    return [
        pytest.param(name, target, marks=[] if name in named and (number + side) % 2 == 0 else [pytest.mark.slow])
        for number, name in enumerate(NAMES)
        for side, target in enumerate(targets)
    ]


@pytest.mark.parametrize(("name", "target"), alternating((GPT1_NANO, LLAMA_NANO)))
def test_every_built_in_nano_is_matched_to_within_2_percent(name: str, target: int) -> None:
    found = matched(name, target)
    config = config_of(found)
    size = counted(archbench.load(name).build(config), config)
    assert found.size.non_embedding_active_parameters == size
    assert found.deviation == size / target - 1
    assert abs(size / target - 1) <= 0.02
    assert (found.matched, found.reason) == (True, None)


@few
def test_a_few_percent_are_found_without_touching_width_depth_or_heads(name: str) -> None:
    found, preset = matched(name, GPT1_NANO), archbench.load(name).config("nano")
    changed = set(found.overrides) - set(GIVEN)
    # Mamba-2 has no feed-forward layer; its share of the parameters is in the heads beside the model's width.
    assert changed <= {"n_head" if name == "mamba2" else "d_ff"}
    if name != "mamba2":
        assert 0.5 <= config_of(found).d_ff / preset.d_ff <= 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "target"), alternating((3e5, 2e6), (*FEW, "rwkv7")))
def test_much_more_or_less_keeps_depth_and_the_family_s_proportions(name: str, target: float) -> None:
    found = matched(name, target)
    assert found.matched, found.reason
    config, preset = config_of(found), archbench.load(name).config("nano")
    ratio = config.d_model / preset.d_model  # type: ignore[attr-defined]
    assert config.n_layer == preset.n_layer  # type: ignore[attr-defined]
    assert config.d_model % 4 == 0
    assert (ratio > 1) == (target > 1e6)
    for width in ("d_ff", "d_recurrent"):
        if hasattr(config, width):
            assert 0.5 <= getattr(config, width) / getattr(preset, width) / ratio <= 2
    if name != "mamba2" and hasattr(config, "d_head") and hasattr(config, "n_head"):
        inner, before = config.n_head * config.d_head, preset.n_head * preset.d_head  # type: ignore[attr-defined]
        assert inner * preset.d_model == before * config.d_model  # type: ignore[attr-defined]
    if hasattr(config, "d_head"):
        assert config.d_head % 2 == 0


@pytest.mark.parametrize("name", ["mistral", "mamba2"])
def test_a_published_size_becomes_a_nano_of_its_proportions_not_many_narrow_layers(name: str) -> None:
    architecture = archbench.load(name)
    found = match(architecture, "paper", {"context_length": 128, "vocab_size": 257}, target=889_728)
    assert found.matched
    large: Any = architecture.config("paper")
    small: Any = architecture.config("paper", **found.overrides)
    deeper, wider = small.n_layer / large.n_layer, small.d_model / large.d_model
    assert 0.5 < deeper / wider < 2


@pytest.mark.parametrize("name", ["mixtral", "mamba2"])
def test_a_matched_model_trains(name: str) -> None:
    subject = Subject(archbench.load(name), config_of(matched(name, 2e6)))
    model = subject.build()
    before = [parameter.clone() for parameter in model.parameters()]
    loss = subject.architecture.train_step(subject.state(model.train()), subject.batch(2, 32))
    assert 5 < float(loss) < 9  # ln 1024 = 6.9
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_preset_within_the_tolerance_is_left_as_it_is() -> None:
    found = matched("gpt2", GPT1_NANO)  # gpt2 has a last norm more
    assert found.overrides == GIVEN
    assert found.matched
    assert found.deviation == pytest.approx(2 * 192 / GPT1_NANO)


def test_fields_set_by_the_user_are_never_varied() -> None:
    for given in ({"d_model": 192, "d_ff": 512}, {"n_layer": "3", "n_head": 6}):
        found = matched("llama", 1.4e6, **given)
        assert found.matched, (given, found.reason)
        assert {**found.overrides, **given} == found.overrides


def test_a_family_whose_fields_are_all_set_says_so() -> None:
    fields: dict[str, Any] = {"n_layer": 2, "d_model": 192, "d_ff": 512, "n_head": 6, "n_kv_head": 2, "d_head": 32}
    found = matched("llama", 1e6, **fields)
    assert not found.matched
    assert found.reason is not None
    assert "787,392" in found.reason
    assert "n_layer, d_model, n_head, d_head, n_kv_head, d_ff" in found.reason


def test_an_unmatched_family_says_how_near_it_came_and_with_which_fields() -> None:
    found = matched("llama", 5e6, n_layer=2, d_model=192)
    config = config_of(found)
    assert (found.matched, config.n_layer, config.d_model) == (False, 2, 192)
    assert found.deviation is not None
    assert -0.9 < found.deviation < -0.02
    assert found.reason is not None
    size = found.size.non_embedding_active_parameters
    assert f"{size:,}" in found.reason
    assert f"{-found.deviation:.1%}" in found.reason
    assert f"d_ff={config.d_ff}" in found.reason
    assert "n_layer, d_model" in found.reason


@pytest.fixture
def plugin(tmp_path: Path, minimal_plugin: str) -> Callable[..., archbench.Architecture]:
    """The bigram with another configuration and another model."""

    def write(fields: str, body: str) -> archbench.Architecture:
        source = minimal_plugin.replace("class Bigram(nn.Embedding)", "class Unused(nn.Embedding)")
        source = source.replace("@hookimpl\ndef describe", f"{fields}\n\n{body}\n\n@hookimpl\ndef describe")
        source = source.replace('"nano": ModelConfig(', '"nano": Config(').replace(
            'section 3", ModelConfig', 'x", Config'
        )
        (tmp_path / "bigram.py").write_text("from pydantic import Field\nimport torch\n" + source)
        return archbench.load("bigram", [tmp_path / "bigram.py"])

    return write


NARROW = """
class Bigram(nn.Module):
    def __init__(self, config):
        super().__init__()
        {first}
        width = getattr(config, "d_ff", 40)
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, 8)
        self.up, self.down = nn.Linear(8, width, bias=False), nn.Linear(width, 8, bias=False)
        self.output = nn.Linear(8, config.vocab_size, bias=False)

    def forward(self, tokens):
        return self.output(self.down(self.up(self.embedding(tokens))))
"""
WITH_D_FF = """
class Config(ModelConfig):
    d_ff: int = Field(64, gt=0, description="F, width")
"""

Plugin = Callable[..., archbench.Architecture]


def test_a_plugin_of_one_size_cannot_be_matched_and_says_which_fields_it_would_need(plugin: Plugin) -> None:
    architecture = plugin("class Config(ModelConfig): pass", NARROW.format(first=""))
    found = match(architecture, "nano", GIVEN, 1000)
    assert not found.matched
    assert found.overrides == GIVEN
    assert found.deviation == pytest.approx(-0.36)
    assert found.reason is not None
    assert "640" in found.reason
    assert "36.0%" in found.reason
    assert "n_layer, d_model" in found.reason
    assert match(architecture, "nano", GIVEN, 640).matched


def test_shapes_that_a_plugin_refuses_with_a_value_error_are_left_out(plugin: Plugin) -> None:
    refusal = "if config.d_ff % 16:\n            raise ValueError('not a multiple of 16')"
    found = match(plugin(WITH_D_FF, NARROW.format(first=refusal)), "nano", GIVEN, 16 * 80)
    assert (found.matched, found.overrides) == (True, {**GIVEN, "d_ff": 80})


def test_a_plugin_that_breaks_on_the_way_raises_its_own_error(plugin: Plugin) -> None:
    broken = "if config.d_ff > 64:\n            raise KeyError('no such thing')"
    with pytest.raises(HookFailedError, match="no such thing"):
        match(plugin(WITH_D_FF, NARROW.format(first=broken)), "nano", GIVEN, 16 * 80)


def test_what_the_user_got_wrong_is_an_error_and_no_reason() -> None:
    with pytest.raises(UnknownNameError, match="preset"):
        matched("llama", 1e6, preset="tiny")
    with pytest.raises(UsageError, match="non-embedding active parameters"):
        matched("llama", 0)  # what a baseline like the bigram has
    with pytest.raises(ConfigError, match="there is no such field"):
        matched("gpt1", 1e6, n_kv_head=2)


def test_the_same_arguments_give_the_same_shape_and_disturb_no_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = (matched("gemma", 1.7e6) for _ in range(2))
    assert first == second
    assert list(first.overrides) == list(second.overrides)
    assert torch.equal(torch.get_rng_state(), before)


def test_states_are_made_equal_by_what_costs_few_parameters() -> None:
    target = 2 * 2 * 6 * 32 * 128 * 4  # gpt1 nano's: keys and values, L, H, D, T, bytes of a float32
    for name, changed in (("llama", {"n_kv_head": 6}), ("mistral", {"n_kv_head": 6, "window": 128})):
        found = matched(name, target, "state_bytes")
        assert found.overrides == {**GIVEN, **changed}
        assert (found.matched, found.deviation) == (True, 0.0)
        assert measured_cache_bytes(archbench.load(name).build(config_of(found)), 1, 128) == target


@few
def test_a_state_is_matched_or_the_reason_given(name: str) -> None:
    target = 131_072  # llama nano's
    found = matched(name, target, "state_bytes")
    model = archbench.load(name).build(config_of(found))
    assert found.matched, found.reason
    assert measured_cache_bytes(model, 1, 128) == pytest.approx(target, rel=0.02)


def test_an_architecture_without_a_cache_has_no_state_to_match(plugin: Plugin) -> None:
    found = match(plugin(WITH_D_FF, NARROW.format(first="")), "nano", GIVEN, 1000, "state_bytes")
    assert (found.matched, found.deviation, found.size.state_bytes) == (False, None, None)
    assert "cache" in found.reason


def test_a_state_out_of_reach_is_said_to_be() -> None:
    found = matched("gpt1", 22_528, "state_bytes")
    assert not found.matched
    assert found.reason is not None
    assert "bytes of decoding state" in found.reason
    assert "more than 22,528" in found.reason
