"""The static check on published attention kernels: spills and resources of their machine code. Nothing runs.

    python benchmarks/static_rivals.py --tutorial triton/python/tutorials/06-fused-attention.py   # of a triton checkout
    python benchmarks/static_rivals.py --fla                             # pip install flash-linear-attention
    python benchmarks/static_rivals.py --flex --width 256 --chip sm_120  # FlexAttention of the installed torch

Launches are those the packages make for B = 4, H = 16, T = 4,096, causal, with their own tiles, warps and stages:

- Triton tutorial 06, ``_attn_bwd``, float16;
- flash-linear-attention, ``parallel_attn_bwd_kernel_dkv`` of ``fla/ops/attn/parallel.py``, bfloat16, with the tiles
  that ``parallel_attn_bwd`` takes on that chip;
- FlexAttention's backward, bfloat16, block masks of 128 × 128: inductor's template, with the tiles that inductor takes
  on that chip. Inductor cannot compile for a GPU that is not there, so the template's gaps are filled in here as it
  would fill them for ``q_idx >= kv_idx`` (torch 2.13).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch import Tensor

from archbench.kernels.launch import Launch
from archbench_kernelcheck import CHIPS, Chip, check, pretended, table

B, H, T = 4, 16, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tutorial", type=Path, metavar="FILE", help="Triton's tutorial 06")
    parser.add_argument("--fla", action="store_true", help="flash-linear-attention, as installed")
    parser.add_argument("--flex", action="store_true", help="FlexAttention, as installed with torch")
    parser.add_argument("--chip", action="append", choices=CHIPS, help="default: sm_80 and sm_90")
    parser.add_argument("--width", type=int, action="append", help="head width D; default: 128")
    options = parser.parse_args()
    jobs = []
    with tempfile.TemporaryDirectory() as folder:
        for chip in [CHIPS[name] for name in options.chip or ("sm_80", "sm_90")]:
            with posing(chip):
                for D in options.width or (128,):
                    if options.tutorial:
                        jobs.append((chip, tutorial_backward(module_at(options.tutorial), D)))
                    if options.fla:
                        jobs.append((chip, fla_backward(chip, D)))
                    if options.flex:
                        jobs.append((chip, flex_backward(Path(folder) / f"flex_{chip.name}_{D}.py", D)))
        Console(width=200, highlight=False).print(table(check(jobs)))


@contextmanager
def posing(chip: Chip) -> Iterator[None]:
    """Published code asks torch, too, which GPU there is, some of it while it is imported."""
    capability = (chip.arch // 10, chip.arch % 10) if isinstance(chip.arch, int) else (9, 4)
    with (
        pretended(chip),
        mock.patch("torch.cuda.get_device_capability", return_value=capability),
        mock.patch("torch.cuda.get_device_name", return_value=chip.product),
    ):
        yield


def module_at(path: Path) -> Any:
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            sys.exit(f"{path}: is no Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    return sys.modules[path.stem]


def tutorial_backward(module: Any, D: int) -> Launch:
    tensors = {name: half(D, dtype=torch.float16) for name in ("Q", "K", "V", "DO", "DQ", "DK", "DV")}
    strides = dict(zip(("stride_z", "stride_h", "stride_tok", "stride_d"), tensors["Q"].stride(), strict=True))
    tiles = {"BLOCK_M1": 32, "BLOCK_N1": 128, "BLOCK_M2": 128, "BLOCK_N2": 32, "BLK_SLICE_FACTOR": 2}
    rest = {"sm_scale": 0.5, "M": rows(), "D": rows(), "H": H, "N_CTX": T, "HEAD_DIM": D}
    return Launch(
        name=f"tutorial 06 backward D={D}",
        kernel=module._attn_bwd,
        grid=(T // 128, 1, B * H),
        arguments=tensors | strides | tiles | rest,
        options={"num_warps": 4, "num_stages": 5, "enable_fp_fusion": True},
    )


def fla_backward(chip: Chip, D: int) -> Launch:
    from fla.ops.attn import parallel

    if chip.shared_per_block >= 227 * 1024:
        BT, BS, warps = 128, 64, 8
    elif chip.shared_per_block >= 163 * 1024:
        BT, BS, warps = 128 if D <= 64 else 64, 32, 4
    else:
        BT, BS, warps = 64, 32, 2
    tensors = {name: half(D, heads_last=True) for name in ("q", "k", "v", "do", "dk", "dv")}
    absent = dict.fromkeys(("g_cumsum", "dg_cumsum", "cu_seqlens", "chunk_indices", "W"))
    sizes = {"T": T, "B": B, "H": H, "HQ": H, "G": 1, "K": D, "V": D, "BT": BT, "BS": BS, "BK": D, "BV": D}
    kernel = parallel.parallel_attn_bwd_kernel_dkv
    arguments = tensors | absent | sizes | {"lse": rows(), "delta": rows(), "scale": D**-0.5}
    return Launch(
        name=f"fla parallel dk/dv D={D}",
        kernel=kernel,
        grid=(T // BT, B * H),
        arguments={name: value for name, value in arguments.items() if name in kernel.fn.arg_names},  # W came in 0.5.2
        options={"num_warps": warps, "enable_fp_fusion": True},
    )


def flex_backward(path: Path, D: int) -> Launch:
    """Fills in inductor's template, writes it to ``path`` (Triton needs the source), and launches it."""
    from jinja2 import Environment, StrictUndefined
    from torch._inductor.kernel.flex.common import load_flex_template
    from torch._inductor.template_heuristics.triton import CUDAConfigHeuristic

    config = CUDAConfigHeuristic().get_flex_attn_bwd_configs(D, torch.bfloat16)[-1]
    tensors = {name: half(D) for name in ("Q", "K", "V", "DO", "DQ", "DV", "DK")}
    tensors |= {"LSE": rows(), "DELTA": rows()}
    for name in ("KV", "Q", "FULL_KV", "FULL_Q"):
        tensors[f"{name}_NUM_BLKS"] = torch.empty(1, 1, T // 128, dtype=torch.int32, device="meta")
        tensors[f"{name}_IDX"] = torch.empty(1, 1, T // 128, T // 128, dtype=torch.int32, device="meta")
    constants = {
        "PRESCALE_QK": False, "ROWS_GUARANTEED_SAFE": False, "BLOCKS_ARE_CONTIGUOUS": False, "WRITE_DQ": True,
        "IS_DIVISIBLE": True, "SAFE_HEAD_DIM": True, "HAS_FULL_BLOCKS": True, "USE_TMA": False,
        "SM_SCALE": D**-0.5, "GQA_SHARED_HEADS": 1, "FLOAT32_PRECISION": "'ieee'", "INDEX_DTYPE": "tl.int32",
        "QK_HEAD_DIM": D, "QK_HEAD_DIM_ROUNDED": D, "V_HEAD_DIM": D, "V_HEAD_DIM_ROUNDED": D,
        "BLOCK_M1": config.block_m1, "BLOCK_N1": config.block_n1,
        "BLOCK_M2": config.block_m2, "BLOCK_N2": config.block_n2,
        "SPARSE_Q_BLOCK_SIZE": 128, "SPARSE_KV_BLOCK_SIZE": 128,
    }  # fmt: skip
    arguments = ", ".join(f"arg_{name}" for name in tensors)
    defines = "\n".join(f"{name}: tl.constexpr = {value}" for name, value in constants.items())

    def def_kernel(*names: str) -> str:
        renames = "\n".join(f"{name} = arg_{name}" for name in names)
        body = f"{defines}\n{renames}".replace("\n", "\n    ")
        return f"import triton\nimport triton.language as tl\n\n@triton.jit\ndef flex_bwd({arguments}):\n    {body}"

    def stride(name: str, axis: int | None = None) -> str:
        strides = tensors[name].stride()
        return ", ".join(map(str, strides)) if axis is None else str(strides[axis])

    def modification(subgraph_number: int, output_name: str | None, **names: Any) -> str:
        score, joint, mask = names.get("score"), names.get("grad_score_mod"), f"{names.get('m')} >= {names.get('n')}"
        return "" if output_name is None else f"{output_name} = {(score, joint, mask)[subgraph_number]}"

    def store_output(indices: tuple[str, ...], value: str, mask: str, **unused: Any) -> str:
        place = " + ".join(f"{size} * {index}" for size, index in zip(tensors["DK"].stride(), indices, strict=True))
        return f"tl.store(arg_DK + {place}, {value}, {mask})"

    environment = Environment(undefined=StrictUndefined, autoescape=False)
    environment.filters["indent_except_first"] = lambda text, depth: text.replace("\n", "\n" + "    " * depth)
    template = environment.from_string(load_flex_template("flex_backwards") + load_flex_template("utilities"))
    source = template.render(
        def_kernel=def_kernel, gen_argdefs=lambda: arguments, gen_defines=lambda: defines, stride=stride,
        size=lambda name, axis: str(tensors[name].shape[axis]), modification=modification, store_output=store_output,
        **constants,
    )  # fmt: skip
    path.write_text(source, encoding="utf-8")
    return Launch(
        name=f"flex backward D={D}",
        kernel=module_at(path).flex_bwd,
        grid=(T // config.block_m2 + T // config.block_n1, B, H),
        arguments={f"arg_{name}": tensor for name, tensor in tensors.items()},
        options={"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True},
    )


def half(D: int, dtype: torch.dtype = torch.bfloat16, heads_last: bool = False) -> Tensor:
    return torch.empty((B, T, H, D) if heads_last else (B, H, T, D), dtype=dtype, device="meta")


def rows() -> Tensor:
    return torch.empty(B, H, T, device="meta")


if __name__ == "__main__":
    main()
