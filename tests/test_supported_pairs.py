"""The kernels with each version of Triton that is supported, and with each torch that has a build for CPUs.

    pytest -m slow tests/test_supported_pairs.py       # downloads some 200 MB a version

Interpreted, they are attention; compiled, they have no fault. A pair that pip cannot install here is a visible skip.
The pair of torch 2.11, Triton 3.6 and numpy 2.5, whose torch is a CUDA build, is that of tests/fake_gpu.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from archbench_kernelcheck.chips import CHIPS

pytestmark = pytest.mark.slow

TORCH = ("2.10.0+cpu", "2.11.0+cpu", "2.12.1+cpu", "2.13.0+cpu")
TRITON = ("3.6.0", "3.7.1", "3.8.0", "3.9.0")
PAIRS = [*[(None, triton) for triton in TRITON], *[(torch, "3.6.0") for torch in TORCH]]
"""(torch, triton); None: the installed torch, whichever it is. Triton is a compiler of its own, torch only calls it."""

ROOT = Path(__file__).parents[1]
REPRESENTATIVE = ("test_far_apart.py", "test_bfloat16_correction.py", "test_repeats.py", "test_tuning.py")


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"torch {pair[0] or 'installed'}, triton {pair[1]}")
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a process in which the pair lies before what is installed."""
    torch, triton = request.param
    folder = tmp_path_factory.mktemp("pair")
    wanted = [f"triton=={triton}"] if version("triton") != triton else []
    if torch is not None and version("torch") != torch:
        wanted.append(f"torch=={torch}")
    for requirement in wanted:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), requirement]
        installed = subprocess.run(command, capture_output=True, text=True, check=False)
        if installed.returncode:
            pytest.skip(f"pip cannot install {requirement} here: {installed.stderr.strip().splitlines()[-1]}")
    return {**os.environ, "PYTHONPATH": str(folder), "TRITON_CACHE_DIR": str(folder / "cache")}


def run(environment: dict[str, str], *command: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={**environment, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def test_the_interpreted_kernels_are_attention(environment: dict[str, str]) -> None:
    tests = [f"tests/interpreted/{name}" for name in REPRESENTATIVE]
    run(environment, "pytest", "-q", "-p", "no:cacheprovider", *tests, TRITON_INTERPRET="1")


@pytest.mark.parametrize("chip", CHIPS)
def test_the_compiled_kernels_have_no_fault(environment: dict[str, str], chip: str) -> None:
    run(environment, "archbench", "kernels", "--static", "--chip", chip, "--quiet")
