"""Characters that a terminal, a browser or a spreadsheet obeys instead of showing them."""

from __future__ import annotations

import re

_OBEYED = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f"
)
"""C0 and C1 controls but tab and line feed, soft hyphen, marks of direction and order, characters without width, and
halves of surrogate pairs."""

_IN_TEXT = re.compile(rf"[{_OBEYED}]")
_IN_NAME = re.compile(rf"[{_OBEYED}\t\n]")


def visible(text: str, *, lines: bool = True) -> str:
    """``text`` with such characters written as Python writes them: ``\\x1b``, ``\\u202e``.

    Args:
        lines: whether tabs and line feeds stay; a name has none.
    """
    obeyed = _IN_TEXT if lines else _IN_NAME
    return obeyed.sub(lambda found: ascii(found[0])[1:-1], text)


def json_escaped(text: str) -> str:
    """JSON text with such characters written as JSON's own escapes, and the halves of surrogate pairs, which strict
    readers refuse, as :func:`visible` writes them."""

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        if code > 0xFFFF:
            return "".join(f"\\u{half:04x}" for half in (0xD7C0 + (code >> 10), 0xDC00 + (code & 0x3FF)))
        return f"\\\\u{code:04x}" if 0xD800 <= code < 0xE000 else f"\\u{code:04x}"

    return _IN_TEXT.sub(escape, text)


def harmless(text: str) -> str:
    """:func:`visible` text for a cell of a CSV file, which no spreadsheet takes for a formula: an apostrophe stands
    before one, as OWASP advises ("CSV Injection"). Numbers stay as they are."""
    text = visible(text)
    if not text.startswith(("=", "+", "-", "@", "\t")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
