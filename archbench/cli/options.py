"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archbench.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from archbench.launch.choice import Choice

Names = Annotated[
    list[str] | None,
    typer.Argument(help="Names of the architectures (see: archbench list), hf:PLACE, or all", show_default=False),
]
Name = Annotated[
    str | None, typer.Argument(help="Name of the architecture (see: archbench list), or hf:PLACE", show_default=False)
]
Preset = Annotated[str, typer.Option(help="The model's size: nano, small, paper")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A field of the model's configuration: n_layer=6 (repeatable)"),
]
Config = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        metavar="NAME=VALUE",
        help="Any field of the run's configuration: training.schedule=wsd (repeatable)",
    ),
]
Device = Annotated[str, typer.Option(help="Where to run: auto, cpu, cuda or cuda:N")]
Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="FILE_OR_DIR", help="Load a plugin by its path (repeatable)")
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="An experiment tracker: tensorboard, wandb, mlflow (repeatable)"),
]
Launcher = Annotated[
    str, typer.Option("--launcher", metavar="NAME", help="What takes the runs to machines: local, ray, slurm")
]
LauncherSet = Annotated[
    list[str] | None,
    typer.Option("--launcher-set", metavar="NAME=VALUE", help="A setting of the launcher: partition=gpu (repeatable)"),
]
Gpus = Annotated[
    str | None, typer.Option("--gpus", metavar="N,N...", help="Local GPUs by number: one run at a time on each")
]
NoTuning = Annotated[
    bool, typer.Option("--no-tuning", help="Train all at the recipe's learning rate, which favours some architectures")
]
Out = Annotated[
    str | None,
    typer.Option("--out", help="Folder of the study", show_default="in results/, by its kind and a digest of the plan"),
]
Trust = Annotated[bool, typer.Option("--trust", help="Trust the code that the run's folder or the run file names")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the weights and tokens")]
Unchecked = Annotated[bool, typer.Option("--unchecked", help="Skip the conformance checks; the results say so")]
Force = Annotated[
    bool, typer.Option("--force", help="Also replace existing files that archbench did not make, or made otherwise")
]
Results = Annotated[
    str, typer.Option("--in", metavar="DIR", help="The folder of results in which ids are looked for, and its studies")
]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON lines")]
Wide = Annotated[bool, typer.Option("--wide", help="Tables with all columns, however narrow the terminal")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error")]


DEEPEST_SECTION = 8
"""Levels of sections; a run's configuration has one, a study's two."""

MOST_BRACKETS = 1000
"""In a value of ``--config``: Python's parser of JSON calls itself for each."""

SECTIONS = ("data", "training", "quality", "speed", "overrides")
"""Sections of a run's configuration."""


def number(value: float | None, option: str) -> None:
    """Refuse nan, which no bound of an option does.

    Raises:
        UsageError: it is.
    """
    if value is not None and value != value:
        raise UsageError(f"{option} nan", "it is not a number", "Give one")


def named(architecture: str | None, command: str, *, typed: bool = True) -> str:
    """The one architecture of a command, by its full name.

    Args:
        typed: it stands on the command line, not in a file.

    Raises:
        UsageError: no architecture is named.
        ArchbenchError: a source does not find it.
    """
    if architecture is None:
        step = f"Name one: archbench {command} gpt1; archbench list shows all"
        raise UsageError(f"archbench {command}", "no architecture is named", step)
    from archbench.plugin.registry import full_name

    return full_name(architecture, typed=typed)


def all_named(
    architectures: Sequence[str] | None, plugins: Sequence[str], command: str, *, typed: bool = True
) -> list[str]:
    """The named architectures, by their full names; ``all`` names every one that is installed or among ``plugins``.

    Args:
        typed: they stand on the command line, not in a file.

    Raises:
        UsageError: no architecture is named.
        ArchbenchError: a source does not find one.
    """
    names = [named(name, command, typed=typed) for name in architectures or (None,)]
    if "all" not in names:
        return names
    from archbench.plugin.registry import available

    return list(dict.fromkeys(entry.name for entry in available(plugins)))


def trust_run(out: str, run: str) -> None:
    """``--trust``: what the run's folder names may run.

    Raises:
        ArchbenchError: there is no such run, or what it names is gone.
    """
    from archbench.plugin.registry import code_of
    from archbench.plugin.trust import vouch
    from archbench.runs.folder import open_run

    config = open_run(out, run).config
    vouch([*config.plugins, *code_of(config.architecture)])


def assignments(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """``["n_layer=6"]`` as ``{"n_layer": "6"}``.

    Raises:
        UsageError: one is not of the form NAME=VALUE.
    """
    pairs = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            step = f"For instance: {option} n_layer=6"
            raise UsageError(f"{option} {text}", "it is not of the form NAME=VALUE", step)
        pairs[name.strip()] = value.strip()
    return pairs


def launcher_choice(launcher: str, settings: Sequence[str] | None, gpus: str | None) -> Choice:
    """The launcher that the options name.

    Raises:
        UsageError: a setting is not of the form NAME=VALUE, or --gpus is given to another launcher than local.
    """
    from archbench.launch.choice import Choice

    given = assignments(settings, "--launcher-set")
    if gpus is not None:
        if launcher != "local":
            step = "Leave it out, and ask for GPUs with --launcher-set"
            raise UsageError(f"--gpus {gpus}", f"it is for the launcher local, and this one is {launcher}", step)
        given["gpus"] = gpus
    return Choice(launcher, tuple(given.items()))


def configure(
    values: dict[str, Any], texts: Sequence[str] | None, *, owner: str = "", own: Mapping[str, str] | None = None
) -> None:
    """Set the fields that ``--config`` names. Values are JSON (null, [1, 2]) or text.

    Args:
        owner: what sets some fields itself.
        own: those fields or sections -> what to do instead.

    Raises:
        UsageError: one is not of the form NAME=VALUE.
        ConfigError: it sets a field of ``own``, or there is no such section.
    """
    own = own or {}
    for path, text in assignments(texts, "--config").items():
        section, *fields = path.split(".")
        if fields and section not in SECTIONS:
            raise _no_fields(path, section)
        if step := own.get(path, own.get(section)):
            raise ConfigError(f"--config {path}", f"{owner} sets it itself", step)
        try:
            value = json.loads(text) if text.count("[") + text.count("{") <= MOST_BRACKETS else text
        except ValueError:  # no JSON, or a number of thousands of digits
            value = text
        assign(values, path, value)


def assign(values: dict[str, Any], path: str, value: Any) -> None:
    """Set the field at ``path``, such as ``training.schedule``.

    Raises:
        ConfigError: there is no such section.
    """
    *sections, name = path.split(".")
    if len(sections) > DEEPEST_SECTION:
        raise _no_fields(path, ".".join(sections[:DEEPEST_SECTION]))
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise _no_fields(path, section)
    values[name] = value


def _no_fields(path: str, section: str) -> ConfigError:
    step = "The sections are data, training, quality and speed"
    return ConfigError(f"--config {path}", f"{section} has no fields", step)


def chosen_device(values: dict[str, Any], default: str | None = None, *, here: bool = True) -> bool:
    """Set the device in ``values``, by default a GPU if there is one. Returns whether it is a GPU.

    Args:
        here: whether this machine has to have it.

    Raises:
        DeviceError: there is no such device.
    """
    from archbench.runs.device import default_device, resolve_device

    device = values.get("device", "auto")
    values["device"] = (default or default_device()) if device == "auto" else device
    if not here:
        return str(values["device"]).startswith("cuda")
    return resolve_device(values["device"]).type == "cuda"
