"""A digest inside a JSON file, so that no damage to it is read as data.

A sealed object says first that it has a seal, and ends with it, the SHA-256 of all before::

    {"seal": "sha256", "step": 3, ..., "sha256": "8d0f…"}

So does a sealed file of JSON lines, in its first and its last line::

    {"seal": "sha256"}
    {"metric": "loss", "value": 1.5}
    {"sha256": "8d0f…"}

A damage that takes one of the two marks leaves the other, so that no sealed file passes as one without a seal. The
digest is that of a canonical form (sorted keys, no spaces): a file may be indented anew. Files that archbench wrote
before there were seals have none and are still read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

MARK, SEAL = "seal", "sha256"
_MARKED = {MARK: SEAL}
_DIGEST = re.compile("[0-9a-f]{64}")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

Sealing = Literal["none", "optional", "required"]
"""What a reader asks of a file: ``none`` takes it as it is, ``optional`` checks a seal that is there (earlier
archbenches wrote none), ``required`` also refuses a file without one."""


def sealed(content: Mapping[str, Any], *, indent: int | None = 2, allow_nan: bool = True) -> str:
    """The object as JSON text with its seal, ending in a newline.

    Raises:
        ValueError: it holds what JSON does not know.
    """
    plain = _MARKED | json.loads(json.dumps(dict(content), allow_nan=allow_nan))  # keys become text, to be sorted
    text = json.dumps(plain | {SEAL: _digest(plain)}, indent=indent, ensure_ascii=False) + "\n"
    return _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # in a path that is not UTF-8


def sealed_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """The objects as JSON lines, with their seal."""
    lines = [json.dumps(_MARKED), *(json.dumps(dict(row)) for row in rows)]
    seal = json.dumps({SEAL: _digest([json.loads(line) for line in lines])})
    return "".join(line + "\n" for line in [*lines, seal])


def is_sealed(content: Any) -> bool:
    """Whether parsed JSON, an object or the list of a file's lines, has a seal, whole or damaged."""
    ends = (content[:1] + content[-1:]) if isinstance(content, list) else [content]
    return any(isinstance(end, dict) and bool({MARK, SEAL} & end.keys() or _ends_in_digest(end)) for end in ends)


def _ends_in_digest(content: dict[str, Any]) -> bool:
    """Whether there is what is left of a seal whose key is damaged."""
    last = list(content.values())[-1] if content else None
    return isinstance(last, str) and _DIGEST.fullmatch(last) is not None


def unsealed(content: Any, sealing: Sealing = "optional") -> Any:
    """Parsed JSON without its seal; a list is that of a file's lines.

    Raises:
        ValueError: it is not what was written.
    """
    if sealing == "none":
        return content
    if content == {}:
        raise ValueError("it is empty")
    if not is_sealed(content):
        if sealing == "required":
            raise ValueError("its checksum is missing")
        return content
    if isinstance(content, list):
        whole = content[0] == _MARKED and content[-1] == {SEAL: _digest(content[:-1])}
        kept: Any = content[1:-1]
    else:
        marked = {key: value for key, value in content.items() if key != SEAL}
        whole = marked.get(MARK) == SEAL and content.get(SEAL) == _digest(marked)
        kept = {key: value for key, value in marked.items() if key != MARK}
    if not whole:
        raise ValueError("its content and its checksum do not match")
    return kept


def _digest(content: Any) -> str:
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return hashlib.sha256(text.encode()).hexdigest()
