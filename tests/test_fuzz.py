"""Command lines made from the commands' own options: whatever is written, archbench measures, shows or refuses it.

A failing line is printed with its number and its words, shortened as far as it still fails::

    ARCHBENCH_FUZZ_LINES=3000 ARCHBENCH_FUZZ_PROCESSES=300 pytest -n 2 -m slow tests/test_fuzz.py   # the full counts
    ARCHBENCH_FUZZ_SEED=1 ARCHBENCH_FUZZ_FIRST=17 ARCHBENCH_FUZZ_LINES=1 pytest -m slow tests/test_fuzz.py -k forks
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fuzz_lines
import fuzz_scratch
from forked_children import ForkedCommand
from fuzz_scratch import Scratch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SEED = int(os.environ.get("ARCHBENCH_FUZZ_SEED", "21"))
FIRST = int(os.environ.get("ARCHBENCH_FUZZ_FIRST", "0"))
LINES = int(os.environ.get("ARCHBENCH_FUZZ_LINES", "300"))
PROCESSES = int(os.environ.get("ARCHBENCH_FUZZ_PROCESSES", "30"))
PARTS = 4
"""Tests that share the large counts, for several workers."""

IN_EVERY_RUN = 12
PATIENCE = float(os.environ.get("ARCHBENCH_FUZZ_PATIENCE", "6"))
"""Seconds after which a command that is at work is interrupted: its line was accepted."""
HANG = 60.0
"""Seconds without an end, of the processor where the command computes: other work may keep it waiting."""

MEMORY = 4 << 30
"""Most bytes of the command's own process, torch included; one that measures may need more for what is asked of it."""

DOCUMENTED = {
    int(found)
    for row in (Path(__file__).parent.parent / "docs" / "reference" / "errors.md").read_text().splitlines()
    for found in re.findall(r"^[│├└─ ]*\w+Error.*?\s(\d+)(?:\s|$)|^\| (\d+) \|", row) for found in found if found
} - {70}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """What became of a line: exit code (None if it had to be killed), what it printed, and what else was seen."""

    code: int | None
    out: str
    error: str
    interrupted: bool = False
    seen: str = ""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fuzz_scratch.filled(tmp_path_factory.mktemp("fuzz") / "filled")


@pytest.fixture
def scratch(filled: Path, tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch", filled)


@pytest.mark.slow
def test_a_few_lines_are_measured_shown_or_refused(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most about a second each, also of what only reads: the large counts wait for the end of that."""
    monkeypatch.setattr("test_fuzz.PATIENCE", 1.0)
    monkeypatch.setattr(fuzz_lines, "MEASURING", fuzz_lines.commands())
    _try(scratch, (f"{SEED}:small:{number}" for number in range(IN_EVERY_RUN)), forked=True)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_lines_in_forks_are_measured_shown_or_refused(scratch: Scratch, part: int) -> None:
    _try(scratch, (f"{SEED}:{number}" for number in range(FIRST + part, FIRST + LINES, PARTS)), forked=True)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_lines_in_processes_are_measured_shown_or_refused(scratch: Scratch, part: int) -> None:
    _try(scratch, (f"{SEED}:real:{number}" for number in range(FIRST + part, FIRST + PROCESSES, PARTS)), forked=False)


def _try(scratch: Scratch, seeds: Iterator[str], *, forked: bool) -> None:
    failures, codes = [], Counter[str]()
    for seed in seeds:
        words = fuzz_lines.line(seed)
        ended, complaint = _tried(scratch, words, forked=forked)
        codes["interrupted" if ended.interrupted else str(ended.code)] += 1
        if complaint:
            shorter = _shortened(scratch, words, complaint, forked=forked)
            text = f"{seed}: {complaint}\n  {_spelled(words)}\n  {_spelled(shorter)}\n  {ended.error.strip()[-700:]!r}"
            failures.append(text)
            if log := os.environ.get("ARCHBENCH_FUZZ_LOG"):
                with open(log, "a") as file:
                    file.write(text + "\n")
    print(f"{sum(codes.values())} lines, exit codes {dict(codes.most_common())}, {len(failures)} failures")
    assert not failures, "\n" + "\n".join(failures)


def _spelled(words: Sequence[str]) -> str:
    return ascii(shlex.join(["archbench", *words])) if len(str(words)) < 3000 else f"{str(words)[:3000]} …"


def _tried(scratch: Scratch, words: Sequence[str], *, forked: bool) -> tuple[Ended, str]:
    """Run one line, and restore the folder. Returns its end, and what is wrong with it, or ""."""
    ended = _run(scratch, words, forked=forked)
    try:
        return ended, next(_complaints(scratch, words, ended), "")
    finally:
        scratch.restore()


def _shortened(scratch: Scratch, words: list[str], complaint: str, *, forked: bool) -> list[str]:
    """Fewer words with the same complaint."""
    kind = complaint.partition(":")[0]
    if kind in ("hangs", "memory"):
        return words
    for index in reversed(range(1, len(words))):
        fewer = words[:index] + words[index + 1 :]
        if _tried(scratch, fewer, forked=forked)[1].partition(":")[0] == kind:
            words = fewer
    return words


def _run(scratch: Scratch, words: Sequence[str], *, forked: bool) -> Ended:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        if forked:
            command = ForkedCommand(*words, cwd=scratch.cwd, env=scratch.variables)
            interrupted, seen = _watch(scratch, command.process.pid, words)
            done = command.finished()
            return Ended(done.returncode, done.stdout, done.stderr, interrupted, seen)
        script = str(Path(sys.executable).with_name("archbench"))
        given = [word.encode("utf-8", "surrogateescape") for word in words]
        process = subprocess.Popen(
            [script, *given], cwd=scratch.cwd, env={**os.environ, **scratch.variables}, stdin=subprocess.DEVNULL,
            stdout=out, stderr=error, process_group=0,
        )  # fmt: skip
        interrupted, seen = _watch(scratch, process.pid, words)
        code = process.wait()
        printed = []
        for file in (out, error):
            file.seek(0)
            printed.append(file.read().decode(errors="replace"))
        return Ended(code, *printed, interrupted, seen)


def _watch(scratch: Scratch, pid: int, words: Sequence[str]) -> tuple[bool, str]:
    """Wait for the command's end. Returns whether it was interrupted at work, and what is wrong, or ""."""
    began, interrupted, computed, spent, moved = time.monotonic(), 0.0, -1.0, 0.0, time.monotonic()
    patience = PATIENCE if set(words) & set(fuzz_lines.MEASURING) else HANG
    while _lives(pid):
        now = time.monotonic()
        if now - began < 1.0:
            time.sleep(0.01)
            continue
        time.sleep(0.2)
        ours = list(_processes(scratch))
        large = {one: size for one in ours if (size := _memory(one)) > MEMORY}
        if large.keys() - {pid} and not interrupted:  # a batch that was asked for
            interrupted = now
            os.kill(pid, signal.SIGINT)
        if (seconds := sum(map(_seconds, ours))) > spent:
            spent, moved = seconds, now
        waits = now - (interrupted or began) > HANG and now - moved > HANG / 4
        if pid in large or waits or spent > 2 * HANG:
            for one in {pid, *ours}:
                _end(one)
            hangs = f"hangs: {'after an interrupt' if interrupted else 'idle or not measuring'} for {HANG:g} s"
            return bool(interrupted), f"memory: {large[pid] >> 20} MiB" if pid in large else hangs
        if not interrupted and now - began > patience:
            if 0 <= computed < seconds:  # at work, not waiting
                interrupted = now
                os.kill(pid, signal.SIGINT)
            computed = max(computed, seconds)
    end = time.monotonic() + 5.0
    while time.monotonic() < end and list(_processes(scratch)):
        time.sleep(0.02)
    left = list(_processes(scratch))
    for one in left:
        _end(one)
    return bool(interrupted), f"left running: {len(left)} processes" if left else ""


def _complaints(scratch: Scratch, words: Sequence[str], ended: Ended) -> Iterator[str]:
    if ended.seen:
        yield ended.seen
    if ended.code not in DOCUMENTED:
        yield f"exit code: {ended.code}"
    debug = "--debug" in words
    if not debug and re.search(r"Traceback \(most recent call last\)|panicked at", ended.out + ended.error):
        yield "traceback:"
    for name, text in (("standard output", ended.out), ("standard error", ended.error)):
        found = re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text)
        if found and words[0] != "generate":
            yield f"control character: {found[0]!r} on {name}"
    yield from _wrong_json(words, ended)
    if not debug and ended.code not in (0, 130, 141):
        lines = [line for line in ended.error.splitlines() if line.strip()]
        errors = [index for index, line in enumerate(lines) if line.startswith("Error: ")]
        if not errors:
            yield "no error: on standard error"
        elif any(not line.startswith("Failed: ") for line in lines[errors[-1] + 1 :]):
            yield "error: of more than a paragraph"
    new, changed = scratch.changes()
    allowed = _allowed(scratch, words)
    for path in [*new, *changed]:
        full = scratch.root / path
        if path.startswith("tmp/"):
            if not ended.interrupted and "torchinductor_" not in path:  # torch's folder for compiled code
                yield f"temporary file: {path} is left"
        elif not (full.name == "__pycache__" or full.suffix == ".pyc") and not any(
            full == one or one in full.parents or full in one.parents for one in allowed
        ):
            yield f"file: {path} is {'new' if path in new else 'changed or gone'}"
        elif path in changed and not _replaceable(scratch, words, full):
            yield f"file: {path} is changed or gone"


def _replaceable(scratch: Scratch, words: Sequence[str], path: Path) -> bool:
    """Whether the line may change this file, which it names: of the run that it continues, or by its own wish.

    A file that is empty, as ``mktemp`` makes it, has nothing to lose.
    """
    continued = scratch.cwd / "results" / fuzz_scratch.RUNS["broken off"]
    empty = path == scratch.cwd / "empty.txt" and path.exists()
    return empty or path.is_relative_to(continued) or bool({"--force", "--repair", "clean"} & set(words))


def _allowed(scratch: Scratch, words: Sequence[str]) -> list[Path]:
    """What the line may write: what it names, also by a link, and what the command writes by default."""
    values = [
        value for word in words for value in (word, word.partition("=")[2], word[2:]) if value and len(value) < 500
    ]
    named = [scratch.cwd / os.path.normpath(value) for value in values if value not in (".", "/")]
    pages = [path.with_suffix(".html") for path in named if words[0] == "open" and path.name]
    return [
        *named,
        *pages,
        *(Path(os.path.realpath(path)) for path in named),
        scratch.cwd / "results",
        scratch.cwd / "report.html",
    ]


def _wrong_json(words: Sequence[str], ended: Ended) -> Iterator[str]:
    options = words[: words.index("--")] if "--" in words else words
    free = {"--help", "-h", "--version", "-V"} & set(options) or any("csv" in word for word in options)
    whole = fuzz_lines.commands().get(words[0])
    valued = (
        {option for one in whole.params if not getattr(one, "is_flag", False) for option in one.opts} if whole else ()
    )
    asked = any(word == "--json" and options[at - 1] not in valued for at, word in enumerate(options))
    if not asked or free:
        return

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    for line in ended.out.splitlines():
        try:
            json.loads(line, parse_constant=refuse)
        except ValueError:
            yield f"not JSON: {line[:200]!r}"


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _processes(scratch: Scratch) -> Iterator[int]:
    """Processes that work in the folder."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.readlink(f"/proc/{entry}/cwd").startswith(str(scratch.root)) and _lives(int(entry)):
                    yield int(entry)
            except OSError:
                continue


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
