"""State that a whole process shares and a plugin must leave alone: read, compared, and put back.

Threads, default dtype and the like decide the speed and the numbers of all that runs later in the process, and a forked
copy of it would continue measuring beside the original.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from archbench.errors import PluginError
from archbench.testing.library_functions import Functions

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SET_BY_LIBRARIES = ("TORCHINDUCTOR_", "TRITON_", "CUDA_MODULE_LOADING", "KMP_", "PYTEST_CURRENT_TEST")
"""Environment variables that torch's own parts and pytest set."""


@dataclass(frozen=True)
class Setting:
    """One thing that the process shares.

    Attributes:
        name: as in "it changed NAME from A to B".
        read: returns its value.
        restore: puts an earlier value back.
        advice: what a plugin should do instead.
    """

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], object]
    advice: str


def _set_default_device(device: torch.device) -> None:
    # None removes torch's override; naming the CPU would leave one on every call.
    torch.set_default_device(None if device.type == "cpu" else device)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_SET_BY_LIBRARIES)}


def _restore_environment(variables: Mapping[str, str]) -> None:
    for name in _environment().keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _handlers() -> dict[str, Any]:
    return {number.name: signal.getsignal(number) for number in _SIGNALS}


def _restore_handlers(handlers: Mapping[str, Any]) -> None:
    for name, handler in handlers.items():
        if signal.getsignal(signal.Signals[name]) is not handler:
            signal.signal(signal.Signals[name], handler)


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was deleted
        return None


def _restore_working_folder(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _backends() -> dict[str, Any]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        "torch.backends.cudnn.enabled": cudnn.enabled,
        "torch.backends.cudnn.benchmark": cudnn.benchmark,
        "torch.backends.cudnn.deterministic": cudnn.deterministic,
        "torch.backends.cudnn.allow_tf32": cudnn.allow_tf32,
        "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction": (
            cuda.matmul.allow_fp16_reduced_precision_reduction
        ),
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction": (
            cuda.matmul.allow_bf16_reduced_precision_reduction
        ),
        **{f"torch.backends.cuda.{name}_sdp_enabled()": getattr(cuda, f"{name}_sdp_enabled")() for name in _SDP},
    }


def _restore_backends(flags: Mapping[str, Any]) -> None:
    for name, value in flags.items():
        if name.endswith("_sdp_enabled()"):
            kernel = name.removeprefix("torch.backends.cuda.").removesuffix("_sdp_enabled()")
            getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(value)
        else:
            *path, flag = name.split(".")[1:]
            owner: Any = torch
            for part in path:
                owner = getattr(owner, part)
            setattr(owner, flag, value)


_SDP = ("flash", "mem_efficient", "math", "cudnn")


def _autocast() -> dict[str, Any]:
    kinds = ("cpu", "cuda")
    enabled: dict[str, Any] = {f"on {kind}": torch.is_autocast_enabled(kind) for kind in kinds}
    return enabled | {f"dtype on {kind}": torch.get_autocast_dtype(kind) for kind in kinds}


def _restore_autocast(before: Mapping[str, Any]) -> None:
    for kind in ("cpu", "cuda"):
        torch.set_autocast_enabled(kind, before[f"on {kind}"])
        torch.set_autocast_dtype(kind, before[f"dtype on {kind}"])


def _hooks() -> dict[str, Any]:
    return {f"{name}, number {key}": hook for name, hooks in _GLOBAL_HOOKS.items() for key, hook in hooks.items()}


def _restore_hooks(before: Mapping[str, Any]) -> None:
    for name, hooks in _GLOBAL_HOOKS.items():
        for key in [key for key in hooks if f"{name}, number {key}" not in before]:
            del hooks[key]


_GLOBAL_HOOKS: dict[str, Any] = {
    name.removeprefix("_global_"): hooks
    for module in (torch.nn.modules.module, sys.modules[torch.optim.Optimizer.__module__])
    for name, hooks in vars(module).items()
    if name.startswith("_global_") and isinstance(hooks, dict)
}


def _modes() -> int:
    return int(torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack())


def _restore_modes(number: int) -> None:
    while torch._C._len_torch_function_stack() and _modes() > number:
        torch._C._pop_torch_function_stack()
    while torch._C._len_torch_dispatch_stack() and _modes() > number:
        torch._C._pop_torch_dispatch_stack()


def _flushes_denormals() -> bool:
    return float(torch.tensor(1e-40, device="cpu", dtype=torch.float32) * 1.0) == 0.0


_CALLERS = "Leave that to the caller: it is the same for all architectures"

NUMERICS = (
    Setting(
        "the number of threads",
        torch.get_num_threads,
        torch.set_num_threads,
        "Leave that to the run's configuration (--threads)",
    ),
    Setting(
        "the default dtype",
        torch.get_default_dtype,
        torch.set_default_dtype,
        "Pass dtype=... to the tensors that need another one",
    ),
    Setting(
        "the default device",
        torch.get_default_device,
        _set_default_device,
        "Create tensors on the device of the tokens, or of a parameter",
    ),
    Setting(
        "the grad mode",
        torch.is_grad_enabled,
        torch.set_grad_enabled,
        "Use it as a context: with torch.no_grad(): ...",
    ),
    Setting(
        "torch.are_deterministic_algorithms_enabled()",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
        _CALLERS,
    ),
    Setting(
        "the precision of float32 products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
        _CALLERS,
    ),
    Setting("torch's backends", _backends, _restore_backends, _CALLERS),
    Setting("autocast", _autocast, _restore_autocast, "Use it as a context: with state.autocast(): ..."),
    Setting("whether denormal numbers become zero", _flushes_denormals, torch.set_flush_denormal, _CALLERS),
    Setting("the modes that every torch function passes through", _modes, _restore_modes, "Leave a mode's context"),
    Setting("the hooks on every module", _hooks, _restore_hooks, "Remove the hook, or register it on your own modules"),
    Setting("torch.is_anomaly_enabled()", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, _CALLERS),
    Setting("whether garbage is collected", gc.isenabled, lambda on: gc.enable() if on else gc.disable(), _CALLERS),
    Setting(
        "a function that is not the plugin's",
        Functions,
        Functions.restore,
        "Call it, wrap it, or write your own: other architectures are measured with this one",
    ),
)
"""What decides the speed and the numbers of later work."""

SURROUNDINGS = (
    Setting("the working folder", _working_folder, _restore_working_folder, "Use whole paths"),
    Setting(
        "the environment variables",
        _environment,
        _restore_environment,
        "Take what can be configured from your ModelConfig",
    ),
    Setting("the signal handlers", _handlers, _restore_handlers, "Leave interrupts to the program"),
)
"""What else callers rely on."""


@dataclass(frozen=True)
class Change:
    """What has changed, "it changed the number of threads from 2 to 1", and what to do instead.

    ``wrapper`` is the file that did it by wrapping functions of others, if that is all.
    """

    what: str
    advice: str
    wrapper: str = ""


class Watch:
    """What has changed since it was made; ``close`` puts it back.

    Until then a forked child ends at once, so that no second copy of the caller's work continues.
    """

    def __init__(self, settings: tuple[Setting, ...]) -> None:
        self._before = [(setting, setting.read()) for setting in settings]
        self._threads = set(threading.enumerate())
        self._forks = _Forks.count
        _Forks.watches += 1

    def changes(self) -> list[Change]:
        """Settings that changed, and forks."""
        changes = []
        for setting, before in self._before:
            after = setting.read()
            if before != after:  # in this order: what is before may be wrapped after
                wrapper = before.wrapped_in(after) if isinstance(before, Functions) else ""
                changes.append(
                    Change(f"it changed {_difference(setting.name, before, after)}", setting.advice, wrapper)
                )
        if _Forks.count > self._forks:
            advice = "Start no processes: the copy would continue the caller's work, and share its cores"
            changes.append(Change("it forked the process", advice))
        return changes

    def threads(self) -> list[Change]:
        """Python threads that were started and are still running."""
        left = [thread.name for thread in threading.enumerate() if thread not in self._threads]
        advice = "Join it before returning: it takes time from whatever is measured next"
        return [Change(f"it left a thread running ({left[0]})", advice)] if left else []

    def close(self) -> None:
        """Put everything back."""
        _Forks.watches -= 1
        for setting, before in self._before:
            if before != setting.read():
                setting.restore(before)


@contextmanager
def watched(culprit: str) -> Iterator[None]:
    """Around measured work: an error where the plugin changes what decides its numbers (:data:`NUMERICS`), or forks.

    All is put back, and a forked child ends at once. An exception from inside passes through.

    Args:
        culprit: what the error names: ``phase train of gpt1``.

    Raises:
        PluginError: something was changed, and what.
    """
    watch = Watch(NUMERICS)
    try:
        yield
        # What a library wraps on import is put back, and the check of side effects notes it.
        changes = [change for change in watch.changes() if "/site-packages/" not in change.wrapper]
    finally:
        watch.close()
    if changes:
        raise PluginError(culprit, ", and ".join(change.what for change in changes), changes[0].advice)


class _Forks:
    """Forks of this process while there is a :class:`Watch`."""

    count = 0
    watches = 0

    @classmethod
    def before(cls) -> None:
        cls.count += 1

    @classmethod
    def in_child(cls) -> None:
        if cls.watches:
            os._exit(0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_Forks.before, after_in_child=_Forks.in_child)


@contextmanager
def import_watched() -> Iterator[list[Change]]:
    """Around the import of a plugin: what importing it changed of :data:`NUMERICS`, all of which is put back."""
    watch, changes = Watch(NUMERICS), list[Change]()
    try:
        yield changes
        changes += watch.changes()
    finally:
        watch.close()


def _difference(name: str, before: Any, after: Any) -> str:
    if isinstance(before, Functions):
        function, one, other = before.replaced(after)[0]
        return f"{name}: {function} from {_shown(one)} to {_shown(other)}"
    if not isinstance(before, dict):
        return f"{name} from {before} to {after}"
    key = min(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return f"{name}: {key} from {_shown(before.get(key))} to {_shown(after.get(key))}"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return str(getattr(value, "__qualname__", repr(value)[:60]))
