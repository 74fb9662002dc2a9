"""The machine code of the table's launches, compiled for chips that are not here and never run.

To make today's code the baseline, and write the table of docs/explanation/kernels.md: python tests/test_kernel_code.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is there on Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from archbench.kernels.fused import catalogue
from archbench.kernels.fused.catalogue import HEAD_WIDTHS, persistent_launches, table_launches
from archbench.kernels.fused.configurations import FAMILIES, KERNELS
from archbench.kernels.fused.launches import forward_launch
from archbench.kernels.launch import Launch
from archbench_kernelcheck import baseline
from archbench_kernelcheck.checking import Result, check
from archbench_kernelcheck.chips import CHIPS, chip_named
from archbench_kernelcheck.compilation import compile_launch, pretended
from archbench_kernelcheck.figures import Figures, violations

BASELINE = Path(__file__).with_name("kernel_code_baseline.json")
PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "kernels.md"
START, END = "<!-- static figures: python tests/test_kernel_code.py -->\n", "<!-- end -->\n"

pytestmark = pytest.mark.machine_code


EVERY = 4
"""One in this many launches of a chip is compiled by default; the chips start at different ones."""


def table_results(chip: str, every: int = 1) -> list[Result]:
    with pretended(chip_named(chip)):
        jobs = [(chip_named(chip), launch) for launch in table_launches(chip)]
    return check(jobs[list(CHIPS).index(chip) % every :: every])


@pytest.fixture(scope="module", params=CHIPS)
def sample(request: pytest.FixtureRequest) -> Sequence[Result]:
    return table_results(request.param, EVERY)


@pytest.fixture(scope="module", params=CHIPS)
def table(request: pytest.FixtureRequest) -> Sequence[Result]:
    return table_results(request.param)


def assert_sound(results: Sequence[Result]) -> None:
    """No spill in a loop, no more shared memory than there is, tensor cores used, no 2-byte loads, no atomics."""
    wrong = {result.launch: violations(result) for result in results if violations(result)}
    assert not wrong
    half = [result for result in results if isinstance(result, Figures) and "delta" not in result.launch]
    assert all(result.half_precision_dots for result in half if "bfloat16" in result.launch)


def test_launches_are_sound_and_their_loops_are_those_of_the_baseline(sample: Sequence[Result]) -> None:
    assert_sound(sample)
    differences = baseline.differences(BASELINE, sample)
    assert not [difference for difference in differences if not difference.endswith("was not checked")]


@pytest.mark.slow
def test_every_launch_of_the_table_is_sound_and_that_of_the_baseline(table: Sequence[Result]) -> None:
    assert_sound(table)
    assert not baseline.differences(BASELINE, table)


@pytest.mark.parametrize("chip", ["sm_90", "sm_100"])
def test_persistent_kernels_are_sound_and_the_specialized_ones_are(chip: str) -> None:
    """Whether Triton divides the warps' work depends on what it finds in the kernel; if not, it says nothing."""
    with pretended(chip_named(chip)):
        results = check([(chip_named(chip), launch) for launch in persistent_launches(chip)])
    assert_sound(results)
    assert {result.launch for result in results if isinstance(result, Figures) and result.specialised} == {
        f"forward specialized bfloat16 D={D}{suffix}" for D in (64, 128) for suffix in ("", " windowed")
    }


def test_strides_that_are_a_multiple_of_8_elements_load_16_bytes_at_once() -> None:
    """Three heads of 40: row strides of 120 elements, no multiple of the 16 that Triton asks about."""
    with pretended(chip_named("sm_80")):

        def launch(heads: int, D: int) -> Launch:
            q, k, v, out = (
                torch.empty(2, 512, heads, D, dtype=torch.bfloat16, device="meta").transpose(1, 2) for _ in range(4)
            )
            lse = torch.empty(2, heads, 512, device="meta")
            return forward_launch(q, k, v, out, lse, window=None, scale=1.0, precision="ieee", chip="sm_80")

        aligned, odd = check([(chip_named("sm_80"), launch(3, 40)), (chip_named("sm_80"), launch(3, 41))])
    assert isinstance(aligned, Figures)
    assert isinstance(odd, Figures)
    assert aligned.narrow_loads == 0
    assert odd.narrow_loads > 0  # which cannot be helped, and shows that the count would see them


def test_one_compiled_kernel_serves_every_batch_and_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton makes a kernel of its own for a number that is 1 or a multiple of 16, unless it is told not to."""
    compiled = []
    for sizes in ({"B": 1, "T": 1100, "H": 8, "G": 8}, {"B": 16, "T": 4096, "H": 6, "G": 2}):
        for name, size in sizes.items():
            monkeypatch.setattr(catalogue, name, size)
        chip = chip_named("sm_80")
        with pretended(chip):
            jobs = table_launches(chip.name, (64,), (torch.bfloat16,))
            compiled.append({launch.name: compile_launch(launch, chip).code for launch in jobs})
    assert compiled[0] == compiled[1]


def test_the_page_shows_the_baseline() -> None:
    assert static_section() in PAGE.read_text(encoding="utf-8")


def test_the_baseline_is_complete() -> None:
    versions = json.loads(BASELINE.read_text(encoding="utf-8"))
    for version, chips in versions.items():
        assert set(chips) == set(CHIPS) == set(FAMILIES), version


def static_section() -> str:
    versions = json.loads(BASELINE.read_text(encoding="utf-8"))
    version = max(versions, key=lambda name: tuple(map(int, name.split("."))))
    widths = sorted(HEAD_WIDTHS[torch.bfloat16])
    lines = [
        f"Triton {version}, bfloat16, no window: instructions of a warp in an iteration of the shortest loop with",
        "tensor cores, and in brackets 32-bit registers a thread. No loop spills. Iterations are of different blocks,",
        "so that columns do not compare; before and after a change of the kernel do.",
        "",
        f"| chip | kernel | {' | '.join(f'D = {D}' for D in widths)} |",
        "|---|---|" + "---|" * len(widths),
    ]
    for chip in CHIPS:
        for kernel in KERNELS:
            rows = [versions[version][chip][f"{kernel} bfloat16 D={D}"] for D in widths]
            cells = [f"{min(row['loops'])} ({row['registers']})" for row in rows]
            lines.append(f"| {chip} | {kernel} | {' | '.join(cells)} |")
    return START + "\n".join(lines) + "\n" + END


if __name__ == "__main__":
    baseline.write(BASELINE, [result for chip in CHIPS for result in table_results(chip)])
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text[: text.index(START)] + static_section() + text[text.index(END) + len(END) :], encoding="utf-8")
