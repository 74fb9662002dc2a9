"""One cut between training and validation text, and a sample of long text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from archbench.data.documents import BLOCK, Document
from archbench.errors import DataError


def split_documents(
    documents: Sequence[Document], validation_fraction: float, *, culprit: str
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Training and validation documents; validation has about ``validation_fraction`` of the bytes.

    The cut is the document boundary nearest to the wanted position, if that leaves between half and twice the wanted
    share for validation. Otherwise (one document, or very uneven ones) the document at that position is cut: after a
    line end if one is near, else between two characters. Only the text around the cut is read.

    Raises:
        DataError: the text is too short for two splits.
    """
    sizes = [document.n_bytes for document in documents]
    total = sum(sizes)
    wanted = total * (1 - validation_fraction)
    boundaries = list(accumulate(sizes))[:-1]
    if boundaries:
        index = min(range(len(boundaries)), key=lambda i: abs(boundaries[i] - wanted))
        share = (total - boundaries[index]) / total
        if validation_fraction / 2 <= share <= min(2 * validation_fraction, (1 + validation_fraction) / 2):
            return tuple(documents[: index + 1]), tuple(documents[index + 1 :])
    ends = list(accumulate(sizes))
    straddling = next(i for i, end in enumerate(ends) if end > wanted)
    document = documents[straddling]
    before, after = _cut(document, int(wanted) - (ends[straddling] - sizes[straddling]), total - wanted)
    train = (*documents[:straddling], *before)
    validation = (*after, *documents[straddling + 1 :])
    if not train or not validation:
        raise DataError(
            culprit,
            f"{total} bytes are too few for a training and a validation split",
            "Give a longer text, or another validation_fraction",
        )
    return train, validation


def _cut(document: Document, offset: int, validation_bytes: float) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    # Move to a line end, unless validation would grow by more than a tenth.
    most = 0.1 * validation_bytes
    line = _line_before(document, offset, int(most) + 1)
    cut = line if line > 0 and offset - line <= most else offset
    cut = character_start(document, cut)
    before = (document.part(0, cut),) if cut else ()
    after = (document.part(cut, document.n_bytes),) if cut < document.n_bytes else ()
    return before, after


def character_start(document: Document, offset: int) -> int:
    """The first byte of the character that the byte at ``offset`` belongs to."""
    while 0 < offset < document.n_bytes and document.read(offset, offset + 1)[0] & 0xC0 == 0x80:  # a continuation byte
        offset -= 1
    return offset


def sample(documents: Sequence[Document], most: int) -> Iterator[Document]:
    """All documents, or of longer text about ``most`` bytes: the first :data:`BLOCK` of each of equal stretches."""
    total = sum(document.n_bytes for document in documents)
    if total <= most:
        yield from documents
        return
    stretch, position = total * BLOCK // most, 0
    for document in documents:
        end = position + document.n_bytes
        for first in range(position // stretch * stretch, end, stretch):
            places = (max(first, position) - position, min(first + BLOCK, end) - position)
            start, stop = (character_start(document, place) for place in places)
            if start < stop:
                yield document.part(start, stop)
        position = end


def _line_before(document: Document, offset: int, most: int) -> int:
    """The byte after the last line end before ``offset``, or 0 if there is none in the ``most`` bytes before it."""
    lowest = max(0, offset - most - 1)
    end = offset
    while end > lowest:
        start = max(lowest, end - BLOCK)
        found = document.read(start, end).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
