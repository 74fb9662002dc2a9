"""The contract of a kind of study: its plan, contenders and cells, and what the engine asks of it.

A new kind is a plan, an outcome, a class of cells and a subclass of :class:`Study`; ``probe.py`` is the shortest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from archbench.errors import UsageError
from archbench.measure.sizes import Size
from archbench.study.outcome import Outcome, Record

if TYPE_CHECKING:
    import pyarrow as pa

    from archbench.study.engine import Session


class Plan(Protocol):
    """A frozen pydantic model. Plans of one digest may continue each other's folder."""

    @property
    def architectures(self) -> tuple[str, ...]: ...
    @property
    def jobs(self) -> int: ...
    def digest(self) -> str: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Contender:
    """An architecture at the size at which it takes part, or the reason why it does not.

    Attributes:
        architecture: its name.
        overrides: fields of its preset that are replaced, the matched ones among them.
        source: digest of its plugin's code.
        reason: why it takes no part; None if it does.
        context_length: T that it is trained on; None where each task has its own.
        size: parameters, FLOPs and state bytes; None if it could not be built, or has a size for each task.
        deviation: of the matched quantity from what was asked, relative; None if nothing is matched.
        asked: size N that was asked for, in a ladder of sizes.
    """

    architecture: str
    overrides: Mapping[str, Any]
    source: str
    reason: str | None = None
    context_length: int | None = None
    size: Size | None = None
    deviation: float | None = None
    asked: int | None = None

    @property
    def matched(self) -> bool:
        """Whether it takes part."""
        return self.reason is None

    @property
    def key(self) -> tuple[str, int | None]:
        """Tells the contenders of a study apart."""
        return self.architecture, self.asked

    def __str__(self) -> str:
        return self.architecture if self.asked is None else f"{self.architecture} of {self.asked:,} parameters"


R = TypeVar("R", bound=Record)
RecordKind = TypeVar("RecordKind", bound=Record, covariant=True)


class Cell(Protocol[RecordKind]):
    """Something that is measured once. It is pickled: another process measures it.

    ``key`` is 16 hex digits, equal for cells that measure the same with the same code.
    """

    @property
    def key(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    def measure(self, folder: Path, trackers: Sequence[str]) -> RecordKind:
        """Measure. An error that ends the measurement is in the record; a StorageError is raised."""
        ...


P = TypeVar("P", bound=Plan)
C = TypeVar("C", bound=Cell[Any])
O = TypeVar("O", bound=Outcome)  # noqa: E741


class Progress(Protocol):
    """Hears how a study gets on."""

    def piloting(self, cells: int) -> None:
        """This many pilots run first, unless they are known."""
        ...

    def began(self, seconds: float, left: float, cells: int, known: int) -> None:
        """After the pilots: predicted seconds of everything and of the cells left; number of cells, known ones too."""
        ...

    def finished(self, cell: Any, record: Any) -> None:
        """A cell was measured."""
        ...

    def note(self, text: str) -> None:
        """Something to know, such as why an architecture takes no part."""
        ...


class Study(ABC, Generic[P, C, R, O]):
    """A kind of study: what the engine asks of it, in the order in which it asks.

    Attributes:
        kind: of outcome; it also names the files.
        record: of a cell.
        plan: what to measure.
    """

    kind: type[O]
    record: type[R]
    least: ClassVar[int] = 1
    verb: ClassVar[str]
    names: ClassVar[str] = "architectures"
    """How many contenders there must be; what nothing is left for otherwise, and what other names to give."""

    def __init__(self, plan: P) -> None:
        self.plan = plan

    @abstractmethod
    def contenders(self) -> list[Contender]:
        """Every architecture of the plan at its size, or with the reason why it takes no part."""

    @abstractmethod
    def pilots(self, contender: Contender) -> Sequence[C]:
        """Short cells that predict what the contender's other cells take."""

    @abstractmethod
    def admit(self, contender: Contender, pilots: Sequence[R], folder: Path) -> str | None:
        """Keep what the pilots in ``folder`` say about time; why the contender takes no part, if there is a reason."""

    def prepare(self, session: Session[P, C, R, O]) -> None:
        """After all pilots.

        Raises:
            UsageError: too few contenders take part.
        """
        if len(session.taking_part()) < self.least:
            step = f"Correct what the notes above say, or name other {self.names}"
            raise UsageError(self.kind.command_name, f"nothing is left to {self.verb}", step)

    @abstractmethod
    def measure(self, session: Session[P, C, R, O]) -> None:
        """Run the cells, stage by stage, with :meth:`Session.run`.

        It is called twice. The first session only plans: ``run`` returns the known records and measures nothing.
        """

    @abstractmethod
    def seconds(self, cell: C) -> float:
        """Predicted seconds of a cell."""

    @abstractmethod
    def outcome(self, session: Session[P, C, R, O], common: Mapping[str, Any]) -> tuple[O, list[pa.Table]]:
        """The outcome, of which ``common`` are the fields that all have, and the rows to keep beside it."""

    def continues(self, kept: Mapping[str, Any]) -> bool:
        """Whether this plan may go on in the folder of the plan in ``kept``, the content of its plan file."""
        return kept.get("digest") == self.plan.digest()
