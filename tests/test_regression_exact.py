"""Each exact gate fails for what it is there for, and for nothing else: one change of gpt1's code a test."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import archbench_plugins.gpt1 as gpt1
import pytest
import torch
from torch import nn

from archbench.regression.benchmark import Subject, exact_costs
from archbench.regression.operation_counts import graph_breaks
from archbench.regression.verdict_table import UNITS, Row, accepted, exact_rows

SMALL = {"vocab_size": "64", "context_length": "16", "n_layer": "1", "n_head": "2", "d_model": "16", "d_ff": "32"}
SOURCE = Path(gpt1.__file__).read_text().replace('name="gpt1"', 'name="copy"')
HIDDEN = "        for block in self.blocks:\n            x = block(x, cache)\n"

CHANGES = {
    "one more parameter": (
        "        for module in self.modules():",
        "        self.scale = nn.Parameter(torch.ones(()))\n        for module in self.modules():",
    ),
    "one more matmul": (HIDDEN, f"{HIDDEN}        x = x @ torch.eye(x.shape[-1], device=x.device)\n"),
    "a doubled cache": ("layers=c.n_layer", "layers=2 * c.n_layer"),
    "a graph break": (HIDDEN, f"{HIDDEN}        torch._dynamo.graph_break()\n"),
    "one more saved activation": (HIDDEN, f"{HIDDEN}        x = x.exp().log()\n"),
}
OPERATIONS = {"step_operations", "token_operations"}
FAILING = {
    "one more parameter": {"parameters"},
    # The product's two inputs are saved as well: the hidden states, and the square matrix.
    "one more matmul": {
        "forward_flops_per_token",
        "training_flops_per_token",
        "saved_activation_bytes",
        *OPERATIONS,
        "step_bytes",
    },
    "a doubled cache": {"state_bytes_per_token", "state_bytes", "decode_bytes"},
    "a graph break": {"graph_breaks"},
    "one more saved activation": {"saved_activation_bytes", *OPERATIONS, "step_bytes"},
}


@cache
def costs(change: str | None = None) -> dict[str, float | None]:
    source = SOURCE
    if change is not None:
        old, new = CHANGES[change]
        assert source.count(old) == 1
        source = source.replace(old, new)
    with TemporaryDirectory() as place:
        file = Path(place, "copy.py")
        file.write_text(source)
        return exact_costs(Subject.load("copy", [str(file)], overrides=SMALL))


def failing(rows: list[Row]) -> set[str]:
    return {row.metric for row in rows if row.verdict == "FAIL"}


@pytest.mark.parametrize("change", CHANGES)
def test_the_gate_that_is_there_for_it_fails_and_no_other(change: str) -> None:
    assert failing(exact_rows("copy", costs(), costs(change))) == FAILING[change]


def test_every_gate_is_shown_to_fail() -> None:
    of_a_gpu = {metric for metric in UNITS if metric.startswith("gpu_")}  # tests/fake_gpu/test_gpu_gates.py
    of_archbench = {metric for metric in UNITS if metric.endswith("_growth")} | {"loss_bytes"}  # test_bounded_memory.py
    assert set.union(*FAILING.values()) == set(UNITS) - of_a_gpu - of_archbench == set(costs())


def test_what_did_not_change_passes() -> None:
    assert {row.verdict for row in exact_rows("copy", costs(), exact_costs(_unchanged()))} == {"ok"}


def _unchanged() -> Subject:
    return Subject.load("gpt1", overrides=SMALL)


def test_the_counts_are_those_of_the_definition() -> None:
    B, T, C, F, V, H = 2, 16, 16, 32, 64, 2
    known = costs()
    assert known["parameters"] == V * C + T * C + 3 * C * C + 3 * C + C * C + C + 2 * C * F + F + C + 4 * C
    assert known["forward_flops_per_token"] == 2 * (4 * C * C + 2 * C * F + 2 * T * C + C * V)
    assert known["training_flops_per_token"] == 3 * known["forward_flops_per_token"]
    assert known["state_bytes_per_token"] == 2 * C * 4
    assert known["state_bytes"] == 2 * C * 4 * T
    assert known["graph_breaks"] == 0
    assert H * (C // H) == C
    change = costs("one more saved activation")
    more = {name: float(change[name] or 0) - float(value or 0) for name, value in known.items()}
    # exp saves what it returns, and log what it was given, which is the same tensor.
    assert more["saved_activation_bytes"] == B * T * C * 4
    # exp and log; of their gradients a quotient and a product, and two of reading what was saved. A token has none.
    assert more["step_operations"] == 6
    assert more["token_operations"] == 2


def test_fewer_parameters_fail_too_and_a_smaller_cost_passes() -> None:
    rows = {row.metric: row for row in exact_rows("copy", costs("one more parameter"), costs())}
    assert rows["parameters"].verdict == "FAIL"
    assert rows["parameters"].note == "-1"
    rows = {row.metric: row for row in exact_rows("copy", costs("one more matmul"), costs())}
    assert rows["forward_flops_per_token"].verdict == "less"
    assert not failing(list(rows.values()))


def test_what_only_one_side_has_is_new_or_gone() -> None:
    def verdicts(base: dict[str, float | None] | None, head: dict[str, float | None]) -> list[str]:
        return [row.verdict for row in exact_rows("copy", base, head)]

    assert verdicts(None, {"parameters": 1}) == verdicts({}, {"parameters": 1}) == ["NEW"]
    assert verdicts({"state_bytes": None}, {"state_bytes": 8}) == ["NEW"]
    assert verdicts({"state_bytes": None}, {"state_bytes": None}) == ["none"]
    assert verdicts({"state_bytes": 8}, {"state_bytes": None}) == ["FAIL"]


def test_a_regression_that_is_meant_is_accepted_with_its_reason_and_no_other() -> None:
    rows = exact_rows("copy", costs(), costs("one more matmul"))
    reasons = {"forward_flops_per_token": "a rotation", "copy:training_flops_per_token": "the same"}
    left = accepted(rows, reasons)
    assert failing(left) == FAILING["one more matmul"] - {"forward_flops_per_token", "training_flops_per_token"}
    assert next(row for row in left if row.metric == "forward_flops_per_token").note.startswith("a rotation (+")
    assert failing(accepted(rows, {"other:forward_flops_per_token": "of another"})) == FAILING["one more matmul"]


class Layer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2


class Layers(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x + 1


def test_a_graph_break_in_each_layer_counts_once_a_layer() -> None:
    """Explained by torch, all layers are one break, for their graphs are compiled once."""
    counts = [graph_breaks(Layers(number), torch.zeros(2)) for number in (0, 1, 2, 3)]
    assert counts == [0, 1, 3, 5]  # two graphs a layer


def test_a_forward_pass_of_which_nothing_is_traced_has_no_count_and_fails() -> None:
    class Untraced(nn.Module):
        @torch._dynamo.disable
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    head = graph_breaks(Untraced(), torch.zeros(2))
    assert head is None
    assert failing(exact_rows("copy", {"graph_breaks": 3}, {"graph_breaks": head})) == {"graph_breaks"}


def test_recomputing_activations_saves_bytes(tmp_path: Path) -> None:
    file = tmp_path / "copy.py"
    file.write_text(
        SOURCE.replace(
            HIDDEN,
            "        from torch.utils.checkpoint import checkpoint\n"
            "        for block in self.blocks:\n"
            "            x = block(x, cache) if cache else checkpoint(block, x, use_reentrant=False)\n",
        )
    )
    less = exact_costs(Subject.load("copy", [str(file)], overrides=SMALL))["saved_activation_bytes"]
    most = costs()["saved_activation_bytes"]
    assert less is not None
    assert most is not None
    assert 0 < less < most
