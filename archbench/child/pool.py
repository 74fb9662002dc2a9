"""Call functions in several child processes at once."""

from __future__ import annotations

import base64
import pickle
import queue
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from archbench.child.process import GRACE, Child, Inbox, LostError

if TYPE_CHECKING:
    from archbench.child.entry import Parent


@dataclass(frozen=True)
class Ended:
    """A call that has ended: its name, and what it returned, or how its child died (``died of SIGSEGV``)."""

    name: str
    result: Any = None
    lost: str | None = None


class Pool:
    """Children that each make one call at a time. Leaving the context ends them and all that they have started; a
    KeyboardInterrupt interrupts them first, and they have time to write their files.

    Args:
        size: most children; they start when there is work for them.
        culprit: names the children in errors.
        variables: environment variables of each child, by its place; none for an empty sequence.
    """

    def __init__(self, size: int, *, culprit: str, variables: Sequence[Mapping[str, str]] = ()) -> None:
        self.size = size
        self._culprit, self._variables = culprit, variables
        self._inbox: Inbox = queue.SimpleQueue()
        self._stack = ExitStack()
        self._places = list(range(size))[::-1]
        self._children: dict[Child, int] = {}
        self._calls: dict[Child, str] = {}

    def __enter__(self) -> Self:
        self._stack.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            for child in self._calls:
                child.interrupt(error)
        self._stack.__exit__(kind, error, trace)

    @property
    def running(self) -> list[str]:
        """Names of the calls that have not ended."""
        return list(self._calls.values())

    def call(self, name: str, function: Callable[[Any], Any], argument: Any) -> None:
        """Begin a call in a child that has none; there must be one.

        Args:
            function: at the top level of a module, where another process finds it.
            argument: it and the result are pickled.
        """
        idle = [child for child in self._children if child not in self._calls]
        child = idle[0] if idle else self._started()
        self._calls[child] = name
        child.send(_packed((function, argument)))

    def ended(self, limit: float) -> Ended | None:
        """The next call that ends within ``limit`` seconds; None if none does.

        Raises:
            ArchbenchError: the function raised it.
            PhaseError: the function raised another error.
        """
        try:
            child, line = self._inbox.get(timeout=limit) if limit > 0 else self._inbox.get_nowait()
        except queue.Empty:
            return None
        if child not in self._children:
            return None  # it has ended, after its last call
        try:
            result = _unpacked(child.opened(line))
        except LostError as error:
            self._places.append(self._children.pop(child))
            name = self._calls.pop(child, None)
            return None if name is None else Ended(name, lost=str(error))
        return Ended(self._calls.pop(child), result)

    def end(self, name: str) -> None:
        """End the child that makes this call."""
        for child, call in list(self._calls.items()):
            if call == name:
                del self._calls[child]
                self._places.append(self._children.pop(child))
                child.__exit__(None, None, None)

    def _started(self) -> Child:
        place = self._places.pop()
        grace = GRACE + 1.0  # what it measures may be in a child of its own
        variables = self._variables[place] if self._variables else None
        child = Child(__name__, None, culprit=self._culprit, inbox=self._inbox, grace=grace, variables=variables)
        self._stack.enter_context(child)
        self._children[child] = place
        return child


def main(parent: Parent, request: None) -> None:
    """In the child: make each call that comes."""
    while (call := parent.receive()) is not None:
        function, argument = _unpacked(call)
        parent.send(_packed(function(argument)))


def _packed(value: Any) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()


def _unpacked(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))
