"""Many runs and studies in one process take no more memory, files, threads and cache than a few.

::

    ARCHBENCH_SOAK_RUNS=50 ARCHBENCH_SOAK_STUDIES=10 ARCHBENCH_SOAK_REAL=1 pytest -m slow -s tests/test_soak.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from small_runs import with_small_corpus

RUNS = int(os.environ.get("ARCHBENCH_SOAK_RUNS", "24"))
STUDIES = int(os.environ.get("ARCHBENCH_SOAK_STUDIES", "6"))
REAL = bool(os.environ.get("ARCHBENCH_SOAK_REAL"))
"""Whether children are fresh processes, not forks of one that has imported torch."""

WARM = 0.4
"""Share of the soak after which everything has been used once: both kinds of study, and a run that fails."""

SPARE = {"memory": 8 << 20, "cached calls": 64, "source lines": 8}
"""How much more the process may hold at the end than after that share; nothing more of anything else.

Memory: a page of the allocator's arenas may be held by one live object. Calls: caches that have a largest size.
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_fiftieth_run_holds_no_more_than_the_twentieth(tmp_path: Path) -> None:
    folder, temporary, cache = (tmp_path / name for name in ("work", "tmp", "cache"))
    for place in (folder, temporary, cache):
        place.mkdir()
    with_small_corpus(folder)
    tests = Path(__file__).parent
    (folder / "bigram.py").write_text((tests / "example_plugins" / "bigram.py").read_text())
    done = subprocess.run(
        [sys.executable, str(tests / "soak.py"), str(RUNS), str(STUDIES), *([] if REAL else ["forked"])],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary), "ARCHBENCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    samples = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(samples) == RUNS + STUDIES
    warm = samples[int(WARM * len(samples)) :]
    half = len(warm) // 2
    for what in warm[0]:
        if what == "what":
            continue
        early, late = (statistics.median(one[what] for one in part) for part in (warm[:half], warm[half:]))
        print(f"{what}: {samples[0][what]:,} at first, {early:,.0f}, then {late:,.0f}")
        assert late <= early + SPARE.get(what, 0), f"{what} grows"
    left = [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]
    assert not left, "temporary files"
    assert not list(folder.rglob("*.tmp"))
