"""A project's ``pyproject.toml``: the part of it that says which plugins the project has and where their code is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from archbench.errors import UsageError
from archbench.files.loader import read_toml, validated


class Project(BaseModel):
    """The table ``project``; the name becomes part of a path."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$")] = "0"
    entry_points: dict[str, dict[str, str]] = Field(default_factory=dict, alias="entry-points")


class Setuptools(BaseModel):
    """The table ``tool.setuptools``."""

    package_dir: dict[str, str] = Field(default_factory=dict, alias="package-dir")


class Tool(BaseModel):
    """The table ``tool``."""

    setuptools: Setuptools = Setuptools()


class Settings(BaseModel):
    """The file."""

    project: Project = Project()
    tool: Tool = Tool()


def read_settings(file: Path) -> Settings:
    """What a ``pyproject.toml`` says; the defaults if there is none.

    Raises:
        UsageError: it cannot be read, is not TOML, or a field has the wrong type.
    """
    if not file.is_file():
        return Settings()
    content = read_toml(file, error=UsageError, next_step="Correct it")
    return validated(Settings, content, error=UsageError, culprit=str(file), next_step="Correct it")
