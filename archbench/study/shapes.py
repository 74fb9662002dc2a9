"""The shapes of a family of models: which fields of a configuration are sizes, and how they are linked.

Fields are recognised by their names, those of the dimensions in the legend: see :data:`VARIED`. Other fields, and those
set by the user, keep their values.

The distance of a shape from the preset is::

    4 |ln n_layer| + 2 |ln d_model| + Σ |ln| of other widths + ½ Σ |ln| of what has few parameters

each relative to the preset. Other widths are those of the feed-forward layer, the recurrence and all heads together, as
multiples of d_model, and the width of a head. Few parameters depend on d_state, the window and the query heads per
key/value head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from archbench.config import ModelConfig

Quantity = Literal["non_embedding_active_parameters", "state_bytes"]

WITH_WIDTH = ("d_ff", "d_inner", "d_recurrent")
GROUPS = ("n_kv_head", "n_group")
VARIED = ("n_layer", "d_model", "n_head", "d_head", *GROUPS, *WITH_WIDTH, "d_value", "d_state", "window")

SLIDERS: dict[Quantity, tuple[str, ...]] = {
    "non_embedding_active_parameters": ("d_ff", "d_inner", "d_recurrent", "n_head", "d_state"),
    "state_bytes": ("window", "d_state", "d_value", "d_recurrent", "n_head"),
}
"""Fields that adjust the size of a shape while the others stay; for parameters, d_ff alone if it exists."""

Shape = Mapping[str, int]
"""The fields of :data:`VARIED` that a configuration has, with their values."""


class Family:
    """The shapes around a configuration.

    H heads of width D make an inner width H D, which stays the same multiple of the width C. A configuration may
    have any of C, H and D; two of them determine the third.

    Attributes:
        start: shape of the configuration.
        free: names of the fields that may vary.
        fixed: names of fields that may not vary; the configuration need not have them.
        depth, width: L and C of the start.
    """

    def __init__(self, config: ModelConfig, fixed: frozenset[str], quantity: Quantity) -> None:
        values = dict(config)
        self.start: dict[str, int] = {
            name: values[name] for name in VARIED if type(values.get(name)) is int and values[name] > 0
        }
        self.fixed = fixed
        self.free = [name for name in self.start if name not in fixed]
        self.depth = self.start.get("n_layer", 1)
        self.width, self._heads, self._head_width = self._dimensions(self.start)
        self._context_length = config.context_length
        self._quantity = quantity
        self._state = quantity == "state_bytes"
        self._reach = 4 if self._state else 2  # a state depends on few fields, so they reach further

    def distance(self, shape: Shape) -> float:
        """Distance of ``shape`` from the start, as in the module's docstring."""
        C, H, D = self._dimensions(shape)
        wider, more = C / self.width, H / self._heads
        changes = [D / self._head_width, more * D / self._head_width / wider]
        for name, number in shape.items():
            change = number / self.start[name]
            if name in WITH_WIDTH:
                changes.append(change / wider)
            elif name in GROUPS:
                changes.append(math.sqrt(change / more))
            elif name == "d_value":
                changes.append(change / (D / self._head_width))
            elif name in ("d_state", "window"):
                changes.append(math.sqrt(change))
        deeper = shape.get("n_layer", 1) / self.depth
        return 4 * abs(math.log(deeper)) + 2 * abs(math.log(wider)) + sum(abs(math.log(change)) for change in changes)

    def scaled(self, scale: float) -> Shape:
        """The start with depth and width times about ``scale``; heads become fewer, a power of two, and narrower."""
        C, H, D = self._dimensions(self.start)
        heads, narrow, inner = H, D, Fraction(H * D, C)
        if "n_head" in self.start:
            heads = 2 ** max(0, round(math.log2(H * math.sqrt(scale))))
            step = _step(D, 16)
            narrow = max(1, round(C * scale * inner / heads / step)) * step
        elif "d_head" in self.start:
            heads = max(1, round(H * scale))
        else:
            step = _step(C, 16)
            heads = max(1, round(C * scale / step)) * step
        width = max(1, round(heads * narrow / inner))
        new = {"n_layer": max(1, round(self.depth * scale)), "d_model": width, "n_head": heads, "d_head": narrow}
        shape = {name: new.get(name, number) for name, number in self.start.items()}
        for name in WITH_WIDTH:
            if name in shape:
                step = _step(shape[name], 8)
                shape[name] = max(1, round(shape[name] * width / C / step)) * step
        if "d_value" in shape:
            shape["d_value"] = max(1, round(shape["d_value"] * narrow / D))
        for name in GROUPS:
            if name in shape:
                shape[name] = min(heads, 2 ** round(math.log2(max(1, shape[name] * heads / H))))
        return shape

    def depths(self) -> list[int]:
        """Numbers of layers, the start's first, then the nearest."""
        if "n_layer" not in self.free:
            return [self.depth]
        doublings = 2 if self._state or "d_model" not in self.free else 1
        depths = {round(self.depth * 2 ** (step / 4)) for step in range(-4 * doublings, 4 * doublings + 1)} - {0}
        return sorted(depths, key=lambda depth: (abs(math.log(depth / self.depth)), depth))

    def widths(self, depth: int, grain: int, factor: float) -> dict[int, list[Shape]]:
        """Ascending widths C -> the shapes of each, the nearest to the start first.

        Args:
            depth: L of all shapes.
            grain: a power of two. C and D are multiples of it, or of the largest one that divides the start's.
            factor: target / size of the start; the widths reach beyond it.
        """
        most = 4 if self._state else 16
        low, high = max(min(1, factor) / 1.5, 1 / most), min(max(1, factor) * 1.5, most)
        # Sliding d_ff reaches the sizes between two widths.
        spacing = 1.04 if "d_ff" in self.free and not self._state else 1.01
        step = _step(self.width if "d_model" in self.start else self._head_width, grain)
        found: dict[int, list[Shape]] = {}
        last = 0.0
        for C in sorted({*range(step, int(self.width * high) + 1, step), self.width}):
            if self.width != C and ("d_model" in self.fixed or max(spacing * last, low * self.width) > C):
                continue
            shapes = [shape for D in self._head_widths(C, grain) for shape in self._shapes(depth, C, D)]
            if shapes:
                last = C
                found[C] = sorted(shapes, key=self.distance)
        return found

    def slides(self, shape: Shape, grain: int) -> Iterator[list[Shape]]:
        """For each field that can adjust the size: the shapes that differ in it alone, in ascending order."""
        for name in SLIDERS[self._quantity]:
            if name not in self.free:
                continue
            shapes = self._heads_slide(shape) if name == "n_head" else self._slide(shape, name, min(grain, 8))
            if len(shapes) > 1:
                yield shapes
            if name == "d_ff":
                return

    def _dimensions(self, shape: Shape) -> tuple[int, int, int]:
        """C, H and D of a shape."""
        C, H, D = shape.get("d_model"), shape.get("n_head"), shape.get("d_head")
        if C is None:
            return (H or 1) * (D or 1), H or 1, D or 1
        if H is None and D is None:
            return C, C, 1  # as with heads of one channel: no ratio can change
        return C, H or C // (D or C), D or C // (H or 1)

    def _head_widths(self, C: int, grain: int) -> list[int]:
        """Head widths D that divide the inner width at C."""
        inner = Fraction(self._heads * self._head_width, self.width) * C
        if inner.denominator != 1:
            return []
        step = _step(self._head_width, grain)
        follows = "d_model" in self.start  # the missing one of n_head and d_head
        widths = {self._head_width}
        if "d_head" in self.free or ("d_head" not in self.start and "n_head" in self.start and follows):
            widths |= set(range(step, self._head_width * (16 if "n_head" in self.fixed else self._reach) + 1, step))
            widths = {D for D in widths if "n_head" in self.fixed or self._reach * D >= self._head_width}
        heads_vary = "n_head" in self.free or ("n_head" not in self.start and follows)
        return [D for D in sorted(widths) if inner % D == 0 and (heads_vary or inner == self._heads * D)]

    def _shapes(self, depth: int, C: int, D: int) -> Iterator[Shape]:
        """The shapes of these widths, one for each number of groups."""
        H = int(Fraction(self._heads * self._head_width, self.width) * C / D)
        new = {"n_layer": depth, "d_model": C, "n_head": H, "d_head": D}
        shape = {name: new.get(name, number) for name, number in self.start.items()}
        for name in WITH_WIDTH:
            if name in self.free and self.width != C:
                step = _step(shape[name], 8)
                shape[name] = max(step, round(shape[name] * C / self.width / step) * step)
        if "d_value" in self.free:
            shape["d_value"] = max(1, round(shape["d_value"] * D / self._head_width))
        yield from self._grouped(shape, self._heads, H, every=self._state)

    def _grouped(self, shape: Shape, before: int, H: int, *, every: bool = False) -> Iterator[Shape]:
        """``shape`` with H heads: in as many groups, in groups of the same size, or (``every``) in any number."""
        name = next((name for name in GROUPS if name in self.start), None)
        if name is None:
            yield shape
            return
        numbers = {shape[name]}
        if name in self.free:
            numbers |= set(range(1, H + 1)) if every and name == "n_kv_head" else {shape[name] * H // before}
        yield from ({**shape, name: G} for G in sorted(numbers - {0}) if H % G == 0)

    def _heads_slide(self, shape: Shape) -> list[Shape]:
        """More and fewer heads of the same width, in a model of the same width."""
        if not {"d_model", "d_head"} <= set(self.start):
            return []
        center = shape["n_head"]
        by_heads = (
            list(self._grouped({**shape, "n_head": H}, center, H)) for H in range(-(-center // 2), 2 * center + 1)
        )
        return [min(shapes, key=self.distance) for shapes in by_heads if shapes]

    def _slide(self, shape: Shape, name: str, grain: int) -> list[Shape]:
        center, step = shape[name], _step(self.start[name], grain)
        low, high = -(-center // self._reach), center * self._reach
        if name == "window":
            low, high = step, max(center, self._context_length)
        numbers = {*range(-(-low // step) * step, high + 1, step), center}
        return [{**shape, name: number} for number in sorted(numbers)]


def kept_state(shape: Shape) -> int:
    """The product that a state grows with among shapes of one width: head width and groups."""
    return shape.get("d_head", 1) * max((shape[name] for name in GROUPS if name in shape), default=1)


def _step(number: int, most: int) -> int:
    """The largest power of two, at most ``most`` (itself one), that divides ``number``."""
    return math.gcd(number, most)
