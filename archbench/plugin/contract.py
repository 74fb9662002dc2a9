"""Does a plugin keep the contract of :mod:`archbench.hookspecs`? Each way not to has its own error.

pluggy by itself accepts hooks with unknown names and calls whatever is there; a benchmark wants to know before it
starts.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

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
)
from archbench.hookspecs import GROUP, OPTIONAL_HOOKS, REQUIRED_HOOKS, ArchitectureInfo
from archbench.plugin.discovery import Entry

HOOKS = REQUIRED_HOOKS + OPTIONAL_HOOKS


def new_manager() -> pluggy.PluginManager:
    """An empty manager that knows archbench's hooks; every architecture has one of its own."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def is_wrapper(plugin: object) -> bool:
    """Whether all hooks of ``plugin`` are wrappers (``@hookimpl(wrapper=True)``): cross-cutting, no architecture."""
    options = [options for _, _, options in _implementations(plugin)]
    return bool(options) and all(_wraps(option) for option in options)


def hooks_of(plugin: object) -> set[str]:
    """Names of the hooks that ``plugin`` has; only ``tasks``: it offers diagnostic tasks, and is no architecture."""
    return {hook for hook, _, _ in _implementations(plugin)}


def check_hooks(plugin: object, culprit: str, *, required: Iterable[str] = REQUIRED_HOOKS) -> None:
    """Names and arguments of every hook in ``plugin``, and that none of those ``required`` is missing.

    Raises:
        MisspeltHookError, HookArgumentError, MissingHookError: see there.
    """
    found = set()
    for hook, function, options in _implementations(plugin):
        if hook not in HOOKS:
            step = did_you_mean(hook, HOOKS) + "; functions that are no hook go without @hookimpl"
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


def missing_hook(hook: str, culprit: str, plugin: object) -> MissingHookError:
    """The error of calling an optional hook that ``plugin`` does not have."""
    return _missing(plugin, hook, culprit)


def checked_info(info: object, entry: Entry) -> ArchitectureInfo:
    """``describe()``'s answer, if it is a usable one.

    Raises:
        HookResultError: it is no ArchitectureInfo, or one with a wrong or missing part.
    """

    def refuse(cause: str, step: str) -> HookResultError:
        return HookResultError(entry.culprit, f"its describe hook returned {cause}", step)

    if not isinstance(info, ArchitectureInfo):
        raise wrong_result(entry.culprit, "describe", info, "an archbench.ArchitectureInfo")
    if not (isinstance(info.config, type) and issubclass(info.config, ModelConfig)):
        raise refuse(f"the config type {info.config!r}", "Give a subclass of archbench.ModelConfig")
    for name in ("name", "summary", "paper"):
        if not isinstance(getattr(info, name), str) or not getattr(info, name):
            raise refuse(f"no {name}", f"Give ArchitectureInfo.{name} a string")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", info.name):
        raise refuse(f"the name {info.name!r}", "Use lower-case letters, digits, '-', '_' and '.'")
    if not entry.is_file and info.name != entry.name:
        raise refuse(f"the name {info.name!r}, and its entry point says {entry.name!r}", "Make the two agree")
    if not isinstance(info.presets, Mapping) or "nano" not in info.presets:
        raise refuse(
            "no preset called 'nano'",
            "Give ArchitectureInfo.presets a small size of that name: tests and smoke runs use it",
        )
    for name, preset in info.presets.items():
        if not isinstance(preset, info.config):
            raise refuse(
                f"the preset {name!r}, which is no {info.config.__name__}", f"Make it {info.config.__name__}(...)"
            )
    return info


def call_hook(hook: Callable[..., Any], name: str, culprit: str, /, **arguments: Any) -> Any:
    """Call one hook; what it raises becomes a HookFailedError, archbench's own errors pass through."""
    try:
        return hook(**arguments)
    except ArchbenchError:
        raise
    except (Exception, SystemExit) as error:
        raise hook_failed(culprit, name, error) from error


def hook_failed(culprit: str, hook: str, error: BaseException) -> HookFailedError:
    step = "Rerun with --debug for the traceback, and tell the plugin's author"
    return HookFailedError(culprit, f"its {hook} hook raised {one_line(error)}", step)


def wrong_result(culprit: str, hook: str, result: object, expected: str, *, inside: str = "") -> HookResultError:
    return HookResultError(culprit, f"its {hook} hook returned {inside}{_shown(result)}", f"Return {expected}")


def signature_of(hook: str) -> str:
    """``train_step(state, batch)``: how the hook is written."""
    return f"{hook}({', '.join(_spec_arguments(hook))})"


def _spec_arguments(hook: str) -> list[str]:
    return list(inspect.signature(getattr(hookspecs, hook)).parameters)


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


def _check_arguments(hook: str, function: Callable[..., Any], culprit: str) -> None:
    known = _spec_arguments(hook)
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
        step = f"Write it as {signature_of(hook)}; arguments that are not needed may be left out"
        raise HookArgumentError(culprit, cause, step)


def _missing(plugin: object, hook: str, culprit: str) -> MissingHookError:
    if callable(getattr(plugin, hook, None)):
        cause = f"it has a function {hook}() that is not marked as a hook"
        return MissingHookError(culprit, cause, "Write @hookimpl above it (from archbench import hookimpl)")
    return MissingHookError(culprit, f"it has no {hook} hook", f"Add a function {signature_of(hook)} marked @hookimpl")


def _shown(result: object) -> str:
    kind = type(result)
    if result is None:
        return "None (is there a return statement?)"
    if hasattr(result, "shape") and hasattr(result, "dtype"):
        return f"a {kind.__name__} of shape {tuple(result.shape)} and dtype {result.dtype}"
    return f"a {kind.__qualname__}" if kind.__module__ == "builtins" else f"a {kind.__module__}.{kind.__qualname__}"
