"""Many short runs and studies in one process, as a service or a notebook makes them; prints what it holds after each.

``python soak.py RUNS STUDIES [forked]``, in a folder with ``small.txt`` and ``bigram.py``. A line of JSON for each
run and study: what it was, and the process's memory, descriptors, threads, children, modules and cache entries.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import linecache
import os
import sys
import tempfile
import threading
from pathlib import Path

RECIPE = {"steps": 2, "batch_size": 2}


def held() -> dict[str, int]:
    """What this process holds now."""
    gc.collect()
    caches = [one for one in gc.get_objects() if type(one) is functools._lru_cache_wrapper]
    status = Path("/proc/self/status").read_text()
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return {
        "memory": int(status.partition("VmRSS:")[2].split()[0]) << 10,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "native threads": len(os.listdir("/proc/self/task")),
        "children": sum(map(len, children)),
        "modules": len(sys.modules),
        "cached calls": sum(one.cache_info().currsize for one in caches),
        "source lines": len(linecache.cache),
        "temporary files": sum(1 for _ in Path(tempfile.gettempdir()).rglob("*")),
        "cache bytes": sum(path.stat().st_size for path in Path(os.environ["ARCHBENCH_CACHE"]).rglob("*")),
    }


def one_run(number: int) -> None:
    import archbench

    plugin = Path("bigram.py")
    text = plugin.read_text().partition("# run ")[0]
    fails = number % 10 == 9
    plugin.write_text(f"{text}# run {number}\n" + ("raise RuntimeError\n" if fails else ""))
    config = {"architecture": "bigram", "profile": "smoke", "plugins": ["bigram.py"], "checked": False, "seed": number}
    try:
        frame = archbench.run(
            archbench.RunConfig(
                **config, device="cpu", threads=1, phases=("train",), data={"corpus": "small.txt"}, training=RECIPE
            ),
            quiet=True,
        )
    except archbench.ArchbenchError:
        assert fails
    else:
        assert not fails
        assert len(frame)


def one_study(number: int) -> None:
    from archbench.cli import main

    common = ["--out", f"study-{number}", "--plugin", "bigram.py", "--quiet", "--jobs", "1"]
    kinds = (
        ["probe", "bigram", "--parameters", "0", "--updates", "2", "--examples", "10", "--seeds", "1", "--unchecked",
         "--task", "state-parity", "--learning-rate", "0.01"],
        ["tune", "bigram", "--corpus", "small.txt", "--profile", "smoke", "--tokens", "256", "--threads", "1",
         "--set", "context_length=16", "--config", "checked=false", "--match", "tokens"],
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        code = main([*kinds[number % 2], *common])
    assert code == 0, f"{kinds[number % 2]} ended with {code}"


def soak(runs: int, studies: int) -> None:
    every = max(1, runs // max(1, studies))
    for number in range(runs):
        one_run(number)
        print(json.dumps({"what": "run", **held()}), flush=True)
        if studies and number % every == every - 1 and number // every < studies:
            Path("bigram.py").write_text(Path("bigram.py").read_text().partition("# run ")[0])
            one_study(number // every)
            print(json.dumps({"what": "study", **held()}), flush=True)


if __name__ == "__main__":
    if "forked" in sys.argv:
        from forked_children import forked_children

        with forked_children():
            soak(int(sys.argv[1]), int(sys.argv[2]))
    else:
        soak(int(sys.argv[1]), int(sys.argv[2]))
