"""Looking costs little: ``import archbench`` and ``archbench --help`` leave everything heavy alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "triton",
    "pandas",
    "numpy",
    "pyarrow",
    "pydantic",
    "tokenizers",
    "safetensors",
    "transformers",
    "datasets",
)

_HELP = """
import io, json, sys
from contextlib import redirect_stdout
from archbench.cli import main
sys.argv[0] = "archbench"
with redirect_stdout(io.StringIO()) as out:
    code = main(["--help"])
assert code == 0 and "generate" in out.getvalue(), out.getvalue()
print(json.dumps(sorted(sys.modules)))
"""
_IMPORT = "import json, sys, archbench; dir(archbench); print(json.dumps(sorted(sys.modules)))"
_ATTENTION = """
import json, sys, torch
from archbench.kernels import causal_attention, why_not
causal_attention(*torch.zeros(3, 1, 2, 4, 16, requires_grad=True)).sum().backward()
why_not("triton", "cpu", torch.float32, 16), why_not("triton", "cuda", torch.float32, 16)
print(json.dumps(sorted(sys.modules)))
"""
_REGISTRY = "import json, sys, archbench; archbench.available(); print(json.dumps(sorted(sys.modules)))"


def modules_after(code: str, *, whole: bool = False) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    names = json.loads(done.stdout)
    return set(names) if whole else {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("code", [_IMPORT, _HELP], ids=["import archbench", "archbench --help"])
def test_nothing_heavy_is_imported(code: str) -> None:
    assert modules_after(code) & set(HEAVY) == set()


def test_finding_plugins_imports_none_of_them_and_no_torch() -> None:
    assert modules_after(_REGISTRY) & {"torch", "triton", "pandas", "archbench_plugins"} == set()


def test_attention_on_a_cpu_loads_no_triton_and_no_compiler() -> None:
    """Where Triton is installed: elsewhere this claims nothing of it."""
    assert "torch._dynamo" not in modules_after(_ATTENTION, whole=True)
    assert "triton" not in modules_after(_ATTENTION)


def test_help_answers_in_under_0_4_seconds_of_cpu_time() -> None:
    """CPU time of the child, user and system: the least of three, so that a busy machine does not decide."""
    script = Path(sys.executable).with_name("archbench")
    times = []
    for _ in range(3):
        child = subprocess.Popen([script, "--help"], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        times.append(used.ru_utime + used.ru_stime)
    assert min(times) < 0.4, times
