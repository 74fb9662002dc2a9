"""Work trees of revisions of one repository, importable as if each were installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from archbench.errors import UsageError
from archbench.hookspecs import GROUP
from archbench.interruption import interruptible, underway
from archbench.plugin.pyproject import read_settings

_SITE = ".archbench-site"


@dataclass(frozen=True)
class Tree:
    """The project as it was at one revision.

    Attributes:
        revision: as the user gave it.
        commit: its hash.
        project: the folder of its ``pyproject.toml``.
        architectures: those that it declares and that exist.
        imports: folders that come first on a process's path, so that it finds this tree's code and no other.
    """

    revision: str
    commit: str
    project: Path
    architectures: tuple[str, ...]
    imports: tuple[str, ...]

    @property
    def name(self) -> str:
        """As shown in errors and tables."""
        return self.commit[:7] if self.commit.startswith(self.revision) else f"{self.revision} ({self.commit[:7]})"

    def has(self, file: str | None) -> bool:
        """Whether ``file`` is part of it."""
        return file is not None and Path(file).resolve().is_relative_to(self.project.resolve())


@contextmanager
def checked_out(folder: Path, revisions: Sequence[str]) -> Iterator[list[Tree]]:
    """Work trees of ``revisions``; removed when the context ends, also by an error or a signal that interrupts.

    Args:
        folder: within the project, in the repository.
        revisions: anything that git accepts as a commit.

    Raises:
        UsageError: no repository, no such revision, a work tree that git refuses to make, or a ``pyproject.toml`` that
            cannot be read.
    """
    repository = Path(_git(folder, "rev-parse", "--show-toplevel", culprit=str(folder)))
    project = _project(folder.resolve(), repository.resolve()).relative_to(repository.resolve())
    commits = [_commit(repository, revision) for revision in revisions]
    made: list[Path] = []
    with (
        interruptible(),
        underway(),
        tempfile.TemporaryDirectory(prefix=f"archbench-regress-{os.getpid()}-") as place,
    ):
        try:
            for number, commit in enumerate(commits):
                path = Path(place, str(number))
                made.append(path)
                _git(repository, "worktree", "add", "--quiet", "--detach", str(path), commit, culprit="git worktree")
            yield [
                describe(revision, commit, path / project)
                for revision, commit, path in zip(revisions, commits, made, strict=True)
            ]
        finally:
            for path in made:
                _run_git(repository, "worktree", "remove", "--force", str(path))


def uncommitted(folder: Path, commit: str) -> list[str]:
    """Files under ``folder`` that differ from ``commit``, where that is checked out: no revision has them so."""
    if _git(folder, "rev-parse", "HEAD", culprit=str(folder)) != commit:
        return []
    changed = _git(folder, "diff", "--name-only", "--relative", "-z", "HEAD", culprit=str(folder))
    return [name for name in changed.split("\0") if name]


def describe(revision: str, commit: str, project: Path) -> Tree:
    """Read ``pyproject.toml`` in ``project``, and make the project importable as if pip had installed it.

    Nothing is built: the folders with its code come first on the path (``src``, the project's own, and what
    ``tool.setuptools.package-dir`` names), and metadata declare its entry points. So compiled extensions are those of
    the environment.
    """
    settings = read_settings(project / "pyproject.toml")
    points = settings.project.entry_points.get(GROUP, {})
    site = project / _SITE
    site.mkdir(parents=True, exist_ok=True)
    roots = [site, project / "src", project]
    for package, folder in settings.tool.setuptools.package_dir.items():
        if package == "":
            roots.insert(1, project / folder)
        elif "." not in package and (project / folder).is_dir():
            if sys.platform == "win32":  # where links are for administrators
                shutil.copytree(project / folder, site / package)
            else:
                (site / package).symlink_to(project / folder, target_is_directory=True)
    if name := settings.project.name:
        _write_metadata(site, name, settings.project.version, points)
    there = tuple(name for name, module in points.items() if _exists(module.partition(":")[0], roots))
    return Tree(revision, commit, project, there, tuple(str(root) for root in roots if root.is_dir()))


def _write_metadata(site: Path, name: str, version: str, points: dict[str, str]) -> None:
    info = site / f"{re.sub(r'[-_.]+', '_', name)}-{version}.dist-info"
    info.mkdir()
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(about, encoding="utf-8")
    lines = "".join(f"{point} = {module}\n" for point, module in points.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}", encoding="utf-8")


def _exists(module: str, roots: Sequence[Path]) -> bool:
    """Whether a module exists, without importing it: an entry point may be declared before its file."""
    parts = module.split(".")
    places = [root.joinpath(*parts) for root in roots]
    return any(place.with_name(f"{place.name}.py").is_file() or place.is_dir() for place in places)


def _project(folder: Path, repository: Path) -> Path:
    """The nearest folder with a ``pyproject.toml``; the repository where there is none."""
    around = (place for place in (folder, *folder.parents) if place.is_relative_to(repository))
    return next((place for place in around if (place / "pyproject.toml").is_file()), repository)


def _commit(repository: Path, revision: str) -> str:
    done = _run_git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done is None or done.returncode != 0:
        step = "Name a commit, branch or tag; a shallow clone has no history: fetch it whole (fetch-depth: 0)"
        raise UsageError(f"revision {revision!r}", f"{repository} has no such commit", step)
    return done.stdout.strip()


def _git(folder: Path, *arguments: str, culprit: str) -> str:
    done = _run_git(folder, *arguments)
    if done is None:
        raise UsageError(culprit, "there is no git to ask", "Install git")
    if done.returncode != 0:
        said = " ".join(done.stderr.split()).rstrip(".")
        raise UsageError(culprit, f"git says: {said}", "Run this inside the plugin's git repository")
    return done.stdout.strip()


def _run_git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    # Within a git hook, these variables would point to the hook's repository and index.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], env=variables, capture_output=True, encoding="utf-8", check=False
        )
    except OSError:
        return None
