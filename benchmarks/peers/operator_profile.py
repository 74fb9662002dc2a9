"""Where the time of one training step goes: each contender's operators by kind, side by side."""

from __future__ import annotations

import re
from collections import defaultdict
from math import prod

from torch.profiler import ProfilerActivity, profile

from peers.contender import Cell, UnavailableError
from peers.turns import Turns, made, turn_of

KINDS = {
    "products": r"aten::(mm|addmm_?|bmm|baddbmm_?|addmv_?)$|mkldnn::_linear_pointwise$",
    "attention": r"scaled_dot_product|_softmax$|_softmax_backward_data$",
    "loss": r"log_softmax|nll_loss|exp_$|logsumexp|gather$|scatter",
    "activation": r"gelu|silu|sigmoid|tanh|relu",
    "norm": r"layer_norm|rms_norm|rsqrt",
    "optimizer, clipping": r"_fused_adamw|linalg_vector_norm|_foreach",
    "sums, copies, fills": r"aten::(sum|add_?|mul_?|copy_|fill_|zero_|cat|index.*|embedding.*)$",
}
"""By operator's name, the first that matches; what is left is ``other``, the host's time between operators too."""


def profile_of(cell: Cell, names: list[str]) -> list[str]:
    """Lines of Markdown: milliseconds of operators by kind in one warm training step, a column a contender.

    Then the step's wall time under the profiler, the products' FLOPs and speed, and the operators that took the most.
    """
    columns: dict[str, dict[str, str]] = {}
    for name in names:
        try:
            turn = turn_of(made(name, cell), Turns())
        except UnavailableError:
            continue
        turn()
        turn()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            wall, _ = turn()
        kinds: dict[str, float] = defaultdict(float)
        operators: dict[str, float] = defaultdict(float)
        flops = 0.0
        for event in profiled.key_averages(group_by_input_shape=True):
            kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.key)), "other")
            kinds[kind] += event.self_cpu_time_total / 1e3
            operators[event.key] += event.self_cpu_time_total / 1e3
            flops += event.count * flops_of(event.key, event.input_shapes) if kind == "products" else 0
        column = {kind: f"{kinds[kind]:,.1f} ({kinds[kind] / wall / 10:.1f} %)" for kind in (*KINDS, "other")}
        column["step, wall"] = f"{wall * 1e3:,.0f}"
        column["products' TFLOP"] = f"{flops / 1e12:.3f}"
        column["products' GFLOP/s"] = f"{flops / kinds['products'] / 1e6:.0f}"
        largest = sorted(operators.items(), key=lambda one: -one[1])[:8]
        column["largest"] = ", ".join(f"{key.split('::')[-1]} {ms:,.1f}" for key, ms in largest)
        columns[name] = column
    lines = [f"| ms | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    titles = next(iter(columns.values()))
    return lines + [f"| {title} | {' | '.join(column[title] for column in columns.values())} |" for title in titles]


def flops_of(operator: str, shapes: list[list[int]]) -> float:
    """Of one call of a product, 2 a multiply–add, from the shapes of its operands."""
    if "linear" in operator:  # x (..., K), weight (N, K)
        return 2.0 * prod(shapes[0]) * shapes[1][0]
    left, right = shapes[1:3] if "add" in operator else shapes[:2]
    return 2.0 * prod(left) * right[-1]
