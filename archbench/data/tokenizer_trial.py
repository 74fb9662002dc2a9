"""Trying out a tokenizer that might never end, or end the process, in a process where that harms nobody."""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archbench.child.process import Child, LostError
from archbench.data.cache import write_atomically
from archbench.data.text_cuts import is_linear
from archbench.data.tokenizer_file import check_definition
from archbench.errors import DataError, StorageError

if TYPE_CHECKING:
    from archbench.child.entry import Parent

SECONDS = 15.0
"""Most own time of a trial, and of encoding :data:`CHARACTERS`; the slowest published ones take a tenth."""
CHARACTERS = 1 << 18
MEMORY = 2 << 30
"""Most bytes that such a process may add to its memory."""

_RUNS = ("a", " ", "0", "\n", "-", "あ", "a1 ", "ab ", "\0")
SAMPLE = "It's 1,234.5 naïve 漢字 e\u0301 <s></s><|endoftext|>\r\n\t\U0010ffff\n" + "!\n".join(
    run * 4000 for run in _RUNS
)
"""Ordinary text, and the runs of one character at which patterns with nested repetitions explode."""


def try_out(definition: str, name: str, cache: Path) -> None:
    """Raise an error if the tokenizer does not read :data:`SAMPLE` in time and memory; done once for each file.

    Tokenizers whose work is in proportion to the text are not tried.

    Raises:
        DataError: it is no tokenizer, or fails, takes too long or too much memory.
    """
    content = check_definition(definition, name)
    with suppress(KeyError, TypeError, AttributeError, RecursionError):  # the library says what is wrong
        if is_linear(content):
            return
    done = cache / "tokenizers" / f"tried-{hashlib.sha256(definition.encode()).hexdigest()[:32]}"
    if done.exists():
        return
    request = {"definition": definition, "name": name}
    with Child(__name__, request, culprit=f"tokenizer {name!r}", quiet=True) as child:
        answer(child, name, SECONDS)
    with suppress(StorageError):  # then it is tried again the next time
        write_atomically(done, lambda file: file.write(b"ok\n"))


def answer(child: Child, name: str, seconds: float | None) -> Any:
    """What a child that uses a tokenizer says next.

    Raises:
        DataError: it has ended, or took longer than ``seconds`` of own time, if there is a limit.
    """
    try:
        return child.receive(seconds, child.own_time())
    except LostError as error:
        step = "Use another tokenizer: its patterns or tables cannot be used with any text"
        raise DataError(f"tokenizer {name!r}", f"a process that used it {error}", step) from None


def limit_memory() -> None:
    """Let this process add at most :data:`MEMORY` to its memory, on Linux."""
    if sys.platform == "linux":
        import resource

        status = Path("/proc/self/status").read_text("utf-8")
        held = int(status.partition("VmData:")[2].split()[0]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, resource.RLIM_INFINITY))


def main(parent: Parent, request: dict[str, str]) -> None:
    """In the child: read and write the sample."""
    from archbench.data.subword import SubwordTokenizer

    limit_memory()
    tokenizer = SubwordTokenizer(request["definition"], name=request["name"])
    tokenizer.decode(tokenizer.encode(SAMPLE))
    parent.send("ok")
