"""Which attention runs on a GPU: what archbench chose, and never torch's choice or an accident.

Torch asks for cuDNN's version once in a process, so each version has a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("version", "tests"),
    [
        pytest.param("91900", "not distrusted", id="9.19, which torch prefers to all others"),
        pytest.param("91400", "distrusted", id="9.14, which it does not"),
    ],
)
def test_the_choice_beside_cudnn(version: str, tests: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", "-k", tests]
    ran = subprocess.run(
        [*command, str(Path(__file__).with_name("attention_choices.py"))],
        env={**os.environ, "FAKE_CUDNN": version},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
