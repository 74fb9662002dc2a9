"""Python as archbench meets it on Windows or macOS, as far as Linux can show it.

With this folder first on ``PYTHONPATH`` and ``ARCHBENCH_TEST_PLATFORM`` (``win32`` or ``darwin``), archbench's own
modules, in this process and in its children, find what that platform has: ``sys.platform``, none of the modules,
functions and signals that it lacks, no /proc, no default encoding, and for Windows files that nobody removes or
replaces while they are open, names that NTFS allows, and no links. Libraries, which have ports of their own, see Linux.
"""

from __future__ import annotations

import builtins
import os
import re
import signal
import subprocess
import sys
import sysconfig
import types
import warnings
from typing import Any

PLATFORM = os.environ.get("ARCHBENCH_TEST_PLATFORM", "")
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OURS = tuple(f"{PROJECT}/{name}" for name in ("archbench/", "plugins/", "pytest_archbench.py"))
LIBRARY = sysconfig.get_path("stdlib") + "/"

LACKING = {
    "darwin": {
        "os": "sched_getaffinity sched_setaffinity pidfd_open memfd_create",
        "signal": "pidfd_send_signal SIGPWR SIGSTKFLT SIGRTMIN SIGRTMAX",
    },
    "win32": {
        "os": """fork forkpty register_at_fork killpg setsid getsid setpgid getpgid getuid geteuid getgid chown fchmod
            fchown chroot nice uname sysconf statvfs mkfifo mknod openpty ttyname wait wait3 wait4 waitid WNOHANG
            getloadavg pread pwrite sync sched_getaffinity sched_setaffinity sched_yield pidfd_open memfd_create
            posix_spawn getpriority setpriority set_blocking O_NONBLOCK O_CLOEXEC O_DIRECTORY O_NOFOLLOW""",
        "signal": """SIGHUP SIGKILL SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGQUIT SIGPIPE SIGSTOP SIGCONT SIG_BLOCK
            SIG_UNBLOCK SIG_SETMASK pthread_sigmask pthread_kill setitimer ITIMER_REAL alarm pause sigwait""",
        "faulthandler": "register unregister",
        "time": "tzset pthread_getcpuclockid clock_gettime",
        "socket": "AF_UNIX",
    },
}
MISSING = {"win32": "fcntl resource termios tty pty pwd grp syslog posix", "darwin": ""}


class Lacking(types.ModuleType):
    """A module without some of its names; what is set is set in the module."""

    def __init__(self, whole: types.ModuleType, names: str, own: dict[str, Any]) -> None:
        super().__init__(whole.__name__)
        self.__dict__.update(_whole=whole, _lacking=names.split(), _own=own)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["_own"]:
            return self.__dict__["_own"][name]
        if name in self.__dict__["_lacking"]:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on {PLATFORM}")
        return getattr(self.__dict__["_whole"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_whole"], name, value)


def kill(process: int, number: int) -> None:
    """On Windows it is the end of the process, or an event for all processes of the console."""
    raise OSError(f"os.kill({process}, {number}) does not do on Windows what was meant")


def own(name: str) -> dict[str, Any]:
    """What a module has there instead."""
    if name == "sys":
        return {"platform": PLATFORM}
    if PLATFORM == "win32" and name == "os":
        times = lambda: os.times_result((*os.times()[:2], 0.0, 0.0, os.times()[4]))  # noqa: E731
        return {"name": "nt", "kill": kill, "times": times}
    if PLATFORM == "win32" and name == "signal":
        return {"CTRL_C_EVENT": 0, "CTRL_BREAK_EVENT": signal.SIGINT, "SIGBREAK": signal.SIGHUP}
    return {}


def resource() -> Any:
    """Whose ``ru_maxrss`` is in bytes on macOS."""
    whole = import_("resource")
    most = types.SimpleNamespace(ru_maxrss=whole.getrusage(whole.RUSAGE_SELF).ru_maxrss * 1024)
    limits = {"getrlimit": whole.getrlimit, "RLIMIT_AS": whole.RLIMIT_AS, "RLIM_INFINITY": whole.RLIM_INFINITY}
    return types.SimpleNamespace(**limits, RUSAGE_SELF=whole.RUSAGE_SELF, getrusage=lambda who: most)


def is_ours(file: str | None) -> bool:
    return file is not None and file.startswith(OURS)


import_ = builtins.__import__
whole = {name: import_(name) for name in ("sys", "os", "signal", "faulthandler", "time", "socket")}
seen = {name: Lacking(one, LACKING.get(PLATFORM, {}).get(name, ""), own(name)) for name, one in whole.items()}


def import_there(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    if level == 0 and globals is not None and is_ours(globals.get("__file__")):
        if name in MISSING[PLATFORM].split():
            raise ModuleNotFoundError(f"No module named {name!r} on {PLATFORM}", name=name)
        if name in seen:
            return seen[name]
        if name == "resource":
            return resource()
        if name == "winreg" and PLATFORM == "win32":
            return types.SimpleNamespace(HKEY_LOCAL_MACHINE=0, OpenKey=lambda *_: open("/no registry"))
    return import_(name, globals, locals, fromlist, level)


def caller() -> str:
    """The file outside of the standard library that called what is audited."""
    frame: Any = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and ("/site-packages/" in file or not file.startswith((LIBRARY, "<frozen"))):
            return str(file)
        frame = frame.f_back
    return ""


FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f\\]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in {"open", "os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink"} or not is_ours(caller()):
        return
    if not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return
    path = os.fsdecode(arguments[0])
    if event == "open" and path.startswith(("/proc", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", path)
    if PLATFORM != "win32":
        return
    if event == "os.symlink":
        raise OSError(22, "A required privilege is not held by the client", path)
    new = os.fsdecode(arguments[1]) if event in {"os.rename", "os.link"} else path
    if (
        event != "os.remove"
        and FORBIDDEN.search(os.path.basename(new))
        and not (event == "open" and os.path.exists(new))
    ):
        raise OSError(22, "The filename, directory name, or volume label syntax is incorrect", new)
    # shutil and tempfile open folders too, as they do not on Windows.
    if event == "open" and os.path.isdir(path) and is_ours(sys._getframe(1).f_code.co_filename):
        raise PermissionError(13, "Permission denied", path)
    if event in {"os.rename", "os.remove"}:
        refuse_open({os.path.realpath(path), os.path.realpath(new)})


def refuse_open(paths: set[str]) -> None:
    """Windows lets nobody rename or remove what is open, nor a folder with something open."""
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            file = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if any(file == path or file.startswith(path + "/") for path in paths):
            raise PermissionError(13, "The process cannot access the file because it is being used", file)


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """That ignores ``process_group``, and takes events only, as on Windows."""

    def __init__(self, command: Any, **settings: Any) -> None:
        assert settings.pop("creationflags", 512) == 512
        settings.pop("process_group", None)
        super().__init__(command, **settings)

    def send_signal(self, sig: int) -> None:
        if sig not in {signal.SIGTERM, signal.SIGINT, signal.SIGKILL}:
            raise ValueError(f"Unsupported signal: {sig}")
        super().send_signal(sig)


def begin() -> None:
    builtins.__import__ = import_there
    sys.addaudithook(audit)
    warnings.simplefilter("ignore", EncodingWarning)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"archbench.*|__main__")
    if PLATFORM == "win32":
        subprocess.CREATE_NEW_PROCESS_GROUP = 512  # type: ignore[attr-defined]
        subprocess.Popen = Popen  # type: ignore[misc]
        import psutil

        facts = psutil.Process.memory_info

        def memory_info(process: Any) -> Any:
            return types.SimpleNamespace(**facts(process)._asdict(), peak_wset=resource().getrusage(0).ru_maxrss)

        psutil.Process.memory_info = memory_info


if PLATFORM:
    begin()
