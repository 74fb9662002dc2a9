"""Call a function for many items in several child processes at once."""

from __future__ import annotations

import base64
import pickle
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from archbench.child.process import GRACE, Child, Inbox, LostError
from archbench.errors import PhaseError

if TYPE_CHECKING:
    from archbench.child.entry import Parent

T = TypeVar("T")
R = TypeVar("R")


def run_all(
    function: Callable[[T], R],
    items: Sequence[T],
    jobs: int,
    *,
    culprit: str,
    lost: Callable[[T, str], R] | None = None,
    started: Callable[[T], None] = lambda item: None,
) -> Iterator[tuple[T, R]]:
    """Yield each item with ``function(item)``, called in a child process, in the order in which they finish.

    Closing the iterator, or an error, ends the children and all processes that they have started.

    Args:
        function: at the top level of a module, where another process finds it.
        items: arguments; they and the results are pickled.
        jobs: number of children.
        culprit: names the children in errors.
        lost: the result for an item whose child died, given the item and how (``died of SIGSEGV``); without it the
            first such child ends everything.
        started: called when a child is given an item.

    Raises:
        ArchbenchError: ``function`` raised it.
        PhaseError: a child died, or ``function`` raised another error.
        KeyboardInterrupt: the children are interrupted too, and have time to write their files.
    """
    inbox: Inbox = queue.SimpleQueue()
    waiting = list(items)[::-1]
    running: dict[Child, T] = {}
    with ExitStack() as children:

        def start() -> None:
            grace = GRACE + 1.0  # what it measures may be in a child of its own
            child = Child(__name__, _packed(function), culprit=culprit, inbox=inbox, grace=grace)
            children.enter_context(child)
            give(child)

        def give(child: Child) -> None:
            running[child] = waiting.pop()
            child.send(_packed(running[child]))
            started(running[child])

        try:
            for _ in range(min(jobs, len(items))):
                start()
            while running:
                child, line = inbox.get()
                if child not in running:
                    continue  # it has ended, after its last item
                item = running.pop(child)
                try:
                    result: R = _unpacked(child.opened(line))
                except LostError as error:
                    if lost is None:
                        cause = f"a process that was measuring {error}"
                        step = "Free some memory or use fewer --jobs, then run the same command again"
                        raise PhaseError(culprit, cause, f"{step}: what is finished is kept") from None
                    result = lost(item, str(error))
                    if waiting:
                        start()
                else:
                    if waiting:
                        give(child)
                yield item, result
        except KeyboardInterrupt as interruption:
            for child in running:
                child.interrupt(interruption)
            raise


def main(parent: Parent, request: str) -> None:
    """In the child: call the function for each item that comes."""
    function = _unpacked(request)
    while (item := parent.receive()) is not None:
        parent.send(_packed(function(_unpacked(item))))


def _packed(value: Any) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()


def _unpacked(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))
