"""Writing a report: the page, the images and the Markdown summary. No file is left half written, and none is lost."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from archbench.errors import UsageError
from archbench.files.outputs import MADE_BY, Output, write_output
from archbench.report.contents import Contents
from archbench.report.figures import Figure

_PNG_HEADER = 33
"""Bytes of a PNG file before its second chunk: the signature and the chunk IHDR."""


def require(option: str, extra: str, *modules: str) -> None:
    """Check, before the work, that the modules of an optional extra are installed.

    Raises:
        UsageError: one is not.
    """
    for module in modules:
        if find_spec(module) is None:
            name = {"vl_convert": "vl-convert-python"}.get(module, module)
            raise UsageError(option, f"{name} is not installed", f"Install it with: pip install 'archbench[{extra}]'")


def write_page(contents: Sequence[Contents], path: str | Path, *, title: str, force: bool = False) -> Path:
    """Write the page. Returns its path.

    Raises:
        UsageError: it would replace a file that is no page of archbench's, without ``force``.
        StorageError: it cannot be written.
    """
    from archbench.report.page import page

    return write_output(Output(Path(path), "page"), page(contents, title=title).encode(), force=force)


def write_image(figure: Figure, path: str | Path, *, heading: str = "", option: str = "", force: bool = False) -> Path:
    """Write the figure, below ``heading``, in the format that the file's suffix names: .png, .svg or .pdf.

    Raises:
        UsageError, StorageError: as :func:`write_page`.
    """
    from archbench.report.vega import image

    form = Path(path).suffix[1:].lower()
    content = marked(image(figure, form, heading=heading), form)
    return write_output(Output(Path(path), "image", option), content, force=force)


def marked(image: bytes, form: str) -> bytes:
    """The image, saying who made it, so that a later one may replace it."""
    if form == "svg":
        return image.rstrip() + b"<!-- " + MADE_BY + b" -->\n"
    if form == "pdf":
        return image.rstrip() + b"\n% " + MADE_BY + b"\n%%EOF\n"
    text = b"tEXtSoftware\0" + MADE_BY
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return image[:_PNG_HEADER] + chunk + image[_PNG_HEADER:]


def image_files(contents: Sequence[Contents], folder: str | Path) -> list[dict[str, Path]]:
    """Figure key -> its PNG file, for each part. With several parts, their numbers stand in front of the names."""
    prefixes = [f"{number}-" if len(contents) > 1 else "" for number in range(len(contents))]
    return [
        {figure.key: Path(folder) / f"{prefix}{figure.key}.png" for figure in part.figures}
        for prefix, part in zip(prefixes, contents, strict=True)
    ]


def write_images(contents: Sequence[Contents], folder: str | Path, *, force: bool = False) -> list[dict[str, Path]]:
    """Write a PNG file for each figure. Returns :func:`image_files`.

    Raises:
        UsageError, StorageError: as :func:`write_page`.
    """
    files = image_files(contents, folder)
    for part, own in zip(contents, files, strict=True):
        for figure in part.figures:
            write_image(figure, own[figure.key], option="--png", force=force)
    return files


def write_markdown(
    contents: Sequence[Contents], path: str | Path, images: Sequence[dict[str, Path]], *, force: bool = False
) -> Path:
    """Write the Markdown summary. Returns its path. Its links to images are relative.

    Raises:
        UsageError, StorageError: as :func:`write_page`.
    """
    from archbench.report.markdown import markdown

    start = os.path.dirname(os.path.realpath(path))
    named = [
        {key: quote(Path(os.path.relpath(file.resolve(), start)).as_posix()) for key, file in part.items()}
        for part in images
    ] or [{} for _ in contents]
    return write_output(Output(Path(path), "summary", "--md"), markdown(contents, named).encode(), force=force)


def title_of(contents: Sequence[Contents]) -> str:
    """Title of the page, for the browser's tab."""
    return " · ".join(part.title for part in contents) + " – archbench"
