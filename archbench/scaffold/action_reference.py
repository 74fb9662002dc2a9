"""Where a workflow on GitHub finds archbench's action, and with it archbench: where this archbench came from."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from archbench.measure.machine import ROOT, git_remote, git_revision

UNKNOWN = "OWNER/archbench@v0.2.0"
"""Stands in the template, for the author to replace."""


def action_reference() -> str:
    """``owner/archbench@REVISION`` of the archbench that is installed; :data:`UNKNOWN` if it is not known to be there.

    A git URL that pip installed it from (PEP 610), the origin of the checkout that it was installed from or runs from,
    or of a release the repository that its metadata names, at the tag of its version.
    """
    about = metadata.distribution("archbench")
    origin = json.loads(about.read_text("direct_url.json") or "{}")
    if "vcs_info" in origin:
        return _on_github(origin["url"], origin["vcs_info"].get("commit_id"))
    for root in (_checkout(origin.get("url", "")), ROOT):  # pip installs a copy of a checkout, unless with -e
        if root is not None and (revision := git_revision(root)) is not None:
            return _on_github(git_remote(root) or "", revision.removesuffix("-dirty"))
    links = [link.partition(", ")[2] for link in about.metadata.get_all("Project-URL") or ()]
    known = (_on_github(link, f"v{about.version}") for link in links)
    return next((found for found in known if found != UNKNOWN), UNKNOWN)


def _checkout(url: str) -> Path | None:
    """The folder that a file's URL names."""
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _on_github(url: str, revision: str | None) -> str:
    found = re.fullmatch(r"(?:\w+://|git@)(?:[^@/]+@)?github\.com[/:]([\w-]+/[\w.-]+?)(?:\.git)?/?", url)
    return (
        f"{found[1]}@{revision}" if found and revision and not url.startswith("https://github.com/OWNER/") else UNKNOWN
    )
