"""``python -m archbench``: the same as the ``archbench`` command.

``-m`` puts the current directory first on the path. It is removed before anything is imported, so that no file in it
is taken for a package or a plugin.
"""

import os
import sys

if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from archbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
