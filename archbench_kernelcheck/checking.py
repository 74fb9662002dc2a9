"""Check launches in child processes: a compiler that crashes ends only its own process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from archbench.errors import ArchbenchError, UsageError, from_dict
from archbench.kernels.launch import Launch
from archbench.measure.machine import usable_cpus
from archbench_kernelcheck.chips import CHIPS, Chip, chip_named
from archbench_kernelcheck.compilation import compile_launch, pretended
from archbench_kernelcheck.figures import Failure, Figures, figures

Result = Figures | Failure

Launches = Callable[[str], Iterable[Launch]]
"""The launches to compile for the chip of that name."""


def check_on(
    chips: Sequence[str],
    load: Callable[[], Launches],
    *,
    workers: int | None = None,
    progress: Callable[[Result, int], None] | None = None,
    code: Path | None = None,
) -> list[Result]:
    """Compile and read the launches for each named chip.

    Args:
        chips: names of chips; empty for all known ones.
        load: imports the module that defines the kernels and returns its launches. It is called once, with a pretended
            chip, because Triton asks its driver when a module defines a kernel.
        workers, code: see :func:`check`.
        progress: called with each result as it arrives, and the number of all.

    Raises:
        UnknownNameError: there is no such chip.
        ArchbenchError: Triton is missing, its interpreter is on, or what ``load`` raises.
    """
    launches: Launches | None = None
    jobs: list[tuple[Chip, Launch]] = []
    for chip in [chip_named(name) for name in dict.fromkeys(chips or CHIPS)]:
        with pretended(chip):
            launches = launches or load()
            jobs += [(chip, launch) for launch in launches(chip.name)]
    report = None if progress is None else lambda result: progress(result, len(jobs))
    return check(jobs, workers=workers, progress=report, code=code)


def check(
    jobs: Sequence[tuple[Chip, Launch]],
    *,
    workers: int | None = None,
    progress: Callable[[Result], None] | None = None,
    code: Path | None = None,
) -> list[Result]:
    """Compile each launch for its chip and read the code, several at once.

    Args:
        jobs: pairs of chip and launch.
        workers: processes at once; by default one per usable CPU.
        progress: called with each result as it arrives.
        code: a folder to write the machine code of every launch to, as ``sm_90 forward.txt``.

    Returns:
        The results in the order of ``jobs``; a :class:`Failure` for a kernel that the compiler rejects or crashes on.

    Raises:
        ArchbenchError: the fault is not a kernel's: Triton is missing, or its interpreter is on.
    """
    if not jobs:
        return []
    with pretended(jobs[0][0]):
        from triton.runtime.cache import triton_key

        triton_key()  # hashing all of Triton takes a second; every process below inherits the result
    if sys.platform == "win32":
        raise UsageError("kernels --static", "Windows cannot fork, which it needs", "Run it on Linux")
    workers = workers or len(usable_cpus())
    context = multiprocessing.get_context("fork")  # kernels cannot be pickled
    results: dict[int, Result] = {}
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    waiting = list(range(len(jobs)))[::-1]
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                number = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(target=_run, args=(sender, *jobs[number], code), daemon=True)
                process.start()
                sender.close()
                running[receiver] = number, process
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                number, process = running.pop(ready)
                results[number] = _received(ready, process, *jobs[number])
                if progress is not None:
                    progress(results[number])
    finally:
        for _, process in running.values():
            process.terminate()
    return [results[number] for number in range(len(jobs))]


def _received(receiver: Connection, process: BaseProcess, chip: Chip, launch: Launch) -> Result:
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Failure(chip.name, launch.name, f"the compiler crashed ({how})")
    process.join()
    if isinstance(answer, dict):
        raise from_dict(answer)
    assert isinstance(answer, (Figures, Failure))
    return answer


def _run(sender: Connection, chip: Chip, launch: Launch, code: Path | None) -> None:
    # Triton prints the whole program of a kernel that its assembler rejects: keep that out of the user's terminal.
    with tempfile.TemporaryFile() as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            compiled = compile_launch(launch, chip)
            if code is not None:
                (code / f"{chip.name} {launch.name.replace('/', '-')}.txt").write_text(compiled.code, encoding="utf-8")
            sender.send(figures(compiled))
        except ArchbenchError as error:
            sender.send(error.as_dict())
        except Exception as error:  # noqa: BLE001  a compiler's error is the kernel's result
            lines = [line for line in str(error).splitlines() if line.strip()]
            sender.send(Failure(chip.name, launch.name, f"{type(error).__name__}: {lines[-1] if lines else ''}"))
