"""Writing a report: the page, the images and the Markdown summary. No file is left half written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from archbench.errors import StorageError, UsageError
from archbench.files.writing import temporary_beside
from archbench.report.contents import Contents
from archbench.report.figures import Figure


def require(option: str, extra: str, *modules: str) -> None:
    """Check, before the work, that the modules of an optional extra are installed.

    Raises:
        UsageError: one is not.
    """
    for module in modules:
        if find_spec(module) is None:
            name = {"vl_convert": "vl-convert-python"}.get(module, module)
            raise UsageError(option, f"{name} is not installed", f"Install it with: pip install 'archbench[{extra}]'")


def write_page(contents: Sequence[Contents], path: str | Path, *, title: str) -> Path:
    """Write the page. Returns its path.

    Raises:
        StorageError: it cannot be written.
    """
    from archbench.report.page import page

    return write(path, page(contents, title=title).encode())


def write_image(figure: Figure, path: str | Path, *, heading: str = "") -> Path:
    """Write the figure, below ``heading``, in the format that the file's suffix names: .png, .svg or .pdf.

    Raises:
        StorageError: it cannot be written.
    """
    from archbench.report.vega import image

    return write(path, image(figure, Path(path).suffix[1:].lower(), heading=heading))


def write_images(contents: Sequence[Contents], folder: str | Path) -> list[dict[str, Path]]:
    """Write a PNG file for each figure. Returns figure key -> file, for each part.

    A file has the name of its figure, with a number in front if there are several parts.

    Raises:
        StorageError: one cannot be written.
    """
    parts = []
    for number, part in enumerate(contents):
        prefix = f"{number}-" if len(contents) > 1 else ""
        parts.append(
            {figure.key: write_image(figure, Path(folder) / f"{prefix}{figure.key}.png") for figure in part.figures}
        )
    return parts


def write_markdown(contents: Sequence[Contents], path: str | Path, images: Sequence[dict[str, Path]]) -> Path:
    """Write the Markdown summary. Returns its path. Its links to images are relative.

    Raises:
        StorageError: it cannot be written.
    """
    from archbench.report.markdown import markdown

    start = Path(path).resolve().parent
    named = [
        {key: quote(Path(os.path.relpath(file.resolve(), start)).as_posix()) for key, file in part.items()}
        for part in images
    ] or [{} for _ in contents]
    return write(path, markdown(contents, named).encode())


def write(path: str | Path, content: bytes, *, option: str = "", new_folder: bool = True) -> Path:
    """Write ``content`` to a temporary file, then move it to ``path``, so a full disk leaves no partial file.

    Args:
        option: the option that asked for the file, for the message.
        new_folder: create a missing folder.

    Raises:
        StorageError: it cannot be written.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        if new_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        cause = f"it cannot be written ({error.strerror or error})"
        raise StorageError(f"{option} {path}".strip(), cause, "Choose another file") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def title_of(contents: Sequence[Contents]) -> str:
    """Title of the page, for the browser's tab."""
    return " · ".join(part.title for part in contents) + " – archbench"
