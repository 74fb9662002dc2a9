"""Failures that an author knows of: each a check's name and the reason, without which none is accepted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from archbench.errors import UsageError, did_you_mean


def parsed_expectations(texts: Iterable[str], option: str) -> dict[str, str]:
    """``["flops=it counts its embedding"]`` as ``{"flops": "it counts its embedding"}``.

    Raises:
        UsageError: one is not of the form CHECK=REASON, or its reason is empty.
    """
    expected = {}
    for text in texts:
        name, _, reason = (part.strip() for part in text.partition("="))
        if not name or not reason:
            cause = "an expected failure needs a reason"
            raise UsageError(f"{option} {text}", cause, f"Write {option} '{name or 'CHECK'}=why it cannot pass yet'")
        expected[name] = reason
    return expected


def checked_expectations(expected: Mapping[str, str], known: Iterable[str], culprit: str) -> dict[str, str]:
    """``expected`` itself, if each of its names is among ``known`` and each has a reason.

    Raises:
        UsageError: naming ``culprit`` and the one that is not.
    """
    known = list(known)
    for name, reason in expected.items():
        if name not in known:
            raise UsageError(f"{culprit} {name}", "there is no such check", did_you_mean(name, known))
        if not isinstance(reason, str) or not reason.strip():
            raise UsageError(f"{culprit} {name}", "an expected failure needs a reason", "Say why it cannot pass yet")
    return dict(expected)
