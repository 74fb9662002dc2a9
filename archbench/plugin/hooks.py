"""Does a plugin keep the contract of :mod:`archbench.hookspecs`? Each way to break it has its own error.

pluggy alone accepts hooks with unknown names or arguments, which a benchmark must find before it starts.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import pluggy

from archbench import hookspecs
from archbench.config import ModelConfig
from archbench.errors import (
    ArchbenchError,
    HookArgumentError,
    HookFailedError,
    HookResultError,
    MissingHookError,
    MisspeltHookError,
    did_you_mean,
    one_line,
    refusal,
)
from archbench.hookspecs import GROUP, OPTIONAL_HOOKS, REQUIRED_HOOKS, ArchitectureInfo
from archbench.plugin.discovery import Entry

HOOKS = REQUIRED_HOOKS + OPTIONAL_HOOKS

_T = TypeVar("_T")


class Hooks:
    """The hooks of one plugin, in a pluggy manager of their own; their results are checked here.

    Attributes:
        culprit: how errors name the plugin and the wrappers around it.
    """

    def __init__(self, plugin: object, entry: Entry, wrappers: Mapping[str, object] | None = None) -> None:
        wrappers = wrappers or {}
        self.culprit = entry.culprit + (f", wrapped by {', '.join(wrappers)}" if wrappers else "")
        self._plugin = plugin
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        manager.register(plugin, name=entry.source)
        for name, wrapper in wrappers.items():
            manager.register(wrapper, name=f"wrapper {name}")
        self._callers = manager.hook

    def offers(self, hook: str) -> bool:
        """Whether the plugin has the hook; wrappers around it do not count."""
        implementations = getattr(self._callers, hook).get_hookimpls()
        return any(implementation.plugin is self._plugin for implementation in implementations)

    def call(self, hook: str, kind: type[_T], expected: str, /, **arguments: Any) -> _T:
        """Call the hook; its result must be a ``kind`` (in words, ``expected``).

        Raises:
            MissingHookError: the plugin does not have this optional hook.
            HookFailedError: the hook raised; archbench's own errors pass through.
            ResourceError, StorageError: the hook raised because memory or a disk is full.
            HookResultError: it returned None, or something else.
        """
        if hook in OPTIONAL_HOOKS and not self.offers(hook):
            raise _missing(self._plugin, hook, self.culprit)
        try:
            result = getattr(self._callers, hook)(**arguments)
        except ArchbenchError:
            raise
        except (Exception, SystemExit) as error:
            raise self.failed(hook, error) from error
        if not isinstance(result, kind):
            raise self.wrong(hook, result, expected)
        return result

    def failed(self, hook: str, error: BaseException) -> ArchbenchError:
        """The error of a hook that raised ``error``; without memory or room on the disk none is to blame."""
        if (refused := refusal(error, f"the {hook} hook of {self.culprit}")) is not None:
            return refused
        step = "Rerun with --debug for the traceback, and tell the plugin's author"
        return HookFailedError(self.culprit, f"its {hook} hook raised {one_line(error)}", step)

    def wrong(self, hook: str, result: object, expected: str, *, inside: str = "") -> HookResultError:
        return HookResultError(self.culprit, f"its {hook} hook returned {inside}{_shown(result)}", f"Return {expected}")


def is_wrapper(plugin: object) -> bool:
    """Whether all hooks of ``plugin`` are wrappers (``@hookimpl(wrapper=True)``); it is then no architecture."""
    options = [options for _, _, options in _implementations(plugin)]
    return bool(options) and all(_wraps(option) for option in options)


def hooks_of(plugin: object) -> set[str]:
    """Names of the hooks that ``plugin`` has."""
    return {hook for hook, _, _ in _implementations(plugin)}


def check_hooks(plugin: object, culprit: str, *, required: Iterable[str]) -> None:
    """Check names and arguments of every hook in ``plugin``, and that it has those ``required``.

    Raises:
        MisspeltHookError, HookArgumentError, MissingHookError: it does not keep the contract.
    """
    found = set()
    for hook, function, options in _implementations(plugin):
        if hook not in HOOKS:
            step = f"Other functions go without @hookimpl. {did_you_mean(hook, HOOKS)}"
            raise MisspeltHookError(culprit, f"there is no hook called {hook!r}", step)
        _check_arguments(hook, function, culprit)
        if not _wraps(options):
            found.add(hook)
        elif not inspect.isgeneratorfunction(inspect.unwrap(function)):
            step = f"Write 'result = yield' where the wrapped {hook} should run, and return the result"
            raise HookArgumentError(culprit, f"its {hook} hook is marked as a wrapper and has no yield", step)
    for hook in required:
        if hook not in found:
            raise _missing(plugin, hook, culprit)


def check_info(info: ArchitectureInfo, entry: Entry) -> ArchitectureInfo:
    """The result of ``describe()``, checked.

    Raises:
        HookResultError: a part of it is wrong or missing.
    """

    def refuse(cause: str, step: str) -> HookResultError:
        return HookResultError(entry.culprit, f"its describe hook returned {cause}", step)

    if not (isinstance(info.config, type) and issubclass(info.config, ModelConfig)):
        raise refuse(f"the config type {info.config!r}", "Give a subclass of archbench.ModelConfig")
    for name in ("name", "summary", "paper"):
        if not isinstance(getattr(info, name), str) or not getattr(info, name):
            raise refuse(f"no {name}", f"Give ArchitectureInfo.{name} a string")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*" + (r":\S+" if ":" in entry.name else ""), info.name):
        raise refuse(f"the name {info.name!r}", "Use lower-case letters, digits, '-', '_' and '.'")
    if not entry.is_file and info.name != entry.name:
        raise refuse(f"the name {info.name!r}, and its entry point says {entry.name!r}", "Make the two agree")
    if not isinstance(info.presets, Mapping) or "nano" not in info.presets:
        step = "Give ArchitectureInfo.presets a small size of that name: tests and smoke runs use it"
        raise refuse("no preset called 'nano'", step)
    for name, preset in info.presets.items():
        if not isinstance(preset, info.config):
            kind = info.config.__name__
            raise refuse(f"the preset {name!r}, which is no {kind}", f"Make it {kind}(...)")
    return info


def _implementations(plugin: object) -> list[tuple[str, Callable[..., Any], Mapping[str, Any]]]:
    """(hook, function, options) of everything in ``plugin`` that carries ``@hookimpl``."""
    manager = pluggy.PluginManager(GROUP)
    found: list[tuple[str, Callable[..., Any], Mapping[str, Any]]] = []
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is not None:
            found.append((options.get("specname") or attribute, getattr(plugin, attribute), options))
    return found


def _wraps(options: Mapping[str, Any]) -> bool:
    return bool(options.get("wrapper") or options.get("hookwrapper"))


def _arguments(hook: str) -> list[str]:
    return list(inspect.signature(getattr(hookspecs, hook)).parameters)


def _signature(hook: str) -> str:
    """``train_step(state, batch)``: how the hook is written."""
    return f"{hook}({', '.join(_arguments(hook))})"


def _check_arguments(hook: str, function: Callable[..., Any], culprit: str) -> None:
    known = _arguments(hook)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in known and parameter.default is not parameter.empty:
            cause = f"the argument {name!r} of its {hook} hook has a default, so it would never be passed"
        elif name in known and parameter.kind is parameter.KEYWORD_ONLY:
            cause = f"the argument {name!r} of its {hook} hook is keyword-only, and hooks are called by position"
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            cause = f"its {hook} hook takes {parameter}, which would stay empty"
        elif name not in known and parameter.default is parameter.empty:
            cause = f"its {hook} hook takes an argument {name!r}, and nothing of that name is passed"
        else:
            continue
        step = f"Write it as {_signature(hook)}; unused arguments may be left out"
        raise HookArgumentError(culprit, cause, step)


def _missing(plugin: object, hook: str, culprit: str) -> MissingHookError:
    if callable(getattr(plugin, hook, None)):
        cause = f"it has a function {hook}() that is not marked as a hook"
        return MissingHookError(culprit, cause, "Write @hookimpl above it (from archbench import hookimpl)")
    return MissingHookError(culprit, f"it has no {hook} hook", f"Add a function {_signature(hook)} marked @hookimpl")


def _shown(result: object) -> str:
    kind = type(result)
    if result is None:
        return "None (is there a return statement?)"
    if hasattr(result, "shape") and hasattr(result, "dtype"):
        return f"a {kind.__name__} of shape {tuple(result.shape)} and dtype {result.dtype}"
    return f"a {kind.__qualname__}" if kind.__module__ == "builtins" else f"a {kind.__module__}.{kind.__qualname__}"
