"""A console of rich whose output has no control characters but rich's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from archbench.presentation.characters import visible


class Screen(Console):
    """Made by :func:`archbench.presentation.terminal.console`."""

    def render_str(self, text: str, **settings: Any) -> Text:
        # Before rich sees it, which drops some of them.
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
