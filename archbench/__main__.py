"""``python -m archbench``, and what the ``archbench`` command imports first.

``-m`` puts the current directory first on the path. It is removed before anything is imported, so that no file in it
is taken for a package or a plugin.
"""

import atexit
import os
import sys

if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback, until archbench.interruption is imported

from archbench import cli, interruption


def main() -> int:
    """The command. Returns its exit code, which no signal changes after that."""
    atexit.register(interruption.ignored)  # the first is called last: then Python takes its handlers away
    code = cli.main()
    interruption.over(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
