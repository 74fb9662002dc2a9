"""Every command of the archbench that is installed, from a new folder outside of any checkout, on any system.

Usage: ``python .ci/installed.py``, with the Python of an environment in which the wheel is installed. Each command has
to exit with 0. It ends with 1 after the first that does not, and names it.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
SMALL = (
    "--profile smoke --steps 4 --set n_layer=1 --set context_length=32 --threads 1 --config training.checkpoint_every=2"
)
COMPARED = f"{SMALL.replace('--steps 4', '--tokens 2048')} --seeds 2 --sweeps 1 --no-tuning --contexts 16"

COMMANDS = [
    "--help",
    "list",
    "list --json",
    "show gpt1",
    "doctor --json",
    f"run gpt1 {SMALL}",
    "results",
    "results --json",
    "report results -o page.html",
    "generate gpt1 --prompt ROMEO --max-new-tokens 4",
    "check llama --check causality",
    f"compare gpt1 llama {COMPARED} --out compared",
    "report compared",
    "results compared/runs.parquet --csv rows.csv",
    "fsck results",
    "fsck compared",
    "new mine",
    "trust mine/archbench_mine.py",
    "clean --dry-run",
]
"""Those that measure are small; the other commands answer ``--help``."""


def main() -> int:
    """Run them all; the exit code."""
    script = Path(sys.executable).with_name("archbench.exe" if sys.platform == "win32" else "archbench")
    if not script.exists():
        script = Path(sys.executable).parent / "Scripts" / script.name
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:

        def run(*command: str | Path, check: bool = False) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command,
                cwd=folder,
                env={**variables, "PYTHONIOENCODING": "utf-8"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                check=check,
            )

        python = [sys.executable, "-P", "-c"]
        found = run(*python, "import archbench; print(archbench.__file__, archbench.__version__)", check=True).stdout
        if Path(found.rpartition(" ")[0]).is_relative_to(CHECKOUT):
            print(f"this is the checkout, not what is installed: {found}")
            return 1
        print(found.strip(), "metadata:", importlib.metadata.version("archbench"))
        listed = "import archbench.cli.app as app; print(*(one.name for one in app.app.registered_commands))"
        names = run(*python, listed, check=True).stdout
        called = {command.split()[0] for command in COMMANDS}
        for command in [*COMMANDS, *(f"{name} --help" for name in names.split() if name not in called)]:
            begun = time.monotonic()
            done = run(script, *command.split())
            print(f"{time.monotonic() - begun:6.1f} s  {done.returncode}  archbench {command}", flush=True)
            if done.returncode:
                print(done.stdout, done.stderr, sep="\n")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
