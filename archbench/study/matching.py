"""Match architectures in size: find the shape that has a given size and is nearest to the preset.

Up to :data:`MOST_BUILDS` models are built on the meta device, which takes no memory. :mod:`archbench.study.shapes` says
which fields vary and measures how far a shape is from the preset: d_ff alone changes for a few per cent, d_model and
what depends on it for much more, depth last. Widths of the model and of heads stay multiples of 16 (others: of 8) if
the preset's are, or multiples of 2 if nothing near fits.

A preset of more than :data:`FAR` times the size, such as a published model's beside a nano, is first scaled down as a
whole, depth and widths by the same factor: width alone would leave a model of many very narrow layers.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archbench.errors import HookFailedError, UsageError
from archbench.study.shapes import VARIED, Family, Quantity, Shape, kept_state

if TYPE_CHECKING:
    from archbench.config import ModelConfig
    from archbench.measure.sizes import Size
    from archbench.plugin.architecture import Architecture

MOST_BUILDS = 300

FAR = 64
"""Times the target that a preset may have and still be the shape to stay near to."""

UNITS: dict[Quantity, str] = {
    "non_embedding_active_parameters": "non-embedding active parameters",
    "state_bytes": "bytes of decoding state",
}


@dataclass(frozen=True)
class Match:
    """What :func:`match` found.

    Attributes:
        overrides: ``architecture.config(preset, **overrides)`` is the shape found. The user's own are included.
        size: of that shape, at its context length.
        deviation: size / target - 1; None if there is no size to compare.
        matched: whether the shape is within the tolerance; otherwise it is the nearest one tried.
        reason: why it is outside the tolerance; None if it is matched.
    """

    architecture: str
    overrides: dict[str, Any]
    size: Size
    deviation: float | None
    matched: bool
    reason: str | None


def match(
    architecture: Architecture,
    preset: str,
    overrides: Mapping[str, Any],
    target: float,
    quantity: Quantity = "non_embedding_active_parameters",
    tolerance: float = 0.02,
) -> Match:
    """The shape that has about ``target`` of ``quantity`` and is nearest to the preset.

    A preset within the tolerance is not changed. The same arguments give the same shape.

    Args:
        architecture: the family.
        preset: where the search begins.
        overrides: fields set by the user, as for ``architecture.config``; they do not vary.
        target: a number of parameters, or bytes for one sequence of ``context_length`` positions.
        quantity: a field of :class:`archbench.measure.sizes.Size`.
        tolerance: largest relative deviation from the target.

    Raises:
        UsageError: the target is zero, as for a baseline that is only an embedding.
        UnknownNameError, ConfigError: the architecture has no such preset or field.
        HookFailedError: the plugin fails. Shapes that it refuses with a ValueError are skipped.
    """
    from archbench.measure.meta_device import meta_device
    from archbench.measure.sizes import size_of

    if target <= 0:
        step = "Match something else, or take another baseline"
        raise UsageError(f"{UNITS[quantity]} to be matched", "there are none", step)
    published = architecture.config(preset, **overrides)
    start = _scaled_down(architecture, published, frozenset(overrides), target, quantity)
    family = Family(start, frozenset(overrides), quantity)
    search = _Search(architecture, start, family, target, quantity, tolerance)
    shape, value = search.run()
    changes = {name: number for name, number in shape.items() if number != getattr(published, name)}
    config = architecture.config(published, **changes)
    with meta_device():
        size = size_of(architecture.build(config), config.context_length)
    reason = search.reason(shape, value)
    deviation = None if value is None else value / target - 1
    return Match(architecture.name, {**overrides, **changes}, size, deviation, reason is None, reason)


def _scaled_down(
    architecture: Architecture, start: ModelConfig, fixed: frozenset[str], target: float, quantity: Quantity
) -> ModelConfig:
    """``start``, or if it is :data:`FAR` from the target about its shape at the target's size: L C² parameters."""
    family = Family(start, fixed, quantity)
    if quantity == "state_bytes" or not {"n_layer", "d_model"} <= {*family.free}:
        return start
    size = _Search(architecture, start, family, target, quantity, 0.0).first()
    if not size or size <= FAR * target:
        return start
    scale = (target / size) ** (1 / 3)
    try:
        return architecture.config(start, **{name: n for name, n in family.scaled(scale).items() if name not in fixed})
    except ValueError:  # the architecture links its sizes in a way of its own
        return start


class _Search:
    """A search: the shapes tried and their sizes."""

    def __init__(
        self,
        architecture: Architecture,
        start: ModelConfig,
        family: Family,
        target: float,
        quantity: Quantity,
        tolerance: float,
    ) -> None:
        self.architecture, self.start, self.family = architecture, start, family
        self.target, self.quantity, self.tolerance = target, quantity, tolerance
        self.tried: dict[tuple[int, ...], float | None] = {}
        # Shapes that stay below, or above, the target.
        self.small: list[Shape] = []
        self.large: list[Shape] = []
        self.best: tuple[Shape, float | None] = (family.start, None)
        self.price = (math.inf, math.inf, math.inf)
        self._head: tuple[str, ...] | None = None  # the same in every shape; finding it takes a pass

    def run(self) -> tuple[Shape, float | None]:
        """The least changed shape within the tolerance, else the nearest one; its size, or None if it has none."""
        first = self.first()
        if first is None:
            return self.best
        self._note(self.family.start, first)
        if not first:
            return self.best
        factor = self.target / first
        for grain in (16, 2):
            self.small, self.large = [], []
            for depth in self.family.depths():
                if 4 * abs(math.log(depth / self.family.depth)) < self.price[0]:
                    self._search_widths(depth, grain, factor)
            if self.price[0] < 1 + abs(math.log(factor)):
                break
        return self.best

    def first(self) -> float | None:
        """The size of the start."""
        return self._measure(self.start)

    def reason(self, shape: Shape, value: float | None) -> str | None:
        """Why the best shape does not match; None if it does."""
        if value is None:
            return "it decodes without a cache, so it has no state that could be made equal"
        share = value / self.target - 1
        if abs(share) <= self.tolerance:
            return None
        more = "more" if share > 0 else "fewer"
        nearest = f"{value:,.0f} {UNITS[self.quantity]}, {abs(share):.1%} {more} than {self.target:,.0f}"
        given = ", ".join(name for name in self.family.start if name in self.family.fixed)
        if not self.family.free:
            known = f"all it has of them is given: {given}" if given else f"it has none of {', '.join(VARIED)}"
            return f"it has {nearest}, and no field of its configuration can be varied ({known})"
        count = sum(size is not None for size in self.tried.values())
        fields = ", ".join(f"{name}={shape[name]}" for name in self.family.free)
        limit = ", after which the search was given up," if len(self.tried) >= MOST_BUILDS else ""
        return f"the nearest of {count} shapes{limit} has {nearest}: {fields}" + (given and f" ({given} given)")

    def _search_widths(self, depth: int, grain: int, factor: float) -> None:
        """All widths at one depth, the preset's first, then the nearest ones."""
        widths = self.family.widths(depth, grain, factor)
        for shape in widths.pop(self.family.width, []):
            self._fit(shape, grain)
        order = [width for width, shapes in widths.items() if self.family.distance(shapes[0]) < self.price[0]]
        # Bisection approaches a far target: a shape that is too small or large rules out all before it.
        bisect.bisect_left(order, True, key=lambda width: self._side(max(widths[width], key=kept_state), grain) >= 0)
        bisect.bisect_left(order, True, key=lambda width: self._side(min(widths[width], key=kept_state), grain) > 0)
        shapes = [shape for width in order for shape in widths[width]]
        for shape in sorted(shapes, key=lambda shape: (self.family.distance(shape), *shape.values())):
            self._fit(shape, grain)

    def _fit(self, shape: Shape, grain: int) -> None:
        if self.family.distance(shape) < self.price[0] and not self._hopeless(shape) and not self._side(shape, grain):
            self._size(shape)
            for shapes in self.family.slides(shape, grain):
                self._slide(shapes)

    def _side(self, shape: Shape, grain: int) -> int:
        """-1 if no slide of one field reaches up to the target, 1 if none reaches down to it, else 0."""
        slides = list(self.family.slides(shape, grain)) or [[shape]]
        lowest, highest = ([self._size(shapes[end]) for shapes in slides] for end in (0, -1))
        if all(size is not None and size < self.target for size in highest):
            self.small.append(shape)
            return -1
        if all(size is not None and size > self.target for size in lowest):
            self.large.append(shape)
            return 1
        return 0

    def _hopeless(self, shape: Shape) -> bool:
        """Whether no field exceeds that of a shape too small, or all reach those of a shape too large."""
        names = [name for name in shape if name != "n_head"]  # at the same inner width, more heads do not add size
        return any(all(shape[name] <= other[name] for name in names) for other in self.small) or any(
            all(shape[name] >= other[name] for name in names) for other in self.large
        )

    def _slide(self, shapes: list[Shape]) -> None:
        """Try the two shapes around the target, found by interpolation: size is mostly linear in one field."""
        shapes = list(shapes)
        low, high = 0, len(shapes) - 1
        while high - low > 1:
            smallest, largest = self._size(shapes[low]), self._size(shapes[high])
            if smallest is None:
                low += 1
            elif largest is None:
                high -= 1
            elif not smallest < self.target < largest:
                return
            else:
                guess = low + round((self.target - smallest) / (largest - smallest) * (high - low))
                middle = min(max(guess, low + 1), high - 1)
                size = self._size(shapes[middle])
                if size is None:
                    del shapes[middle]
                    high -= 1
                elif size <= self.target:
                    low = middle
                else:
                    high = middle

    def _size(self, shape: Shape) -> float | None:
        """None for a shape that the architecture refuses, and for new shapes after :data:`MOST_BUILDS`."""
        key = tuple(shape.values())
        if key not in self.tried:
            if len(self.tried) >= MOST_BUILDS:
                return None
            try:
                size = self._measure(self.architecture.config(self.start, **shape))
            except ValueError:  # ConfigError is one
                size = None
            except HookFailedError as error:
                if not isinstance(error.__cause__, ValueError):
                    raise
                size = None
            self._note(shape, size)
        return self.tried[key]

    def _note(self, shape: Shape, size: float | None) -> None:
        self.tried[tuple(shape.values())] = size
        if size is None:
            return
        deviation, distance = abs(size / self.target - 1), self.family.distance(shape)
        # The preset costs nothing. Of shapes about as different, the one nearer to the target is better.
        cost = distance and distance + 5 * deviation
        price = (cost if deviation <= self.tolerance else math.inf, deviation, distance)
        if price < self.price:
            self.best, self.price = (shape, size), price

    def _measure(self, config: ModelConfig) -> float | None:
        from archbench.measure.flops import cache_bytes
        from archbench.measure.meta_device import meta_device
        from archbench.measure.sizes import head_names, non_embedding_active_parameters

        with meta_device():
            model = self.architecture.build(config)
        if self.quantity == "state_bytes":
            return cache_bytes(model, 1, config.context_length)
        if self._head is None:
            self._head = head_names(model)
        return non_embedding_active_parameters(model, self._head)
