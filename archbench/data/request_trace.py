"""Traces of requests: when each arrives, how long its prompt is, and how many tokens it asks for.

A line of a trace is a JSON object with the fields of :class:`Request`::

    {"arrival_seconds": 0.0, "prompt_tokens": 32, "output_tokens": 16}

A file whose name ends in ``.csv`` has these as columns, or those of Azure's LLM inference traces (Patel et al. 2024,
Splitwise, arXiv:2311.18677): ``TIMESTAMP``, ``ContextTokens`` and ``GeneratedTokens``. Other fields are ignored.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from archbench.bounds import Size
from archbench.data.cache import content_key
from archbench.errors import DataError
from archbench.files.loader import LIMIT, read_text, validated

_STEP = 'A line is {"arrival_seconds": 0.5, "prompt_tokens": 32, "output_tokens": 16}; see docs/how-to/serve.md'


def _seconds(value: Any) -> Any:
    """A time of a day, as Azure writes it, in seconds; anything else as it is."""
    if not isinstance(value, str) or ":" not in value:
        return value
    return datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp()


class Request(BaseModel):
    """One request of a trace."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    arrival_seconds: Annotated[float, BeforeValidator(_seconds)] = Field(
        ge=0,
        le=1e11,
        validation_alias=AliasChoices("arrival_seconds", "TIMESTAMP"),
        description="seconds at which it arrives; the earliest of a trace counts as 0",
    )
    prompt_tokens: Size = Field(
        validation_alias=AliasChoices("prompt_tokens", "ContextTokens"), description="P, tokens of its prompt"
    )
    output_tokens: Size = Field(
        validation_alias=AliasChoices("output_tokens", "GeneratedTokens"), description="tokens that it asks for"
    )


def read_trace(path: str | Path, context_length: int) -> tuple[Request, ...]:
    """The requests of a trace in order of arrival, the earliest at second 0.

    Args:
        path: JSON lines, or CSV.
        context_length: T; prompt and answer have to fit it together.

    Raises:
        DataError: the file cannot be read or has no request, or a line is wrong; the line is named.
    """
    culprit = f"trace {path}"
    text = read_text(path, error=DataError, culprit=culprit, next_step=_STEP, limit=4 * LIMIT)
    requests = []
    for number, fields in (_table if Path(path).suffix == ".csv" else _objects)(text, culprit):
        line = f"{culprit}, line {number}"
        one = validated(Request, fields, error=DataError, culprit=line, next_step=_STEP)
        if (needed := one.prompt_tokens + one.output_tokens) > context_length:
            cause = f"its {one.prompt_tokens:,} + {one.output_tokens:,} tokens are more than the context of"
            step = "Leave such requests out, or serve a model of a longer context (--set context_length=N)"
            raise DataError(line, f"{cause} {context_length:,}", f"{step}; this one needs {needed:,}")
        requests.append(one)
    if not requests:
        raise DataError(culprit, "it has no request", _STEP)
    requests.sort(key=lambda one: one.arrival_seconds)
    first = requests[0].arrival_seconds
    return tuple(one.model_copy(update={"arrival_seconds": one.arrival_seconds - first}) for one in requests)


def trace_key(requests: Iterable[Request]) -> str:
    """A hash of what a trace asks for."""
    return content_key(*(one.model_dump_json() for one in requests))


def _objects(text: str, culprit: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{culprit}, line {number}", f"it is no JSON ({error})", _STEP) from None


def _table(text: str, culprit: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(text.splitlines())
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"{culprit}, line {reader.line_num}", f"it is no CSV ({error})", _STEP) from None
