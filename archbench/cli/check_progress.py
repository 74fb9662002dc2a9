"""How ``archbench check`` shows its progress: a line that changes on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.live import Live

    from archbench.testing.evaluation import Result
    from archbench.testing.isolation import Claim


class CheckProgress:
    """Progress on standard error, while this is entered.

    Args:
        quiet: show none.
        json: JSON lines go to standard output meanwhile; on a terminal, a changing line would run into them.
    """

    def __init__(self, *, quiet: bool, json: bool) -> None:
        self._plain = not quiet
        self._live: Live | None = None
        if not quiet and sys.stderr.isatty() and not (json and sys.stdout.isatty()):
            from rich.console import Console
            from rich.live import Live

            self._plain = False
            # Rich would take standard output over as well, which may be a file that programs read.
            self._live = Live(
                console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
            )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._show("loading")
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begun(self, claim: Claim, number: int, count: int) -> None:
        """``claim`` is being checked, the ``number``-th of ``count``."""
        self._show(f"{claim.name} ({number} of {count})")

    def ended(self, result: Result) -> None:
        """A check has ended."""
        if self._plain:
            print(f"{result.name:<18}{result.status:<18}{result.seconds:.1f} s", file=sys.stderr, flush=True)

    def _show(self, text: str) -> None:
        if self._live is not None:
            from rich.spinner import Spinner

            self._live.update(Spinner("dots", text))
