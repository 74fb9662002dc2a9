"""Hooks, logits and limits that are not as promised are caught, and the message names the fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from archbench.testing.checks import check_hooks, check_logits, check_too_long, hooks
from archbench.testing.evaluation import Fault
from edited_plugins import Edit, edited, tiny

KEPT = "        self.config = config"
PRESETS = '    presets = {"nano": ModelConfig(vocab_size=257, context_length=64)}'
GENERATED = "    return decode_without_cache(model, prompt, max_new_tokens, sampling)"

CONFIG = """

class Config(ModelConfig):
    @field_validator("vocab_size")
    def few(cls, value):
        assert value in (61, 64), "too many"
        return value
"""

IMPORT_TIME = ("from torch import nn", "import time\n\nfrom torch import nn")


def forward(*lines: str) -> Edit:
    """A forward pass for the bigram: ``x`` are its logits."""
    body = "\n".join(f"        {line}" for line in lines)
    return KEPT, f"{KEPT}\n\n    def forward(self, tokens):\n        x = super().forward(tokens)\n{body}"


@pytest.mark.parametrize("name", ["gpt1", "bigram"])
def test_right_plugins_pass(name: str) -> None:
    subject = tiny(name)
    assert "nano" in check_hooks(subject)
    assert check_logits(subject) == "(B, T, V) for 3 × 7, 1 × 24, 1 × 1 tokens, finite"
    assert check_too_long(subject).startswith("at position 25 forward")


@pytest.mark.parametrize("T", [1, 2, 7])
def test_a_context_of_any_length_can_be_checked(T: int) -> None:
    subject = tiny("gpt1", context_length=T)
    check_logits(subject)
    check_too_long(subject)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            [(PRESETS, PRESETS.replace("=64", "=next(LENGTHS)")),
             ("from torch import nn", "from itertools import count\n\nfrom torch import nn\n\nLENGTHS = count(1)")],
            r"describe\(\) gives another presets at each call",
        ),
        (
            [(PRESETS, f"    class Config(ModelConfig):\n        pass\n\n{PRESETS.replace('ModelConfig(', 'Config(')}"),
             ("section 3\", ModelConfig,", "section 3\", Config,")],
            "another config at each call.*define the class once, at module level",
        ),
        (
            [(PRESETS, PRESETS.replace("ModelConfig(vocab_size=257", "ModelConfig.model_construct(vocab_size=-1"))],
            r"preset 'nano' is not valid by its own config type: ModelConfig\.vocab_size.*greater than 0",
        ),
        (
            [("class Bigram(nn.Embedding)", "class Bigram(nn.Module)"),
             ("super().__init__(config.vocab_size, config.vocab_size)",
              "super().__init__()\n        self.layers = [nn.Embedding(config.vocab_size, config.vocab_size)]")],
            "the model has no parameters.*nn.ModuleList; those in a plain list are not seen",
        ),
        ([(KEPT, "        self.settings = config")], "no attribute config that is a ModelConfig: write self.config"),
        (
            [(KEPT, "        self.config = config.override(context_length=512)")],
            "model.config differs from what build was given in its context_length, 512 for 24",
        ),
    ],
    ids=["presets change", "class in a function", "invalid preset", "plain list", "no config", "other config"],
)  # fmt: skip
def test_malformed_hooks(tmp_path: Path, edits: list[Edit], message: str) -> None:
    with pytest.raises(Fault, match=message):
        check_hooks(edited(tmp_path, "bigram", *edits))


def test_a_slow_describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = edited(tmp_path, "bigram", IMPORT_TIME, (PRESETS, f"    time.sleep(0.05)\n{PRESETS}"))
    check_hooks(wrong)
    monkeypatch.setattr(hooks, "CHEAP_SECONDS", 0.04)
    with pytest.raises(Fault, match=r"describe\(\) took 0.05.* s, and 'archbench list' asks every plugin"):
        check_hooks(wrong)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([forward("return x.transpose(0, 1)")], r"shape \(7, 3, 61\) .*: batch and positions are swapped"),
        ([forward("return x.flatten(0, 1)")], r"shape \(21, 61\).*flattened, and not unflattened"),
        ([forward("return x[..., :60]")], "the head gives 60 numbers and not 61, config.vocab_size"),
        ([forward("return x, None")], "forward returned a tuple: it has to return the logits alone"),
        ([forward("return x.long()")], "the logits are of dtype int64"),
        ([forward("return x.bfloat16()")], "the logits of float32 weights are of dtype bfloat16"),
        (
            [forward("x[1:, 2, 5] = float('inf')", "return x")],
            r"for tokens \(B, T\) = \(3, 7\).* logits\[1, 2, 5\] is inf, and 2 of the 21 positions",
        ),
        (
            [forward("assert len(tokens) == 1", "return x")],
            r"for tokens \(B, T\) = \(3, 7\) at initial weights .* AssertionError .*wrong.py:\d+: assert len",
        ),
        (
            [("def build(config):", "def build(config):\n    assert config.vocab_size < 100")],
            "with vocab_size = 257 instead of 61 no model can be built: AssertionError",
        ),
        (
            [("super().__init__(config.vocab_size,", "super().__init__(61,")],
            "with vocab_size = 257 instead of 61 the forward pass raised IndexError",
        ),
        (
            [("from torch", "from pydantic import field_validator\nfrom torch"),
             ("ModelConfig(vocab_size=257", "Config(vocab_size=64"), ('section 3", ModelConfig', 'section 3", Config'),
             ("\n\nclass Bigram", f"{CONFIG}\n\nclass Bigram")],
            r"cannot be had with vocab_size = 257 instead of 61 \(.*too many.*the vocabulary of its tokenizer",
        ),
    ],
    ids=["swapped", "flattened", "head", "tuple", "integers", "bfloat16", "inf", "batch", "build", "table", "config"],
)  # fmt: skip
def test_wrong_logits(tmp_path: Path, edits: list[Edit], message: str) -> None:
    with pytest.raises(Fault, match=message):
        check_logits(edited(tmp_path, "bigram", *edits))


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            [forward("return x + self.weight[: tokens.shape[1]].flip(0)")],
            "other logits for the first 24 than for those alone: .* positions were counted from the end",
        ),
        (
            [forward("x[:, 24:] = float('nan')", "return x")],
            "returned logits that are not finite, from position 25 on",
        ),
        (
            [(GENERATED, f"    assert prompt.shape[1] <= 24\n{GENERATED}")],
            "given a prompt of 25 tokens, one more than the context, generate raised AssertionError.*a ValueError",
        ),
        (
            [(GENERATED, f"    if prompt.shape[1] > 24:\n        return iter(())\n{GENERATED}")],
            "generate yielded nothing",
        ),
    ],
    ids=["from the end", "NaN", "another error", "nothing"],
)
def test_too_many_tokens(tmp_path: Path, edits: list[Edit], message: str) -> None:
    with pytest.raises(Fault, match=message):
        check_too_long(edited(tmp_path, "bigram", *edits))


def test_a_cache_that_is_too_long(tmp_path: Path) -> None:
    asked = 'self.check_context("capacity", capacity)'
    wrong = edited(tmp_path, "gpt1", (asked, f"assert capacity <= self.config.context_length\n        {asked}"))
    with pytest.raises(Fault, match=r"given new_cache\(1, 25\) raised AssertionError .*wrong.py"):
        check_too_long(wrong)
    (tmp_path / "late").mkdir()
    late = edited(tmp_path / "late", "gpt1", (asked, "pass"))
    assert "UsageError" in check_too_long(late), "the cache is larger than it need be, and extend says what is wrong"


def test_any_value_error_will_do(tmp_path: Path) -> None:
    stern = edited(
        tmp_path, "bigram",
        forward("if tokens.shape[1] > 24:", "    raise ValueError('too long')", "return x"),
        (GENERATED, f"    if prompt.shape[1] > 24:\n        raise ValueError('too long')\n{GENERATED}"),
    )  # fmt: skip
    assert check_too_long(stern) == "at position 25 forward raises ValueError"
