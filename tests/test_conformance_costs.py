"""Wrong FLOPs, and operators that torch counts as nothing, are caught by a message that names them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.errors import DeviceError, UsageError
from archbench.measure.flops import count_flops
from archbench.testing.checks import check_flops
from archbench.testing.evaluation import Fault, run_check
from edited_plugins import Edit, edited, tiny

RESULT = "return batch_size * context_length * 2 *"
LAYERS = "for block in self.blocks:"
FORWARD = "    def forward_flops("


def declaring(flops: str) -> Edit:
    """A model that declares ``flops``, the text of a mapping, uncounted."""
    method = f"    def uncounted_flops(self, batch_size, context_length):\n        return {flops}\n\n"
    return FORWARD, method + FORWARD


def running(line: str) -> Edit:
    """A model whose forward pass does ``line`` to its first hidden states x (B, T, C)."""
    return LAYERS, f"{line}\n        {LAYERS}"


CUSTOM = """
@torch.library.custom_op("conformance_costs::mix", mutates_args=())
def mix(x: Tensor) -> Tensor:
    return x @ x.mT @ x

@mix.register_fake
def _(x):
    return torch.empty_like(x)

mix.register_autograd(lambda ctx, gradient: gradient)
"""


def test_a_declared_closed_form_is_held_against_the_count() -> None:
    assert check_flops(tiny("gpt1")) == "23,360 FLOP a token at T = 24, and as declared"


def test_a_model_that_declares_nothing_is_counted() -> None:
    assert check_flops(tiny("bigram")) == "0 FLOP a token at T = 24; it declares none"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            [(RESULT, "return batch_size * context_length *")],
            r"forward_flops\(1, 24\) says 280,320 FLOP, and 560,640 FLOP are counted .*most of them in "
            r"blocks\.\*\.attention\.qkv \(26%\), blocks\.\*\.feed_forward\.up \(18%\), .*: a multiply–add is 2 FLOPs",
        ),
        ([(RESULT, "return 3 * batch_size * context_length * 2 *")], "forward and backward, and forward alone"),
        ([(RESULT, "return 2 *")], "it looks like FLOPs a token"),
        ([(RESULT, "return context_length * 2 *")], r"forward_flops\(2, 12\).*FLOPs of one sequence"),
        ([("square = 2 *", "square = 1 *")], "must agree within 2 %.*the whole T × T square"),
        ([(RESULT, "return float('nan') *")], "says nan"),
        ([(RESULT, "return 1.01 * batch_size * context_length * 2 *")], None),
    ],
    ids=["multiply-adds", "training", "a token", "a sequence", "causal half", "nan", "1 % off"],
)
def test_flops_that_are_not_the_counted_ones_are_caught(tmp_path: Path, edits: list[Edit], message: str | None) -> None:
    subject = edited(tmp_path, "gpt1", *edits)
    if message is None:
        check_flops(subject)
        return
    with pytest.raises(Fault, match=message):
        check_flops(subject)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("x = x.cumsum(1)", "aten::cumsum"),
        ("x = torch.fft.fft(x).real", "aten::_fft_r2c"),
        ("x = x + (x @ x.new_ones(x.shape[-1]))[..., None]", "aten::mv"),
        ("x = x / torch.linalg.matrix_exp(x @ x.mT).mean()", "aten::linalg_matrix_exp"),
        ("x = x + torch.cdist(x, x).mean()", "aten::_cdist_forward|aten::_euclidean_dist"),
        ("x = torch.ops.conformance_costs.mix(x)", "conformance_costs::mix"),
    ],
    ids=["scan", "transform", "matrix times vector", "factorization", "distances", "custom"],
)
def test_operators_that_torch_cannot_count_have_to_be_declared(tmp_path: Path, line: str, name: str) -> None:
    more = CUSTOM if "mix" in line else ""
    with pytest.raises(Fault, match=f"a forward pass runs ({name}), which torch counts as 0 FLOPs .*uncounted_flops"):
        check_flops(edited(tmp_path, "gpt1", running(line), more=more))


def test_what_is_declared_is_part_of_the_count(tmp_path: Path) -> None:
    """10 % of the count beside it, which the closed form then lacks, or has."""
    scan, declared = running("x = x.cumsum(1)"), declaring("{'aten::cumsum': 2_336 * batch_size * context_length}")
    with pytest.raises(Fault, match=r"560,640 FLOP.*616,704 FLOP.*the model itself \(24%\)"):
        check_flops(edited(tmp_path, "gpt1", scan, declared))
    whole = (RESULT, f"{RESULT} 1168 + {RESULT.removeprefix('return ')}")
    note = check_flops(edited(tmp_path, "gpt1", scan, declared, whole))
    assert note == "25,696 FLOP a token at T = 24, and as declared"


def test_an_operator_may_be_declared_as_no_part_of_model_flops(tmp_path: Path) -> None:
    scan, declared = running("x = x.cumsum(1)"), declaring("{'aten::cumsum': 0}")
    assert "23,360 FLOP" in check_flops(edited(tmp_path, "gpt1", scan, declared))


@pytest.mark.parametrize("name", ["aten::cumprod", "aten::mm"], ids=["that is not there", "that torch counts"])
def test_an_operator_declared_in_vain_is_caught(tmp_path: Path, name: str) -> None:
    scan, declared = running("x = x.cumsum(1)"), declaring(f"{{'aten::cumsum': 1, '{name}': 1}}")
    with pytest.raises(Fault, match=f"declares '{name}', but no such operator runs uncounted .*do: aten::cumsum"):
        check_flops(edited(tmp_path, "gpt1", scan, declared))


def test_a_backward_pass_that_alone_cannot_be_counted_is_caught(tmp_path: Path) -> None:
    function = """
class Scanned(torch.autograd.Function):
    forward = staticmethod(lambda ctx, x: x.clone())
    backward = staticmethod(lambda ctx, gradient: gradient.cumsum(1))
"""
    with pytest.raises(Fault, match="a backward pass runs aten::cumsum"):
        check_flops(edited(tmp_path, "gpt1", running("x = Scanned.apply(x)"), more=function))


@pytest.mark.parametrize(
    "line",
    [
        "x = x.sort(-1).values + x.topk(2).values.sum()",
        "x = x + (x > 0).cumsum(1)",
        "x = F.normalize(F.softmax(x, -1)) + torch.linalg.vector_norm(x)",
        "x = x.gather(1, x.argsort(1)) * torch.tril(x.new_ones(x.shape[1:])).sum()",
    ],
    ids=["sorting", "counting with integers", "norms", "gathers and masks"],
)
def test_what_does_a_few_operations_a_number_need_not_be_declared(tmp_path: Path, line: str) -> None:
    assert "23,360 FLOP" in check_flops(edited(tmp_path, "gpt1", running(line)))


@pytest.mark.parametrize("flops", ["['aten::cumsum']", "{'aten::cumsum': -1.0}", "{'aten::cumsum': '1'}"])
def test_a_declaration_that_is_none_is_refused(tmp_path: Path, flops: str) -> None:
    with pytest.raises(UsageError, match=r"GPT1\.uncounted_flops: it returned .*Return FLOPs by operator"):
        check_flops(edited(tmp_path, "gpt1", declaring(flops)))


def test_a_forward_pass_that_cannot_be_counted_is_refused_with_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"GPT1: .*meta device.*meta kernel"):
        check_flops(edited(tmp_path, "gpt1", running("assert tokens.max() > 0")))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        # As transformers' masks choose a shortcut.
        ("x = x if isinstance(x, torch._subclasses.FakeTensor) or tokens.ge(0).all() else -x", "fake"),
        ("x = x if tokens.ge(0).all() else -x", "real"),
    ],
)
def test_what_reads_values_is_counted_on_other_tensors_to_the_same_result(tmp_path: Path, line: str, kind: str) -> None:
    result = run_check(check_flops, edited(tmp_path, "gpt1", running(line)))
    assert result.status == "noted", result.evidence
    assert f"counted on {kind} tensors" in result.evidence
    assert "23,360 FLOP a token at T = 24, and as declared" in result.evidence


@pytest.mark.parametrize("kind", ["fake", "real"])
def test_fused_attention_and_grouped_products_are_counted_off_the_meta_device(kind: str) -> None:
    B, H, T, D, E, width = 2, 3, 8, 16, 5, 32

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.ones(E, D, width, dtype=torch.bfloat16))

        def forward(self, tokens: Tensor) -> Tensor:
            assert not tokens.is_meta
            assert isinstance(tokens, torch._subclasses.FakeTensor) == (kind == "fake")
            q = self.experts.new_ones(B, H, T, D)
            y = F.scaled_dot_product_attention(q, q, q, is_causal=True).flatten(0, 2)  # (B H T, D)
            ends = torch.full((E,), len(y), dtype=torch.int32)
            return 2 * torch._grouped_mm(y, self.experts, offs=ends)

    with torch.device("meta"):
        model = Fused()
    count = count_flops(model, 1, 1)
    attention, experts = 4 * B * H * T * T * D, 2 * B * H * T * D * width
    assert count.counted_on == kind
    assert count.forward_per_token == attention + experts
