"""Reading machine code: what is a loop, what is in it, what an instruction adds. The excerpts are real ones, cut."""

import pytest

from archbench_kernelcheck import CHIPS, resident_blocks
from archbench_kernelcheck.amdgcn import parse as parse_amdgcn
from archbench_kernelcheck.program import Kind
from archbench_kernelcheck.sass import parse


def sass(*lines, warps=4):
    """Lines without addresses, as ``nvdisasm -c`` would print them: a label stands at the margin."""
    return parse("\n".join(line if line.endswith(":") else f" /*0000*/  {line} ;" for line in lines), warps)


def kinds(program, kind):
    return [instruction.opcode for instruction in program.looped() if instruction.kind is kind]


def test_only_what_a_loop_repeats_is_inside_it():
    program = sass(
        "STL [R1], R2",
        ".L_x_0:",
        "LDL R3, [R1]",
        "FADD R3, R3, R4",
        "@!P0 BRA `(.L_x_0)",
        "LDL.64 R6, [R1+0x8]",
        "EXIT",
        ".L_x_1:",
        "BRA `(.L_x_1)",  # padding after the end, which no path reaches
    )
    assert kinds(program, Kind.SPILL) == ["LDL"]
    assert [len(program.body(loop)) for loop in program.innermost()] == [3]


def test_the_inner_of_two_loops_is_the_innermost_and_the_outer_counts_as_a_loop():
    program = sass(
        ".L_x_0:",
        "MOV R0, RZ",
        ".L_x_1:",
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",
        "@P0 BRA `(.L_x_1)",
        "LDL R3, [R1]",
        "@P1 BRA `(.L_x_0)",
        "EXIT",
    )
    (inner,) = program.innermost()
    assert [instruction.opcode for instruction in program.body(inner)] == ["HMMA.16816.F32.BF16", "BRA"]
    assert kinds(program, Kind.SPILL) == ["LDL"]


def test_a_barrier_wait_behind_the_end_is_no_loop_of_its_own():
    program = sass(
        ".L_x_0:",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R5",
        "@!P0 BRA `(.L_x_1)",
        ".L_x_2:",
        "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24",
        "@P1 BRA `(.L_x_0)",
        "EXIT",
        ".L_x_1:",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R5",
        "@!P0 BRA `(.L_x_1)",
        "BRA `(.L_x_2)",
    )
    (loop,) = program.innermost()
    opcodes = [instruction.opcode.split(".")[0] for instruction in program.body(loop)]
    assert opcodes == ["SYNCS", "BRA", "HGMMA", "BRA", "BRA"]  # without the wait's own two


def test_a_call_that_leaves_a_loop_and_a_reconvergence_are_followed():
    program = sass(
        ".L_x_3:",
        "BSSY B0, `(.L_x_4)",
        "@P2 BRA `(.L_x_5)",
        "FADD R0, R0, R1",
        "BSYNC B0",
        ".L_x_5:",
        "FMUL R0, R0, R2",
        ".L_x_4:",
        "@P0 CALL.REL.NOINC `(.L_x_6)",
        "BRA `(.L_x_3)",
        ".L_x_6:",
        "STL [R1], R0",
        "EXIT",
    )
    (loop,) = program.innermost()
    assert len(program.body(loop)) == 7
    assert kinds(program, Kind.SPILL) == []


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        ("HMMA.16816.F32.BF16 R144, R64, R152, RZ", 2 * 16 * 8 * 16),
        ("HMMA.1688.F32.TF32 R4, R8, R12, R4", 2 * 16 * 8 * 8),
        ("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0", 2 * 64 * 128 * 16 / 4),
        ("UTCHMMA gdesc[UR4], gdesc[UR12], tmem[UR11], tmem[UR20], idesc[UR21], !UPT", 2 * 128 * 64 * 16 / 4),
        ("UTCHMMA gdesc[UR4], gdesc[UR12], tmem[UR11], tmem[UR20], idesc[UR9], !UPT", 0),  # no constant: not known
    ],
)
def test_flops_of_a_tensor_core_instruction_per_warp(line, flops):
    program = sass("UMOV UR21, 0x8100490", line, "EXIT")
    (tensor,) = [instruction for instruction in program.instructions() if instruction.kind is Kind.TENSOR]
    assert tensor.flops == flops


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("LDG.E.U16 R5, [R2.64]", Kind.NARROW_LOAD),
        ("@P0 LDG.E.U16.CONSTANT R5, desc[UR6][R2.64]", Kind.NARROW_LOAD),
        ("LDG.E.128 R4, [R2.64]", Kind.OTHER),
        ("LDG.E R4, [R2.64]", Kind.OTHER),
        ("LDS.U16 R4, [R2]", Kind.OTHER),
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R5", Kind.ATOMIC),
        ("ATOMG.E.ADD.STRONG.GPU PT, R5, [R2.64], R5", Kind.ATOMIC),
        ("ATOMG.E.EXCH.STRONG.GPU PT, RZ, [R4], R9", Kind.OTHER),
        ("MUFU.EX2 R5, R5", Kind.EXP),
    ],
)
def test_what_a_sass_instruction_counts_as(line, kind):
    assert sass(line, "EXIT").instructions()[0].kind is kind


AMD = """
k:                                      ; @k
.LBB0_0:
	s_branch .LBB0_2
.LBB0_2:                                ; =>This Inner Loop Header: Depth=1
	v_mfma_f32_32x32x8_bf16 v[32:47], v[56:57], v[136:137], 0
	scratch_load_dwordx4 v[0:3], off, s32   ; 16-byte Folded Reload
	v_exp_f32_e32 v1, v1
	global_load_ushort v2, v3, s[0:1]
	s_cbranch_scc1 .LBB0_2
; %bb.3:
	global_atomic_add_f32 v0, v1, s[2:3]
	s_endpgm
.Lfunc_end0:
	scratch_store_dword off, v0, s32
"""


def test_amd_assembly_is_read_alike():
    program = parse_amdgcn(AMD)
    (loop,) = program.innermost()
    body = program.body(loop)
    assert [instruction.kind for instruction in body] == [
        Kind.TENSOR, Kind.SPILL, Kind.EXP, Kind.NARROW_LOAD, Kind.SCALAR,
    ]  # fmt: skip
    assert body[0].flops == 2 * 32 * 32 * 8
    assert [instruction.opcode for instruction in program.instructions() if instruction.kind is Kind.ATOMIC] == [
        "global_atomic_add_f32"
    ]


@pytest.mark.parametrize(
    ("chip", "registers", "warps", "shared", "blocks"),
    [
        # CUDA occupancy calculator, and LLVM's "; Occupancy: 3" for 148 registers on gfx942
        ("sm_90", 168, 4, 0, 3),
        ("sm_90", 255, 8, 64 * 1024, 1),
        ("sm_80", 32, 4, 40 * 1024, 4),
        ("sm_86", 64, 8, 0, 4),
        ("gfx942", 148, 4, 0, 3),
        ("sm_90", 32, 4, 228 * 1024, 0),
    ],
)
def test_blocks_resident_on_a_multiprocessor(chip, registers, warps, shared, blocks):
    assert resident_blocks(CHIPS[chip], registers, warps, shared) == blocks
