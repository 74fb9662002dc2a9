"""One cut between training and validation text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from archbench.data.documents import Document
from archbench.errors import DataError


def split_documents(
    documents: Sequence[Document], validation_fraction: float, *, culprit: str
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Training and validation documents; validation has about ``validation_fraction`` of the bytes.

    The cut is the document boundary nearest to the wanted position, if that leaves between half and twice the wanted
    share for validation. Otherwise (one document, or very uneven ones) the document at that position is cut: after a
    line end if one is near, else between two characters.

    Raises:
        DataError: the text is too short for two splits.
    """
    sizes = [len(document.to_bytes()) for document in documents]
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
    data = document.to_bytes()
    line = data.rfind(b"\n", 0, offset) + 1
    # Move to a line end, unless validation would grow by more than a tenth.
    cut = line if line > 0 and offset - line <= 0.1 * validation_bytes else offset
    while 0 < cut < len(data) and data[cut] & 0xC0 == 0x80:  # a UTF-8 continuation byte
        cut -= 1
    parts = (data[:cut].decode("utf-8"), data[cut:].decode("utf-8"))
    before, after = (((Document(document.name, part),) if part else ()) for part in parts)
    return before, after
