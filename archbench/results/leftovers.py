"""What archbench leaves on the disk and can do without: checkpoints, unfinished runs, caches, temporary files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import psutil

from archbench.data.cache import cache_folder
from archbench.errors import StorageError, storing
from archbench.files.loader import read_model
from archbench.files.writing import writer
from archbench.results.lock import locked
from archbench.results.reading import run_failed
from archbench.results.run_files import RunFiles, referring
from archbench.results.store import RUN_ID

Kind = Literal["checkpoints", "unfinished", "cache", "temporary", "run"]
KINDS = tuple(kind for kind in get_args(Kind) if kind != "run")
"""What is found by itself; a whole run goes only by its name (:func:`whole_run`)."""

ASKED: tuple[Kind, ...] = ("checkpoints", "cache", "temporary")
"""Kinds that are removed without being named: no measurement is lost with them."""

CACHES = ("texts", "tokens", "tokenizers", "descriptions", "checks", "bandwidth", "products")
"""Folders of the cache. None is bounded by itself: each corpus, tokenizer and set of plugins used adds an entry."""

QUIET = 60.0
"""Seconds: what changed later than that may be in use, or about to be."""

_OURS = re.compile(r"archbench-(?:position|ray|regress|reload)-(\d+)-")
"""Temporary files and folders outside of the results, with the pid of the process that made them."""


@dataclass(frozen=True)
class Leftover:
    """Something that can go.

    Attributes:
        paths: files and folders, removed in this order.
        bytes: what they take on the disk.
        changed: Unix time of the last change.
        loses: what is no longer possible without it.
        run: the folder of the run that it belongs to; None if it belongs to none.
        owner: why it must not go now; None if it may.
    """

    kind: Kind
    paths: tuple[Path, ...]
    bytes: int
    changed: float
    loses: str
    run: Path | None = None
    owner: str | None = None

    @property
    def age(self) -> float:
        """Seconds since the last change."""
        return max(0.0, time.time() - self.changed)

    def remove(self) -> None:
        """Remove it.

        Raises:
            UsageError: a process has begun to use its run since.
            StorageError: it cannot be removed.
        """
        has_folder = self.run is not None and self.run.is_dir()
        with locked(self.run) if self.run is not None and has_folder else contextlib.nullcontext():
            for path in self.paths:
                with storing(str(path), "Check that the folder can be written"):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)


def leftovers(folder: Path, *, cache: Path | None = None) -> Iterator[Leftover]:
    """What can go in a folder of results and the studies in it, in the cache, and among temporary files.

    Args:
        folder: of results; it may be missing.
        cache: None for :func:`archbench.data.cache.cache_folder`.
    """
    runs, files = _walked(folder)
    for run in runs:
        yield from _of_run(run)
    cache = cache or cache_folder()
    yield from _cached(cache)
    _, cached = _walked(cache)
    place = Path(tempfile.gettempdir())
    others = (path for path in place.glob("archbench-*") if path.lstat().st_uid == _user())
    yield from _temporary([*files, *cached, *others])


def whole_run(run: RunFiles) -> Leftover:
    """A run with its rows, configuration, folder and checkpoints.

    ``owner`` says whether a process measures it, or a study refers to it.
    """
    found = _leftover("run", run.present, "all that was measured", run=run.folder)
    study = referring(run)
    return replace(found, owner=f"{study} refers to it") if found.owner is None and study is not None else found


def _walked(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders of runs, and the hidden files; links are not followed."""
    runs: list[Path] = []
    hidden: list[Path] = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        hidden += (here / name for name in files if name.startswith("."))
        if "config.json" in files and RUN_ID.fullmatch(here.name) and _is_run(here):
            runs.append(here)
            folders.clear()
    return sorted(runs), sorted(hidden)


def _is_run(folder: Path) -> bool:
    """Whether archbench wrote the folder: a published model has a config.json too."""
    try:
        content = read_model(dict[str, object], folder / "config.json", next_step="")
    except StorageError:
        return False  # damaged: archbench fsck says so, and nothing of it is touched
    return {"run", "model", "facts"} <= content.keys()


def _of_run(run: Path) -> Iterator[Leftover]:
    results, checkpoints = run.with_suffix(".parquet"), run / "checkpoints"
    try:
        finished = results.exists() and not run_failed(results)
    except StorageError:
        return  # damaged results: the folder may be all that is left of them
    if finished and checkpoints.is_dir() and not checkpoints.is_symlink():
        yield _leftover("checkpoints", [checkpoints], "archbench generate needs them", run=run)
    if not finished:
        phases = [file.stem.removeprefix("rows-") for file in sorted(run.glob("rows-*.jsonl"))]
        measured = f", and of its phases {', '.join(phases)}" if phases and not results.exists() else ""
        yield _leftover("unfinished", [run], f"the run cannot be resumed{measured}", run=run)


def _cached(cache: Path) -> Iterator[Leftover]:
    for name in CACHES:
        entries: dict[str, list[Path]] = {}
        for path in sorted((cache / name).glob("[!.]*")):
            entries.setdefault(path.name.partition(".")[0], []).append(path)
        for paths in entries.values():
            # The record first: tokens without one count as unfinished.
            ordered = sorted(paths, key=lambda path: path.suffix != ".json")
            lost = "archbench doctor makes it again" if name == "bandwidth" else "it is made again when needed"
            yield _leftover("cache", ordered, lost)


def _temporary(paths: Iterable[Path]) -> Iterator[Leftover]:
    for path in paths:
        found = _OURS.match(path.name)
        pid = int(found[1]) if found else writer(path)
        if pid is not None and not psutil.pid_exists(pid):
            yield _leftover("temporary", [path], "nothing: its process has ended")


def _leftover(kind: Kind, paths: list[Path], loses: str, *, run: Path | None = None) -> Leftover:
    size, changed = size_on_disk(paths)
    owner = _owner(run) if run is not None else None
    if owner is None and time.time() - changed < QUIET and kind not in ("checkpoints", "run"):
        owner = f"it changed less than {QUIET:.0f} s ago"
    return Leftover(kind, tuple(paths), size, changed, loses, run, owner)


def size_on_disk(paths: Iterable[Path]) -> tuple[int, float]:
    """Bytes that files and folders take, and the Unix time of the last change."""
    size, changed = 0, 0.0
    for path in paths:
        inside = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
        for one in inside:
            with contextlib.suppress(OSError):  # gone in the meantime
                facts = one.lstat()
                size += facts.st_blocks * 512 if hasattr(facts, "st_blocks") else facts.st_size
                changed = max(changed, facts.st_mtime)
    return size, changed


def _owner(run: Path) -> str | None:
    """Which process has the run or its study, in words; None if nobody has."""
    import filelock

    for folder in (run, *list(run.parents)[:3]):  # STUDY/runs/KEY/RUN_ID
        if not (folder / ".lock").is_file():
            continue
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(blocking=False)
        except (filelock.Timeout, OSError):
            with contextlib.suppress(OSError):
                return f"in use by {(folder / '.lock-owner').read_text('utf-8', 'replace')[:200]}"
            return "in use"
        lock.release()
    return None


def _user() -> int:
    if sys.platform == "win32":  # where every file has that owner
        return 0
    return os.getuid()
