"""Colours and markers: they belong to an architecture, on every page.

The colours are near Okabe and Ito's (2008, "Color Universal Design"), without their yellow, which is too pale for lines
on white. They are moved just enough that any two are 13 apart in CIELAB, for readers without red or green cones too.
Dark backgrounds have lighter ones. Markers differ too, for print without colours.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

LIGHT = (
    "#505356", "#0072B2", "#AC3C00", "#009E73", "#A93E85", "#CE9713", "#3FA7D6", "#741834", "#7A74E0", "#9F8000",
)  # fmt: skip
DARK = (
    "#C5C6CA", "#6DB3ED", "#F38351", "#4DD69F", "#DE89C3", "#FFCB5A", "#8AD4FA", "#D36D8B", "#9D98FE", "#B8B62F",
)  # fmt: skip
"""By number; :data:`LIGHT` on white, :data:`DARK` on nearly black."""

HEAT = ((0.0, "#f1f5fa"), (0.5, "#7fb3d9"), (1.0, "#0b3c6f"))
"""Colours of a heat map, from 0 to 1: one hue, so values differ in lightness alone."""

MARKERS = (
    "M.8,0A.8,.8 0 1,1 -.8,0A.8,.8 0 1,1 .8,0Z",
    "M-.72,-.72H.72V.72H-.72Z",
    "M0,-.92L.88,.68H-.88Z",
    "M0,-.96L.96,0L0,.96L-.96,0Z",
    "M0,.92L.88,-.68H-.88Z",
    "M-.32,-.92H.32V-.32H.92V.32H.32V.92H-.32V.32H-.92V-.32H-.32Z",
    "M0,-.92L.88,-.28L.54,.74H-.54L-.88,-.28Z",
    "M0,-1L.26,-.34L.96,-.3L.42,.14L.6,.82L0,.44L-.6,.82L-.42,.14L-.96,-.3L-.26,-.34Z",
    "M0,-.92L.8,-.46V.46L0,.92L-.8,.46V-.46Z",
)
"""Markers as SVG paths in a box from -1 to 1: circle, square, triangles, diamond, cross, pentagon, star, hexagon."""


@dataclass(frozen=True)
class Style:
    """The look of an architecture: indices into :data:`LIGHT`/:data:`DARK` and :data:`MARKERS`, and its lines."""

    colour: int
    marker: int
    dashed: bool = False

    @property
    def variable(self) -> str:
        """The CSS variable that holds the colour; the page sets it for light and dark."""
        return f"var(--series-{self.colour})"

    @property
    def path(self) -> str:
        return MARKERS[self.marker]


_BUILT_IN = (
    "gpt1", "llama", "gpt2", "mamba2", "gated-deltanet", "rwkv7", "hybrid", "mistral", "gemma", "mixtral",
)  # fmt: skip
"""The built-in architectures, in the order of their colours."""


def style_of(architecture: str) -> Style:
    """The style of an architecture wherever it appears: one of its own for each built-in, and for any other one, with
    dashed lines, that its name decides."""
    if architecture in _BUILT_IN:
        number = _BUILT_IN.index(architecture)
        return Style(number, (number + number // len(MARKERS)) % len(MARKERS))
    marker, colour = divmod(zlib.crc32(architecture.encode()), len(LIGHT))
    return Style(colour, marker % len(MARKERS), dashed=True)


def styles_of(architectures: Mapping[str, str]) -> dict[str, Style]:
    """The style of each name: that of its architecture. A further set of runs of one architecture, and one whose name
    happens to give the look of another, has the next marker.

    Args:
        architectures: name of an architecture or of a set of its runs -> the architecture.
    """
    styles: dict[str, Style] = {}
    for name in sorted(architectures, key=lambda name: (architectures[name] not in _BUILT_IN, name)):
        style = style_of(architectures[name])
        for _ in MARKERS:
            if style not in styles.values():
                break
            style = replace(style, marker=(style.marker + 1) % len(MARKERS))
        styles[name] = style
    return {name: styles[name] for name in architectures}


def ink_on(value: float) -> str:
    """Black or white, whichever has more contrast (WCAG 2.2) with :data:`HEAT` at ``value``."""
    place = min(max(value, 0.0), 1.0)
    (start, first), (end, last) = next((low, high) for low, high in pairwise(HEAT) if place <= high[0])
    share = (place - start) / (end - start)
    mixed = [a + share * (b - a) for a, b in zip(_channels(first), _channels(last), strict=True)]
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in mixed]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def _channels(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
