"""The static check finds each fault in the machine code of a kernel made to have it, and no other."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="triton is there on Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton

import staticcheck_kernels as kernels
from archbench.errors import DataError, UsageError
from archbench.kernels.launch import Launch
from archbench_kernelcheck import (
    CHIPS,
    Failure,
    check,
    compile_launch,
    pretended,
    rows,
    violations,
)
from archbench_kernelcheck.baseline import differences, triton_version, write

EXPECTED = {
    "clean": r"",
    "spills": r"\d+ spill instructions inside loops",
    "shared": r"\d+ bytes of shared memory, but the chip allows \d+",
    "narrow": r"\d+ global loads of one or two bytes",
    "wide": r"",
    "atomic": r"\d+ atomic instructions",
    "descriptor": r"",
}
CHIPS_BY_DEFAULT = ("sm_90", "gfx942")
chips = pytest.mark.parametrize("chip", [*CHIPS_BY_DEFAULT, pytest.param("sm_80", marks=pytest.mark.slow)])
FILE = Path(kernels.__file__)


@cache
def results(chip):
    """By launch; compiled once, in some seconds."""
    return {result.launch: result for result in check([(CHIPS[chip], launch) for launch in kernels.launches(chip)])}


@chips
def test_each_fault_is_found_and_nothing_else(chip):
    found = {launch: "; ".join(violations(result)) for launch, result in results(chip).items()}
    expected = {launch: EXPECTED[launch] for launch in found}
    assert len(found) >= 6
    assert all(re.fullmatch(expected[launch], found[launch]) for launch in found), found


def test_a_tensor_descriptor_is_compiled_as_one():
    launch = next(launch for launch in kernels.launches("sm_90") if launch.name == "descriptor")
    code = compile_launch(launch, CHIPS["sm_90"]).code
    assert "UTMALDG" in code
    assert "UTMASTG" in code
    assert results("sm_90")["descriptor"].tensor_instructions > 0


@chips
def test_flops_read_from_the_code_are_those_of_the_algorithm(chip):
    # two products of 128 × 32 × 64 per iteration, four warps
    flops = {loop.tensor_flops * 4 for loop in results(chip)["clean"].tensor_loops}
    assert flops == {2 * 2 * 128 * 32 * 64}
    exponentials = {loop.exponentials for loop in results(chip)["clean"].tensor_loops}
    assert exponentials == {128 * 32 // (4 * CHIPS[chip].warp)}


def test_registers_and_stack_are_those_the_assembler_reports():
    from triton.backends.nvidia.compiler import get_ptxas

    launch = next(launch for launch in kernels.launches("sm_90") if launch.name == "spills")
    with pretended(CHIPS["sm_90"]):
        kernel = launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)
    options = ("-v", "-lineinfo", "--regAllocOptLevel=2", "--gpu-name=sm_90a", "-o", os.devnull)
    source = next(path for name, path in kernel.metadata_group.items() if name.endswith(".ptx"))
    log = subprocess.run([get_ptxas(90).path, *options, source], capture_output=True, text=True, check=True).stderr
    result = results("sm_90")["spills"]
    assert f"{result.stack_bytes} bytes stack frame" in log
    assert f"Used {result.registers} registers" in log


def test_the_driver_that_was_there_comes_back_after_an_error():
    before = triton.runtime.driver._active
    with pretended(CHIPS["sm_90"]):
        assert triton.runtime.driver.active.get_current_target().arch == 90
    assert triton.runtime.driver._active is before
    refused = Launch("refused", kernels.refused, (1,), {"x": kernels.half(8), "BLOCK": 16}, kernels.FUSED)
    with pytest.raises(triton.CompilationError, match="the block is too small"):
        compile_launch(refused, CHIPS["sm_90"])
    assert triton.runtime.driver._active is before


def test_a_kernel_the_compiler_refuses_or_crashes_on_is_a_result_of_its_own():
    refused = Launch("refused", kernels.refused, (1,), {"x": kernels.half(8), "BLOCK": 16}, kernels.FUSED)
    # No source crashes the compiler reliably: this process ends as a crashed one would.
    crash = SimpleNamespace(warmup=lambda **arguments: os.kill(os.getpid(), signal.SIGKILL))
    clean = kernels.launches("sm_80")[4]
    sm_80 = CHIPS["sm_80"]
    first, second, third = check([(sm_80, refused), (sm_80, Launch("crashing", crash, (1,), {})), (sm_80, clean)])
    assert isinstance(first, Failure)
    assert "the block is too small" in first.cause
    assert second == Failure("sm_80", "crashing", "the compiler crashed (signal SIGKILL)")
    assert violations(second) == ["does not compile: the compiler crashed (signal SIGKILL)"]
    assert violations(third) == []


def test_an_autotuned_kernel_is_refused_because_nothing_can_be_tuned():
    tuned = triton.autotune([triton.Config({"BLOCK": 512}), triton.Config({"BLOCK": 1024})], key=[])(kernels.refused)
    with pytest.raises(UsageError, match="autotuned"):
        compile_launch(Launch("tuned", tuned, (1,), {"x": kernels.half(8)}), CHIPS["sm_80"])


def test_no_speed_is_claimed():
    made = rows(list(results("sm_90").values()))
    assert not [name for row in made for name in row if "predicted" in name or "per_second" in name]
    assert {name for row in made for name in row if "flops" in name} == {"tensor_flops"}


def test_the_baseline_holds_within_five_percent(tmp_path):
    path = tmp_path / "baseline.json"
    write(path, list(results("sm_90").values()))
    clean = results("sm_90")["clean"]
    others = [result for result in results("sm_90").values() if result is not clean]
    (loop, *rest) = clean.loops
    near = replace(loop, instructions=loop.instructions + int(loop.instructions * 0.05))
    far = replace(loop, instructions=loop.instructions + int(loop.instructions * 0.05) + 1)
    assert differences(path, list(results("sm_90").values())) == []
    assert differences(path, [*others, replace(clean, loops=(near, *rest))]) == []
    (difference,) = differences(path, [*others, replace(clean, loops=(far, *rest))])
    assert difference.startswith("sm_90, clean, loop 1:")
    assert differences(path, others) == ["sm_90, clean: in the baseline, and was not checked"]
    assert differences(path, [*others, clean, replace(clean, launch="new")]) == ["sm_90, new: not in the baseline"]


def test_another_triton_has_no_baseline_and_is_told_so(tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"3.8.0": {}}))
    (difference,) = differences(path, list(results("sm_90").values()))
    assert difference.startswith(f"there is no baseline for triton {triton_version()} in {path}, which has 3.8.0")
    write(path, list(results("sm_90").values()))
    assert set(json.loads(path.read_text())) == {"3.8.0", triton_version()}
    with pytest.raises(DataError, match="cannot be read as a baseline"):
        differences(tmp_path / "none.json", [])


def command(*arguments, **environment):
    line = [sys.executable, "-m", "archbench_kernelcheck", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.mark.slow
def test_the_command_checks_any_file_and_fails_where_something_is_wrong():
    bad = command(FILE, "--chip", "sm_80", "--only", "narrow")
    assert bad.returncode == 1
    assert "nothing was run" in bad.stdout
    assert "global loads of one or two bytes" in bad.stdout


@pytest.mark.slow
def test_the_command_prints_each_kernel_and_loop_as_a_line_of_json():
    good = command(FILE, "--chip", "sm_80", "--only", "wide", "--json")
    assert good.returncode == 0, good.stderr
    whole, *loops = map(json.loads, good.stdout.splitlines())
    assert whole["violations"] == []
    assert loops


@pytest.mark.slow
def test_the_interpreter_is_no_compiler():
    refused = command(FILE, "--chip", "sm_80", TRITON_INTERPRET="1")
    assert refused.returncode == 2
    assert "TRITON_INTERPRET" in refused.stderr
    assert "Traceback" not in refused.stderr
