"""The launcher that a command names, and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from archbench.errors import UsageError, did_you_mean
from archbench.launch.launcher import Launcher
from archbench.launch.local import Local
from archbench.plugin.importing import import_installed
from archbench.plugin.registry import LAUNCHER, find


@dataclass(frozen=True)
class Choice:
    """A launcher by name.

    Attributes:
        name: as its entry point has it.
        settings: field -> value, as text; the launcher validates them.
    """

    name: str = "local"
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether its orders run on this machine, because it is the built-in launcher of that."""
        return self.name == "local"

    def launcher(self, folder: Path, jobs: int | None) -> Launcher:
        """A launcher that is not connected yet.

        Args:
            jobs: most cells at a time on this machine; other launchers have a setting of their own.

        Raises:
            UnknownNameError: there is no such launcher.
            PluginError: it cannot be imported.
            UsageError: a setting is unknown or wrong.
        """
        kind = self._class()
        settings = kind.settings_class
        given: dict[str, Any] = dict(self.settings)
        for name in given:
            if name not in settings.model_fields:
                cause = f"the launcher {self.name} has no such setting"
                raise UsageError(f"--launcher-set {name}", cause, did_you_mean(name, settings.model_fields))
        try:
            values = settings(**given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            step = settings.model_fields[name].description if name in settings.model_fields else None
            culprit = f"--launcher-set {name}" + (f"={given[name]}" if name in given else "")
            raise UsageError(culprit, str(first["msg"]), step or "Correct it") from None
        return kind(values, folder, jobs if kind.one_machine else None)

    def _class(self) -> type[Launcher]:
        if self.is_local:
            return Local
        entry = find(LAUNCHER, [self.name])[self.name]
        found = import_installed(entry)
        assert isinstance(found, type), f"{entry.culprit}: {entry.source} is no class"
        return found


LOCAL = Choice()
"""Child processes of this machine."""
