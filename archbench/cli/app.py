"""The commands, and how they report errors."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

from archbench import __version__
from archbench.cli.browsing import open_report
from archbench.cli.check import check
from archbench.cli.clean import clean, rm
from archbench.cli.compare import compare, tune
from archbench.cli.diff import diff
from archbench.cli.doctor import doctor
from archbench.cli.eval import eval_run
from archbench.cli.export import export
from archbench.cli.fields import completed
from archbench.cli.fsck import fsck
from archbench.cli.generate import generate
from archbench.cli.kernels import kernels
from archbench.cli.listing import list_architectures
from archbench.cli.new import new
from archbench.cli.options import Json, Wide
from archbench.cli.output import say
from archbench.cli.plotting import plot_metric
from archbench.cli.probe import probe
from archbench.cli.regress import regress
from archbench.cli.report import report
from archbench.cli.results import results
from archbench.cli.run import run
from archbench.cli.scale import scale
from archbench.cli.serve_bench import serve_bench
from archbench.cli.show import show
from archbench.cli.status import cancel, status
from archbench.cli.trust import trust
from archbench.cli.where import where
from archbench.errors import ArchbenchError, ArchbenchWarning, StorageError, refusal, require_memory
from archbench.interruption import exit_code, interruptible
from archbench.presentation.characters import visible
from archbench.presentation.terminal import WIDE, echo
from archbench.runs.launched import together

DEBUG_VARIABLE = "ARCHBENCH_DEBUG"
BUG = 70
"""Exit code of an unexpected error (EX_SOFTWARE of sysexits.h)."""

# Typer's usage errors are click's in earlier releases and its own in later ones.
_TyperUsageError: Any = next(kind for kind in reversed(typer.BadParameter.__mro__) if hasattr(kind, "format_message"))

LEAST_MEMORY = 1 << 30
"""Bytes of address space: torch takes 0.9 GiB before anything is measured."""

INTERRUPTED = 130
"""What Typer makes of a KeyboardInterrupt."""

app = typer.Typer(
    name="archbench",
    help="Compare language-model architectures: quality, speed and memory you can trust.",
    epilog="Start with: archbench run gpt1",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        echo(f"archbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", envvar=DEBUG_VARIABLE, help="Show the traceback of an error; works after a command too."
        ),
    ] = False,
) -> None:
    pass


class _Command(TyperCommand):
    """A command whose options are made when it is called; ``archbench --help`` needs none of them."""

    function: ClassVar[Callable[..., None]]

    @cached_property
    def whole(self) -> Any:
        one = typer.Typer(context_settings=app.info.context_settings, add_completion=False)
        one.command(self.name, help=self.help)(_with_wide(completed(type(self).function)))
        return typer.main.get_command(one)

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        return self.whole.make_context(*arguments, **settings)


def _with_wide(command: Callable[..., None]) -> Callable[..., None]:
    """The command with ``--wide``, if it prints tables: those have ``--json``."""
    own = inspect.signature(command, eval_str=True)
    if all(one.annotation != Json for one in own.parameters.values()):
        return command

    @functools.wraps(command)
    def widened(*, wide: bool, **values: Any) -> None:
        WIDE.set(wide)
        command(**values)

    last = inspect.Parameter("wide", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Wide)
    parameters = [*(one.replace(kind=one.KEYWORD_ONLY) for one in own.parameters.values()), last]
    widened.__dict__["__signature__"] = own.replace(parameters=parameters)
    widened.__annotations__ = {one.name: one.annotation for one in parameters}
    return widened


def _paragraphs(text: str) -> str:
    """A docstring without line breaks inside its paragraphs: the terminal's width decides where they are."""
    return re.sub(r"(?<!\n)\n(?![\n -])", " ", text)


_NAMES = {"serve_bench": "serve-bench"}
"""Commands of two words; of others, what follows the first one tells what they do."""


def _add(panel: str, *functions: Callable[..., None]) -> None:
    for function in functions:
        name = _NAMES.get(function.__name__, function.__name__.partition("_")[0])
        kind = type(name, (_Command,), {"function": staticmethod(function)})
        app.command(name, cls=kind, help=_paragraphs(inspect.getdoc(function) or ""), rich_help_panel=panel)(
            lambda: None
        )


_add("Measure", run, compare, tune, probe, scale, kernels, serve_bench, results, report, generate, eval_run, export)
_add("Look", list_architectures, show, diff, plot_metric, open_report, doctor, where, status, cancel, clean, rm, fsck)
_add("Add your own", new, check, regress, trust)


@contextlib.contextmanager
def _showing_warnings() -> Iterator[None]:
    """Within this context archbench's warnings are paragraphs on standard error."""
    before = warnings.showwarning
    warnings.showwarning = _show_warning(before)
    try:
        yield
    finally:
        warnings.showwarning = before


@_showing_warnings()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code. Errors are one paragraph on stderr, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = given[: given.index("--")] if "--" in given else given
    debug = "--debug" in options or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0", "false")
    given = [option for option in options if option != "--debug"] + given[len(options) :]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: an encoding may lack some characters
    received: list[str] = []
    try:
        with interruptible() as received:
            _require_working_directory()
            require_memory(LEAST_MEMORY)
            with together(given) as launched:
                if launched is not None and launched.rank > 0:
                    return launched.follow()
                code = app(given or ["--help"], prog_name="archbench", standalone_mode=False, obj=debug)
                if launched is not None:
                    launched.code = code if isinstance(code, int) else 0
            sys.stdout.flush()
            if code == INTERRUPTED:
                raise KeyboardInterrupt
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(received)
    except BrokenPipeError:
        # The reader closed the pipe (| head): print nothing more, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # noqa: BLE001  (the last resort: no traceback without --debug)
        if received:  # code amid which it came made another error of it, or the terminal is gone
            return _interrupted(received)
        if debug:
            echo(traceback.format_exc().rstrip(), error=True)
        return _report(error, debug)
    return code if isinstance(code, int) else 0


def _interrupted(received: Sequence[str]) -> int:
    interruption = KeyboardInterrupt(*received)
    with contextlib.suppress(OSError):  # the terminal is gone
        say("Interrupted", f"by {interruption}" if str(interruption) not in ("", "SIGINT") else "")
    return exit_code(interruption)


def _report(error: Exception, debug: bool) -> int:
    """Print one paragraph about an error on stderr. Returns the exit code."""
    if (known := error if isinstance(error, ArchbenchError) else refusal(error, "archbench")) is not None:
        say("Error", str(known))
        return known.exit_code
    if isinstance(error, _TyperUsageError):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "archbench"
        text = error.format_message().rstrip(".")
        say("Error", f"{text}{'' if text.endswith('?') else '.'} See {command} --help.")
        return int(error.exit_code)
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, OSError) and error.strerror:
        place = error.filename if error.filename is not None else "the system"
        say("Error", f"{place}: {error.strerror}. Correct it and run the command again.")
        return 7
    frame = traceback.extract_tb(error.__traceback__)[-1]
    step = "Please report it" if debug else "Rerun with --debug for the traceback, and report it"
    say("Error", f"a bug in archbench or in a plugin: {cause} ({frame.filename}:{frame.lineno}). {step}.")
    return BUG


def _require_working_directory() -> None:
    """Raise a StorageError if it was deleted: relative paths lead nowhere, and torch's libraries end the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise StorageError("the working directory", "it has been deleted", "Change to a folder that exists") from None


def _show_warning(otherwise: Any) -> Any:
    def show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, ArchbenchWarning):
            say("Warning", str(message))
        else:
            otherwise(visible(str(message)), category, *place, **more)

    return show_warning
