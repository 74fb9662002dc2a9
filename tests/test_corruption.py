"""Whatever is damaged, the command that reads it ends in an error that names the file, or prints what it prints of the
whole file.

``ARCHBENCH_CORRUPTIONS`` is the number of damaged files, shared out among the kinds; ``-s`` shows the table.
"""

from __future__ import annotations

import functools
import os
import random
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from corruptible_files import Answer, Kind, corruptible
from damages import DAMAGES
from json_damages import mutated

NUMBER = int(os.environ.get("ARCHBENCH_CORRUPTIONS", 24))
MOST_MEMORY = 1 << 30
VERDICTS = ("error", "equal", "made anew", "as written", "altered", "unnamed", "traceback")
WRONG = ("altered", "unnamed", "traceback")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Kind]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield corruptible(tmp_path_factory.mktemp("corrupted"))


def damaged_copies(
    content: bytes, number: int, seed: int, *, is_json: bool, header: int = 0
) -> Iterator[tuple[str, bytes]]:
    """Name and content of each; half are changes to bytes, half (of JSON) changes to values."""
    made = 0
    for attempt in range(seed * 1_000_003, seed * 1_000_003 + 50 * number):
        draw = random.Random(attempt)
        if is_json and made % 2:
            reseal = draw.random() < 0.5
            name, changed = f"value{' sealed anew' if reseal else ''}", mutated(content, draw, reseal=reseal)
        else:
            name = draw.choice(["flipped_bit", *DAMAGES])
            end = header if header and made % 2 else len(content)
            changed = DAMAGES[name](content[:end], draw) + content[end:]
        if changed != content:
            yield f"{name} {attempt}", changed
            made += 1
        if made == number:
            return


def measured(read: Callable[[], Answer]) -> tuple[Answer, int]:
    """What is read, and the peak memory of this process meanwhile in bytes; where that cannot be had, until now."""
    process = Path("/proc/self")
    if sys.platform != "linux":
        answer = read()
        return answer, _most(resource.RUSAGE_SELF)
    (process / "clear_refs").write_text("5")  # the peak is from now on
    answer = read()
    found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
    assert found is not None
    return answer, int(found[1]) << 10


@functools.cache
def of_the_whole(read: Callable[[], Answer]) -> tuple[Answer, int]:
    """The same where no file is damaged: one command reads several kinds of files."""
    return measured(read)


def _most(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def verdict(kind: Kind, damage: str, answer: Answer, clean: str, *, rewritten: bool) -> str:
    code, printed, said = answer
    if "Traceback" in said or code == 70:
        return "traceback"
    if code != 0:
        return "error" if kind.is_named_in(said) else "unnamed"
    if printed != clean:
        return "altered" if kind.sealed and "sealed anew" not in damage else "as written"
    if kind.anew and rewritten:
        return "made anew" if kind.is_named_in(said) else "unnamed"
    return "equal"


def examine(kind: Kind, number: int, seed: int) -> list[str]:
    """Damage the file ``number`` times; what went wrong, in words."""
    (code, clean, said), memory = of_the_whole(kind.read)
    assert code == 0, f"{kind.name}: {said}"
    whole = kind.file.read_bytes()
    children = _most(resource.RUSAGE_CHILDREN)
    wrong = []
    is_json = kind.file.suffix in (".json", ".jsonl")
    for name, content in damaged_copies(whole, number, seed, is_json=is_json, header=kind.header):
        kind.file.parent.mkdir(parents=True, exist_ok=True)
        kind.file.write_bytes(content)
        answer, peak = measured(kind.read)
        rewritten = not kind.file.exists() or kind.file.read_bytes() != content
        kind.file.write_bytes(whole)
        found = verdict(kind, name, answer, clean, rewritten=rewritten)
        kind.found[found] += 1
        kind.memory = max(kind.memory, peak - memory, _most(resource.RUSAGE_CHILDREN) - children)
        if found in WRONG:
            wrong.append(f"{kind.name}, {name}: {found} {answer[2][-300:]}")
    if kind.memory > MOST_MEMORY:
        wrong.append(f"{kind.name}: {kind.memory >> 20} MiB more than the whole file takes")
    return wrong


@pytest.mark.slow
def test_no_damage_is_read_as_data_or_ends_in_a_traceback(kinds: list[Kind]) -> None:
    each = max(1, round(NUMBER / len(kinds)))
    if len(kinds) > NUMBER:  # the first of those that one command reads
        kinds = [*{kind.read: kind for kind in reversed(kinds)}.values()]
    wrong = [line for kind in kinds for line in examine(kind, each, seed=1 + len(kind.name))]
    print(f"\n{'kind':36}" + "".join(f"{name:>11}" for name in (*VERDICTS, "MiB more")))
    for kind in kinds:
        print(f"{kind.name:36}" + "".join(f"{kind.found[name]:11}" for name in VERDICTS) + f"{kind.memory >> 20:11}")
    assert not wrong, "\n".join(wrong)
