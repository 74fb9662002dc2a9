"""Checks in a child process, so that a plugin which hangs, crashes or exits costs one check and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from archbench.child.process import Child, LostError
from archbench.errors import ConformanceError, PluginError, PluginImportError
from archbench.testing.evaluation import Result, judged, not_run
from archbench.testing.plugin_lines import dumped_frames, plugin_line

LIMIT = 60.0
"""Seconds that one check may take, and loading the plugin; those in which a busy machine keeps it waiting do not count
(:mod:`archbench.child.own_time`)."""

STARTS = 20.0
"""The limit on a slow machine: this many times what the child took to start, which is to import torch."""


@dataclass(frozen=True)
class Request:
    """What to check.

    Attributes:
        architecture: its name.
        plugins: absolute paths of plugin files and folders.
        preset: of the model.
        overrides: fields of its configuration, as text.
        checks: names; None for all.
        expected_failures: check -> reason.
        device: where the models are.
        seed: of weights and tokens.
    """

    architecture: str
    plugins: tuple[str, ...] = ()
    preset: str = "nano"
    overrides: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[str, ...] | None = None
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Claim:
    """A :class:`~archbench.testing.evaluation.Check` without its function, which stays in the child process."""

    name: str
    why: str
    gate: bool


Observer = Callable[[Claim, int, int], None]
"""Called as each check begins, with the check, its number from 1 on, and the number of checks."""


def check_apart(
    request: Request,
    *,
    limit: float | None = None,
    begun: Observer = lambda claim, number, count: None,
    loaded: Callable[[float], None] = lambda seconds: None,
) -> Generator[tuple[Claim, Result], None, None]:
    """Run checks in a child process (:mod:`archbench.testing.check_worker`); yields each result as it comes.

    A check that takes longer than ``limit`` seconds (by default :data:`LIMIT`, or more on a slow machine), or ends its
    process, has failed; the others go on in a new one.
    A plugin that cannot be loaded fails ``hooks``, and nothing else is run. Closing the generator ends the process
    and all that it has started. ``loaded`` gets the seconds that importing the plugin took, each time.

    Raises:
        UsageError: no such architecture, preset, field or check; an expected failure without a reason.
        PluginError: the plugin cannot be loaded, and ``hooks`` was not asked for.
        ConformanceError: no process for the checks could be started.
    """
    claims: list[Claim] = []
    results: list[Result] = []
    while not claims or len(results) < len(claims):
        left = request.checks if not claims else tuple(claim.name for claim in claims[len(results) :])
        failed = [result.name for result in results if result.blocks]
        content = {"request": asdict(replace(request, checks=left)), "failed": failed}
        with Child("archbench.testing.check_worker", content, culprit="the checks", traced=True) as child:
            own_time = child.own_time()
            promised = _promised(child)
            claims = claims or promised
            limit = limit or max(LIMIT, STARTS * own_time())
            start = time.monotonic()
            try:
                _load(child, request.architecture, limit, own_time)
            except PluginError as error:
                if claims[len(results)].name != "hooks":
                    raise
                yield from zip(claims, _unloadable(error, claims, request.expected_failures), strict=True)
                return
            loaded(time.monotonic() - start)
            while len(results) < len(claims):
                claim = claims[len(results)]
                begun(claim, len(results) + 1, len(claims))
                start = time.monotonic()
                try:
                    result = Result(**child.receive(limit, own_time))
                except LostError as lost:
                    evidence, trace = _how(lost, child, limit)
                    result = Result(claim.name, "failed", evidence, time.monotonic() - start, trace)
                    results.append(judged(result, request.expected_failures))
                    yield claim, results[-1]
                    break
                results.append(result)
                yield claim, result


def _promised(child: Child) -> list[Claim]:
    """The checks that the child will run; without a time limit, for the plugin is not even imported yet."""
    try:
        return [Claim(**check) for check in child.receive()]
    except LostError as lost:
        cause = f"it could not be started: it {lost}"
        raise ConformanceError("the process for the checks", cause, "See what it printed above") from None


def _load(child: Child, architecture: str, limit: float, clock: Callable[[], float]) -> None:
    """Wait until the plugin is loaded.

    Raises:
        PluginError: it cannot be, ends the process, or takes longer than ``limit`` seconds by ``clock``.
    """
    try:
        child.receive(limit, clock)
    except LostError as lost:
        evidence, trace = _how(lost, child, limit)
        step = "Importing a plugin should define things, and do nothing"
        error = PluginImportError(f"architecture {architecture!r}", f"while it was loaded, {evidence}", step)
        error.add_note(trace)
        raise error from None


def _unloadable(error: PluginError, claims: list[Claim], expected: Mapping[str, str]) -> Iterator[Result]:
    """``hooks`` failed, and there is nothing to run the others on."""
    hooks = Result("hooks", "failed", str(error), trace="".join(getattr(error, "__notes__", ())))
    yield judged(hooks, expected)
    for claim in claims[1:]:
        yield not_run(claim.name, "hooks")


def _how(lost: LostError, child: Child, limit: float) -> tuple[str, str]:
    """How a check ended its process, with the plugin's line as the evidence; and the whole stack, "" without one."""
    trace = child.position()
    line = plugin_line(dumped_frames(trace))
    if lost.code is None:
        return (
            f"it did not end within {limit:g} s{line}. If it is slow rather than stuck, --limit gives it longer",
            trace,
        )
    what = f"the process {lost}" if lost.code < 0 else f"it ended the process with exit code {lost.code}"
    return f"{what}{line}", trace
