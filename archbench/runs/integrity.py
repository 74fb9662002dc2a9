"""Is everything in a folder of results what was written, and what can be recovered if it is not?"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from archbench.errors import ArchbenchError, StorageError, storing
from archbench.files.loader import read_json, read_lines, read_sealed
from archbench.files.parquet import is_sealed as parquet_is_sealed
from archbench.files.parquet import read_parquet
from archbench.files.seal import is_sealed, sealed, unsealed
from archbench.files.writing import set_aside, write_text, writer
from archbench.results.reading import DIGESTS, read_results
from archbench.results.schema import OUTCOMES, ROWS
from archbench.results.store import RUN_ID, described
from archbench.runs.conformance import FILE as CHECK_FILE
from archbench.runs.folder import CONFIG, open_run

State = Literal["whole", "unverified", "damaged", "leftover"]
STATES: dict[State, str] = {
    "whole": "as it was written, by its checksum",
    "unverified": "readable; an earlier archbench wrote it without a checksum",
    "damaged": "not what was written",
    "leftover": "of a process that was killed; nobody reads it",
}

_PLANS = ("plan.json", "scale-plan.json", "probe-plan.json")
_CHECKPOINT = re.compile(r"step-\d{8}")


@dataclass(frozen=True)
class Finding:
    """What became of one file, or of one checkpoint's folder.

    Attributes:
        kind: results, configuration, rows, scores, study, checkpoint or temporary.
        cause: what is wrong with it.
        remedy: what can be recovered, and how.
        repair: does so; None if fsck cannot.
    """

    path: Path
    kind: str
    state: State
    cause: str = ""
    remedy: str = ""
    repair: Callable[[], object] | None = None


def examine(place: Path, *, deep: bool = True) -> Iterator[Finding]:
    """Every file under ``place``, or itself, that archbench writes and later trusts.

    Args:
        deep: also read the checkpoints, which are the largest files.

    Raises:
        StorageError: there is no such place.
    """
    if not place.exists():
        raise StorageError(str(place), "there is no such file or folder", "Name a folder of results")
    if place.is_file():
        yield from filter(None, [_file(place)])
        return
    for name, folders, files in os.walk(place):
        folder = Path(name)
        checkpoints = sorted(one for one in folders if _CHECKPOINT.fullmatch(one))
        folders[:] = sorted(set(folders) - set(checkpoints))
        if deep:
            yield from (_checkpoint(folder / one, checkpoints) for one in checkpoints)
        yield from filter(None, (_file(folder / one) for one in sorted(files)))


def _file(path: Path) -> Finding | None:
    """The finding of a file; None if archbench does not write such a file."""
    name = path.name
    if writer(path) is not None:
        return Finding(path, "temporary", "leftover", "", "archbench clean removes it")
    if name.startswith("."):
        return None
    if path.suffix == ".parquet":
        return _parquet(path)
    if name.startswith("samples-") and path.suffix == ".jsonl":
        again = "Repeat archbench eval with that task; the scores are in the run's rows"
        return _judged(Finding(path, "samples", "whole", remedy=again), partial(_lines, path))
    if re.fullmatch(r"rows-\w+\.jsonl", name):
        return _judged(Finding(path, "rows", "whole", remedy=_resumed(path.parent)), partial(_lines, path))
    json = partial(_json, path)
    if path.suffix == ".json" and RUN_ID.fullmatch(path.stem):
        found = _judged(Finding(path, "configuration", "whole", remedy=_RUN_LOST), json)
        return _from_folder(found) if found.state == "damaged" else found
    if name in (CONFIG, CHECK_FILE) and RUN_ID.fullmatch(path.parent.name):
        found = _judged(Finding(path, "configuration", "whole", remedy=_resumed(path.parent)), json)
        return _from_beside(found) if found.state == "damaged" and name == CONFIG else found
    if name in OUTCOMES:
        again = "Repeat the study's command: it writes the file again from the finished cells"
        return _judged(Finding(path, "study", "whole", remedy=again), json)
    if name in _PLANS:
        again = "Delete it and repeat the study's command; what was measured is kept"
        return _judged(Finding(path, "study", "whole", remedy=again), json)
    if path.suffix == ".json" and path.parent.name == "cells":
        again = "Delete it and repeat the study's command: it measures that cell again"
        return _judged(Finding(path, "study", "whole", remedy=again), json)
    return None


_RUN_LOST = "The rows are not affected; repeat the run to have its configuration again"


def _judged(finding: Finding, seals: Callable[[], bool]) -> Finding:
    """``finding`` with the state that ``seals`` tells: whole if it has a seal, damaged if it raises."""
    try:
        state: State = "whole" if seals() else "unverified"
    except (ArchbenchError, ValueError) as error:
        cause = error.cause if isinstance(error, ArchbenchError) else f"it is damaged ({error})"
        return replace(finding, state="damaged", cause=cause)
    return replace(finding, state=state, remedy="")


def _json(path: Path) -> bool:
    return read_sealed(path, next_step="")[1]


def _lines(path: Path) -> bool:
    config = path.parent / CONFIG
    required = config.is_file() and _has_seal(config)
    lines = read_lines(path, next_step="")
    unsealed(lines, "required" if required else "optional")
    return is_sealed(lines)


def _has_seal(path: Path) -> bool:
    """Whether a JSON file has a seal, whole or damaged."""
    try:
        return is_sealed(read_json(path, next_step=""))
    except StorageError:
        return False


def _parquet(path: Path) -> Finding:
    def seals() -> bool:
        if path.name in ("documents.parquet", "blocks.parquet"):
            _, content = read_parquet(path, next_step="")
        else:
            read_results(path, trials=True)
            content = path.read_bytes()
        return parquet_is_sealed(content)

    if path.name in ("documents.parquet", "blocks.parquet"):
        remedy = "Measure the run again; its rows are not affected"
        out = path.parent.parent
        if out.parent.name == "runs":
            cell = out.parent.parent / "cells" / f"{out.name}.json"
            remedy = f"Delete {cell} and repeat the study's command: it measures that cell again"
        return _judged(Finding(path, "scores", "whole", remedy=remedy), seals)
    if path.name == ROWS:
        again = "Repeat the study's command: it writes the file again from the finished runs"
        return _judged(Finding(path, "results", "whole", remedy=again), seals)
    found = _judged(Finding(path, "results", "whole", remedy="Move it away and repeat the run"), seals)
    if found.state != "damaged":
        return found
    from archbench.runs.run import rows_of_phases, write_again  # torch, which a whole folder does not need

    try:
        run = open_run(path.parent, path.stem)
        rows_of_phases(run)
    except (ArchbenchError, OSError):
        return found
    remedy = f"The rows of all phases are whole in {run.path}: fsck --repair writes it again and keeps this one"
    return replace(found, remedy=remedy, repair=lambda: write_again(run))


def _from_folder(found: Finding) -> Finding:
    """The configuration beside a run's results, which its folder has too."""
    try:
        run = open_run(found.path.parent, found.path.stem)
        results = found.path.with_suffix(".parquet").read_bytes()
        parquet_is_sealed(results)
    except (ArchbenchError, OSError, ValueError):
        return found
    text = described(run.as_dict(), results)
    remedy = f"{run.path / CONFIG} has the same: fsck --repair writes it again"
    return replace(found, remedy=remedy, repair=lambda: _write(found.path, text))


def _from_beside(found: Finding) -> Finding:
    """The configuration of a run's folder, which stands beside its results too."""
    beside = found.path.parent.with_suffix(".json")
    try:
        content = read_json(beside, next_step="", sealing="required")
        text = sealed({name: value for name, value in content.items() if name != DIGESTS})
    except (ArchbenchError, AttributeError):
        return found
    remedy = f"{beside} has the same: fsck --repair writes it again"
    return replace(found, remedy=remedy, repair=lambda: _write(found.path, text))


def _write(path: Path, text: str) -> None:
    with storing(str(path), "Make room, and repair again"):
        set_aside(path)
        write_text(path, text)


def _resumed(folder: Path) -> str:
    return f"Delete {folder} and repeat the run; its results, if there are some, are not affected"


def _checkpoint(path: Path, listed: list[str]) -> Finding:
    from archbench.training.checkpoints import MANIFEST, verify_checkpoint  # torch too

    older = [one for one in listed if one < path.name]
    remedy = f"Delete it: {older[-1]} comes before it" if older else "Delete it: training begins anew"

    def seals() -> bool:
        verify_checkpoint(path)
        return _has_seal(path / MANIFEST)

    return _judged(Finding(path, "checkpoint", "whole", remedy=remedy), seals)
