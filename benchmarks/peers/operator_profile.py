"""Where the time of one training step goes: each contender's operators by kind, side by side."""

from __future__ import annotations

import re
from contextlib import suppress
from math import prod
from statistics import median

from torch.profiler import ProfilerActivity, profile

from peers.contender import Cell, UnavailableError
from peers.turns import Turns, made, turn_of

KINDS = {
    "products": r"aten::(mm|addmm_?|bmm|baddbmm_?|addmv_?)$|mkldnn::_linear_pointwise$",
    "loss": r"log_softmax|nll_loss|gather|scatter|expm1|amax|aten::_softmax\.out",
    "attention": r"scaled_dot_product|_softmax$|_softmax_backward_data$|softmax",
    "activation": r"gelu|silu|sigmoid|tanh|relu",
    "norm": r"layer_norm|rms_norm|rsqrt",
    "optimizer, clipping": r"_fused_adamw|linalg_vector_norm|_foreach",
    "sums, copies, fills": r"aten::(sum|add_?|mul_?|copy_|fill_|zero_|cat|index.*|embedding.*)$",
}
"""By operator's name, the first that matches; what is left is ``other``."""

OTHER, WALL, TERAFLOP = "other", "step, wall", "products' TFLOP"


ROUNDS = 3


def profile_of(cell: Cell, names: list[str]) -> list[str]:
    """Lines of Markdown: milliseconds of operators by kind in a warm training step, a column a contender, in turns.

    Then the step's wall time under the profiler, the products' FLOPs and speed, and the operators that took the most;
    each figure is the median of :data:`ROUNDS` steps.
    """
    turns = {}
    for name in names:
        with suppress(UnavailableError):
            turns[name] = turn_of(made(name, cell), Turns())
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
    for number in range(-1, ROUNDS):
        for name in turns if number % 2 else reversed(turns):
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
                wall, _ = turns[name]()
            if number >= 0:
                steps[name].append(_step(profiled) | {WALL: wall * 1e3})
    columns = {
        name: {key: median(step.get(key, 0.0) for step in rounds) for key in rounds[0]}
        for name, rounds in steps.items()
    }
    lines = [f"| ms | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for key in (*KINDS, OTHER, WALL, TERAFLOP):
        shown = [f"{column[key]:,.1f}" if key != TERAFLOP else f"{column[key]:.3f}" for column in columns.values()]
        lines.append(f"| {key} | {' | '.join(shown)} |")
    rates = [f"{1e6 * column[TERAFLOP] / column['products']:.0f}" for column in columns.values()]
    lines.append(f"| products' GFLOP/s | {' | '.join(rates)} |")
    for name, column in columns.items():
        largest = sorted((key for key in column if "::" in key), key=lambda key: -column[key])[:9]
        lines.append(f"{name}: " + ", ".join(f"{key.split('::')[1]} {column[key]:,.1f}" for key in largest))
    return lines


def _step(profiled: profile) -> dict[str, float]:
    """Milliseconds by kind and by operator, and the products' FLOPs."""
    spent: dict[str, float] = dict.fromkeys((*KINDS, OTHER, TERAFLOP), 0.0)
    for event in profiled.key_averages(group_by_input_shape=True):
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.key)), OTHER)
        milliseconds = event.self_cpu_time_total / 1e3
        spent[kind] += milliseconds
        spent[event.key] = spent.get(event.key, 0.0) + milliseconds
        if kind == "products":
            spent[TERAFLOP] += event.count * flops_of(event.key, event.input_shapes) / 1e12
    return spent


def flops_of(operator: str, shapes: list[list[int]]) -> float:
    """Of one call of a product, 2 a multiply–add, from the shapes of its operands."""
    if "linear" in operator:  # x (..., K), weight (N, K)
        return 2.0 * prod(shapes[0]) * shapes[1][0]
    left, right = shapes[1:3] if "add" in operator else shapes[:2]
    return 2.0 * prod(left) * right[-1]
