"""What a kind of study provides: its plan, contenders and cells, and the methods that the engine calls.

A new kind is a plan, an outcome and a subclass of :class:`Study`, with cells of its own as in ``probe.py``. Where cells
are runs it subclasses :class:`archbench.study.run_study.RunStudy`, which has pilots and predicted times, or
``TuningStudy``, which also searches for learning rates as in ``scale.py``; ``run_cell`` makes the cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from archbench.errors import UsageError
from archbench.measure.sizes import Size
from archbench.study.outcome import Outcome, Record

if TYPE_CHECKING:
    import pyarrow as pa

    from archbench.study.engine import Session
    from archbench.study.time_left import TimeLeft


class Plan(Protocol):
    """A frozen pydantic model. Plans with the same digest can share a folder."""

    @property
    def architectures(self) -> tuple[str, ...]: ...
    @property
    def jobs(self) -> int: ...
    def digest(self) -> str: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Contender:
    """An architecture with the size at which it takes part, or with the reason why it does not.

    Attributes:
        architecture: its name.
        overrides: replaced fields of its preset, including the matched ones.
        source: digest of its plugin's code.
        reason: why it takes no part; None if it does.
        context_length: T of its training; None if each task has its own.
        size: parameters, FLOPs and state bytes; None if it could not be built, or has a size for each task.
        deviation: relative deviation of the matched quantity from its target; None if nothing is matched.
        asked: the requested size N, in a ladder of sizes.
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
    def measures(self) -> dict[str, Any]:
        """The fields of its size; all None if it could not be built."""
        return {field.name: getattr(self.size, field.name, None) for field in fields(Size)}

    @property
    def key(self) -> tuple[str, int | None]:
        """Identifies the contender within its study."""
        return self.architecture, self.asked

    def __str__(self) -> str:
        return self.architecture if self.asked is None else f"{self.architecture} of {self.asked:,} parameters"


R = TypeVar("R", bound=Record)
RecordKind = TypeVar("RecordKind", bound=Record, covariant=True)


class Cell(Protocol[RecordKind]):
    """A unit of measurement, measured once. It is pickled, because another process measures it.

    ``key`` is 16 hex digits; cells that measure the same with the same code have the same key. A cell that runs a
    plugin's code also has ``plugins``, the files that may claim its ``architecture``, and one that is measured on a GPU
    its ``device``.
    """

    @property
    def key(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    def measure(self, folder: Path, trackers: Sequence[str]) -> RecordKind:
        """Measure. The record has an error that ended the measurement.

        Raises:
            StorageError: nothing can be stored, which ends the study.
            ResourceError, KilledError: memory ran out: the cell fails, and the same command measures it again.
        """
        ...


@dataclass(frozen=True)
class Quality:
    """How good an architecture is by one cell, for the view of the running study.

    Attributes:
        value: in ``unit``.
        unit: bit/byte, nats/token or accuracy.
        among: what the cells have in common that may be compared with this one, such as their budget.
    """

    value: float
    unit: str
    among: str

    @property
    def higher_is_better(self) -> bool:
        return self.unit == "accuracy"


P = TypeVar("P", bound=Plan)
C = TypeVar("C", bound=Cell[Any])
O = TypeVar("O", bound=Outcome)  # noqa: E741


class Progress(Protocol):
    """Listens to the progress of a study."""

    def piloting(self, cells: int) -> None:
        """This many pilots come first; known ones are not run again."""
        ...

    def began(self, seconds: float, left: TimeLeft, cells: int, known: int) -> None:
        """After the pilots: predicted seconds in total, the time left; number of cells, in total and known."""
        ...

    def started(self, cell: Any) -> None:
        """A process measures this cell now, which may be a pilot."""
        ...

    def finished(self, cell: Any, record: Any, quality: Quality | None) -> None:
        """It was measured."""
        ...

    def known(self, cell: Any, quality: Quality | None) -> None:
        """An earlier session measured this cell."""
        ...

    def note(self, text: str) -> None:
        """A message for the user, such as why an architecture takes no part."""
        ...


class Study(ABC, Generic[P, C, R, O]):
    """A kind of study. The methods stand in the order in which the engine calls them.

    Attributes:
        kind: class of the outcome, which also names the files.
        record: class of a cell's record.
        plan: what to measure.
        least: fewest contenders.
        verb, names: for the message when fewer are left: what cannot be done, and which names to change.
    """

    kind: type[O]
    record: type[R]
    least: ClassVar[int] = 1
    verb: ClassVar[str]
    names: ClassVar[str] = "architectures"

    def __init__(self, plan: P) -> None:
        self.plan = plan

    @abstractmethod
    def contenders(self) -> list[Contender]:
        """Every architecture of the plan, with its size or the reason why it takes no part."""

    @abstractmethod
    def pilots(self, contender: Contender) -> Sequence[C]:
        """Short cells that predict the time of the contender's other cells."""

    @abstractmethod
    def admit(self, contender: Contender, pilots: Sequence[R], folder: Path) -> str | None:
        """Keep the times of the pilots in ``folder``. Returns why the contender takes no part, or None."""

    def prepare(self, session: Session[P, C, R, O]) -> None:
        """Called after all pilots.

        Raises:
            UsageError: too few contenders take part.
        """
        if len(session.taking_part()) < self.least:
            step = f"Correct what the notes above say, or name other {self.names}"
            raise UsageError(self.kind.command_name, f"nothing is left to {self.verb}", step)

    @abstractmethod
    def measure(self, session: Session[P, C, R, O]) -> None:
        """Run the cells, stage by stage, with :meth:`Session.run`.

        It is called twice. In the first session ``run`` only plans: it returns the known records and measures nothing.
        """

    @abstractmethod
    def seconds(self, cell: C) -> float:
        """Predicted seconds of a cell."""

    @abstractmethod
    def outcome(self, session: Session[P, C, R, O], common: Mapping[str, Any]) -> tuple[O, list[pa.Table]]:
        """The outcome and the rows to keep beside it. ``common`` has the fields that all outcomes have."""

    def sort(self, cell: C) -> str:
        """What the cell has in common with those whose times :meth:`seconds` predicts equally well."""
        return str(getattr(cell, "stage", ""))

    def quality(self, cell: C, record: R, folder: Path) -> Quality | None:
        """How good the cell shows its architecture to be; None if it does not."""
        return None

    def continues(self, kept: Mapping[str, Any]) -> bool:
        """Whether this plan may continue in a folder; ``kept`` is the content of its plan file."""
        return kept.get("digest") == self.plan.digest()
