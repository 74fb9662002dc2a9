"""What a weights file would lose, and what cannot be built without values, is caught and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from archbench.testing.checks import check_meta, check_save_load
from archbench.testing.evaluation import Fault, run_check
from edited_plugins import Edit, edited, tiny

TORCH = ("from torch import nn", "import torch\nfrom torch import nn")
KEPT = "        self.config = config"


def model(*lines: str, forward: tuple[str, ...] = ("return x",)) -> list[Edit]:
    """More lines for the bigram's ``__init__``, and for its forward pass, where ``x`` are its logits."""
    init, body = ("".join(f"\n        {line}" for line in part) for part in (lines, forward))
    return [TORCH, (KEPT, f"{KEPT}{init}\n\n    def forward(self, tokens):\n        x = super().forward(tokens){body}")]


@pytest.mark.parametrize("name", ["gpt1", "bigram"])
def test_right_plugins_pass(name: str) -> None:
    subject = tiny(name)
    assert check_save_load(subject).endswith("the same logits bit for bit")
    assert "tensors, as on cpu, and presets nano" in check_meta(subject)


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    once = check_save_load(tiny("gpt1")).partition(" bytes")[0]
    tied = edited(
        tmp_path, "gpt1",
        ("                nn.init.zeros_(module.bias)\n",
         "                nn.init.zeros_(module.bias)\n"
         "        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)\n"
         "        self.output.weight = self.embedding.weight\n"),
    )  # fmt: skip
    twice = check_save_load(tied).partition(" bytes")[0]
    embedding = 61 * 32 * 4
    assert int(twice.replace(",", "")) - int(once.replace(",", "")) < embedding / 4, "a name more, and no tensor"
    assert check_meta(tied).startswith("15 tensors"), "each of the two names"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            model("self.scale = torch.rand(())", forward=("return x * self.scale",)),
            "gives other logits, by up to .*: 'scale' differs and is not in the state_dict. What .* nn.Parameter",
        ),
        (
            model("self.parts = {'a': [1.0, torch.rand(1).item()]}", forward=("return x * self.parts['a'][1]",)),
            r"parts\['a'\]\[1\]\W differs and is not in the state_dict",
        ),
        (
            model("self.heads = [nn.Linear(61, 61)]", forward=("return self.heads[0](x)",)),
            r"'heads\[0\].weight' differs and is not in the state_dict, and so for 1 more",
        ),
        (
            model("self.noise = lambda x, y=torch.rand(1): x * y", forward=("return self.noise(x)",)),
            "look for what the model computes with that is in no tensor of its state_dict",
        ),
        (
            model("self.register_load_state_dict_post_hook(lambda model, keys: [model.weight.data.zero_()].clear())"),
            "'weight' is in the state_dict and differs after loading all the same$",
        ),
        (
            model(forward=("self.register_buffer('last', tokens)", "return x")),
            'a new model does not take the state_dict of another: .*Unexpected key.*"last".* before any forward pass',
        ),
        (
            [*model(), (KEPT, f"{KEPT}\n\n    def get_extra_state(self):\n        return 'version 2'")],
            "its state_dict cannot be written as safetensors .* keep tensors in it and nothing else",
        ),
    ],
    ids=["tensor", "number", "list of modules", "closure", "changed by loading", "late buffer", "extra state"],
)
def test_what_is_lost_in_a_file(tmp_path: Path, edits: list[Edit], message: str) -> None:
    with pytest.raises(Fault, match=message):
        check_save_load(edited(tmp_path, "bigram", *edits))


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            model("assert self.weight.isfinite().all().item()"),
            "preset 'nano' cannot be built on the meta device, where parameters are counted: .*wrong.py:.*isfinite",
        ),
        (
            [
                *model("self.scale = nn.Parameter(torch.from_numpy(np.ones(1)))"),
                ("import torch\n", "import numpy as np\nimport torch\n"),
            ],
            "'scale' of preset 'nano' is on cpu although .* not from NumPy's arrays",
        ),
        (
            model("if not self.weight.is_meta:", "    self.register_buffer('here', torch.ones(2))"),
            r"'here' is missing on the meta device and \(\(2,\), 'float32'\) on cpu",
        ),
        (
            model(forward=("assert tokens.max().item() > 0", "return x")),
            "on the meta device, where FLOPs are counted, the forward pass raised .*wrong.py:.*look for .*values that",
        ),
        (
            model(forward=("return x[:, :1] if x.is_meta else x",)),
            r"on the meta device the logits are \(2, 1, 61\) on meta, and \(2, 24, 61\) there",
        ),
    ],
    ids=["build reads values", "NumPy", "other tensors", "forward reads values", "other logits"],
)
def test_what_needs_values(tmp_path: Path, edits: list[Edit], message: str) -> None:
    with pytest.raises(Fault, match=message):
        check_meta(edited(tmp_path, "bigram", *edits))


def test_a_forward_pass_that_reads_values_is_noted_with_its_line(tmp_path: Path) -> None:
    subject = edited(tmp_path, "bigram", *model(forward=("assert tokens.max().item() < 61", "return x")))
    result = run_check(check_meta, subject)
    assert result.status == "noted"
    assert "wrong.py" in result.evidence
    assert "it runs on real tensors" in result.evidence
