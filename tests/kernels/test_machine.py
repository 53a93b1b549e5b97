"""The emulator of sm_90 machine code: instructions, control flow, and whole kernels against the shim."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperseg import ops
from hyperseg.ops.backends import native
from tools.machine import count, recording
from tools.machine.counting import sample
from tools.machine.elf import constants
from tools.machine.flow import Machine
from tools.machine.library import Library, library
from tools.machine.loops import loops
from tools.machine.memory import Buffers
from tools.machine.sass import UnknownInstruction, parse, tool
from tools.machine.state import Threads

ROOT = Path(__file__).resolve().parents[2]
SHIM, EXTENSION = ROOT / "build/shim/hyperseg/_C.abi3.so", ROOT / "hyperseg/_C.abi3.so"
OUT = 1 << 33  # address of an output


def program(*lines: str) -> str:
    return "\n".join(f"/*{16 * n:04x}*/ {line} ;" for n, line in enumerate(lines))


def run(*lines: str, threads: int = 32, parameters: bytes = b"", blocks: int = 1) -> np.ndarray:
    """Run a program that leaves a result in R0, with R1 the thread's index; return R0 by thread."""
    out = np.zeros(threads * blocks, np.uint32)
    text = program(
        "S2R R1, SR_TID.X",
        "S2R R9, SR_CTAID.X",
        *lines,
        f"IMAD R9, R9, {threads:#x}, R1",
        "IMAD.WIDE.U32 R2, R9, 0x4, RZ",
        "IADD3 R3, R3, 0x2, RZ",
        "STG.E desc[UR4][R2.64], R0",
        "EXIT",
    )
    count(text, (blocks, 1, 1), threads, 1024, parameters, Buffers({OUT: out}), most_blocks=blocks)
    return out


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["IADD3 R0, R1, -0x3, RZ"], lambda t: t - 3),
        (["IADD3 R4, P0, R1, -0x1, RZ", "IADD3.X R0, RZ, RZ, RZ, P0, !PT"], lambda t: t > 0),  # carry, as of 64 bits
        (["IADD3 R4, P0, RZ, -R1, RZ", "IADD3.X R0, RZ, ~RZ, RZ, P0, !PT"], lambda t: 0 - (t > 0)),
        (["IMAD.HI.U32 R0, R1, 0x55555556, RZ"], lambda t: t // 3),
        (["IMAD.WIDE R4, R1, -0x1, RZ", "MOV R0, R5"], lambda t: 0 - (t > 0)),
        (["LEA R0, R1, 0x10, 0x2"], lambda t: 4 * t + 16),
        (["LEA.HI R0, R1, R1, RZ, 0x1e"], lambda t: t // 4 + t),
        (["VIADD R4, R1, 0xfffffff0", "LEA.HI.SX32 R0, R4, R4, 0x1f"], lambda t: (t - 16 >> 1) + t - 16),
        (["VIADD R4, R1, 0xfffffff0", "SHF.R.S32.HI R0, RZ, 0x2, R4"], lambda t: t - 16 >> 2),
        (["SHF.L.U64.HI R0, R1, 0x1e, R1"], lambda t: (t << 30) + (t >> 2)),
        (["LOP3.LUT R0, R1, 0x6, RZ, 0x3c, !PT"], lambda t: t ^ 6),
        (["LOP3.LUT R0, R1, 0x5, R1, 0xca, !PT"], lambda t: (t & 5) | (~t & t)),
        (["PRMT R0, R1, 0x0123, RZ"], lambda t: t << 24),
        (["ISETP.GT.U32.AND P0, PT, R1, 0x7, PT", "SEL R0, R1, 0x9, !P0"], lambda t: np.where(t > 7, 9, t)),
        (["VIADDMNMX R0, R1, 0xfffffffc, RZ, !PT"], lambda t: np.maximum(t - 4, 0)),
        (["HFMA2.MMA R4, -RZ, RZ, 0, 1.1920928955078125e-07", "IADD3 R0, R1, R4, RZ"], lambda t: t + 2),
        (["SHFL.BFLY PT, R0, R1, 0x10, 0x1f"], lambda t: t ^ 16),
        (["SHFL.IDX PT, R0, R1, RZ, 0x1f"], lambda t: 0 * t),
        (["IADD3 R4, -R1, RZ, RZ", "R2UR UR4, R4", "IADD3 R0, R1, UR4, RZ"], lambda t: t),
        (["P2R R4, PR, RZ, 0x1", "ISETP.EQ.AND P0, PT, R4, 0x0, PT", "SEL R0, R1, RZ, P0"], lambda t: t),
    ],
)
def test_integer_instructions(lines, expected):
    threads = np.arange(32, dtype=np.int64)
    assert np.array_equal(run(*lines), (np.asarray(expected(threads), np.int64) & 0xFFFFFFFF).astype(np.uint32))


def test_division_by_reciprocal():
    """Unsigned division as the compiler writes it."""
    division = [
        "I2F.U32.RP R4, 0x7",
        "MUFU.RCP R4, R4",
        "IADD3 R6, R4, 0xffffffe, RZ",
        "F2I.FTZ.U32.TRUNC.NTZ R7, R6",
        "IMAD.MOV.U32 R6, RZ, RZ, RZ",
        "IMAD.MOV R5, RZ, RZ, -R7",
        "IMAD R5, R5, 0x7, RZ",
        "IMAD.HI.U32 R7, R7, R5, R6",
        "IMAD R8, R1, 0x1234567, RZ",
        "IMAD.HI.U32 R7, R7, R8, RZ",
        "IMAD.MOV R5, RZ, RZ, -R7",
        "IMAD R5, R5, 0x7, R8",
        "ISETP.GE.U32.AND P0, PT, R5, 0x7, PT",
        "@P0 IADD3 R5, R5, -0x7, RZ",
        "@P0 IADD3 R7, R7, 0x1, RZ",
        "ISETP.GE.U32.AND P1, PT, R5, 0x7, PT",
        "@P1 IADD3 R7, R7, 0x1, RZ",
        "MOV R0, R7",
    ]
    assert np.array_equal(run(*division), np.arange(32, dtype=np.uint32) * np.uint32(0x1234567) // 7)


def test_float_instructions():
    values = run("I2FP.F32.S32 R4, R1", "FFMA R4, R4, 0.5, -R4", "FMNMX R4, R4, -8, !PT", "FADD R0, |R4|, 1")
    assert np.array_equal(values.view(np.float32), np.minimum(np.arange(32) / 2, 8) + 1)


# R0 = number of rounds: threads leave the loop after R1 % 4 + 1 rounds, and meet at BSYNC.
LOOP = [
    "LOP3.LUT R4, R1, 0x3, RZ, 0xc0, !PT",  # index 0 of the loop's own lines
    "MOV R0, RZ",
    "BSSY B0, {after:#x}",
    "IADD3 R0, R0, 0x1, RZ",
    "ISETP.LE.U32.AND P0, PT, R0, R4, PT",
    "@P0 BRA {body:#x}",
    "BSYNC B0",
    "IADD3 R0, R0, 0x64, RZ",
]


def loop_lines(begin: int) -> list[str]:
    return [line.format(body=16 * (begin + 3), after=16 * (begin + 7)) for line in LOOP]


def test_a_matrix_is_transposed():
    """A lane gives two adjacent values of a row of an 8x8 matrix, and gets two of a column."""
    found = run("IMAD R4, R1, 0x10001, RZ", "IADD3 R4, R4, 0x640000, RZ", "MOVM.16.MT88 R0, R4")
    lanes = np.arange(32)
    matrix = np.stack([lanes, lanes + 100], 1).reshape(8, 8)
    pairs = matrix.T.reshape(32, 2)
    assert (found == pairs[:, 0] + (pairs[:, 1] << 16)).all()


def test_divergent_threads_meet():
    text = program(*["S2R R1, SR_TID.X", *loop_lines(1), "EXIT"])
    counts = count(text, (5, 1, 1), 64, 0, b"")
    by_name = {str(i): n for i, n in zip(counts.code, counts.by_instruction, strict=True)}
    issued = {key[8:].split()[0]: n for key, n in by_name.items()}
    assert issued["BSSY"] == 10  # warps
    assert [n for key, n in by_name.items() if "R0, R0, 0x1," in key] == [40]  # four rounds
    assert [n for key, n in by_name.items() if "0x64" in key] == [10]  # together again
    (loop,) = loops(counts.code)
    assert (loop.first, loop.last, loop.divides) == (4, 6, False)
    assert np.array_equal(run(*loop_lines(2)), np.arange(32) % 4 + 101)


def test_barriers_order_shared_memory():
    """Each thread writes, waits for its block, and reads what the last thread wrote."""
    lines = ["IMAD.SHL.U32 R4, R1, 0x4, RZ", "STS [R4+0x400], R1", "BAR.SYNC.DEFER_BLOCKING 0x0", "LDS R0, [RZ+0x5fc]"]
    assert np.array_equal(run(*lines, threads=128, blocks=3), np.full(384, 127))


@pytest.mark.parametrize(("stride", "passes"), [(4, 1), (8, 2), (128, 32), (0, 1), (36, 1)])
def test_bank_conflicts(stride: int, passes: int):
    text = program("S2R R1, SR_TID.X", f"IMAD R4, R1, {stride:#x}, RZ", "LDS R0, [R4+0x400]", "EXIT")
    assert count(text, (1, 1, 1), 32, 4096, b"").shared_wavefronts == passes


def test_bytes_of_memory():
    """Each of 4 blocks of 64 threads reads 4 bytes per thread from the first pointer; all write the same 4 bytes."""
    text = program(
        "S2R R1, SR_TID.X",
        "S2R R4, SR_CTAID.X",
        "IMAD R4, R4, 0x40, R1",
        "LDC.64 R6, c[0x0][0x210]",
        "IMAD.WIDE.U32 R6, R4, 0x4, R6",
        "LDG.E R0, desc[UR4][R6.64]",
        "LDC.64 R8, c[0x0][0x218]",
        "STG.E desc[UR4][R8.64], R0",
        "EXIT",
    )
    counts = count(text, (4, 1, 1), 64, 0, struct.pack("<2Q", OUT, 2 * OUT))
    assert counts.read == {0: 1024}
    assert counts.written == {8: 32}
    assert counts.global_sectors == 4 * 8 + 4 * 2
    assert counts.l2_bytes == 1024 + 4 * 32


def test_an_unknown_instruction_is_named():
    with pytest.raises(UnknownInstruction, match="FROBNICATE"):
        count(program("FROBNICATE.X R0, R1", "EXIT"), (1, 1, 1), 32, 0, b"")


def test_a_wait_for_nobody_ends():
    lines = ["S2R R1, SR_TID.X", "ISETP.NE.AND P0, PT, R1, RZ, PT", "@P0 BRA 0x30", "BRA 0x30"]
    with pytest.raises(RuntimeError, match="steps"):
        Machine(parse(program(*lines)), Threads(1, (32, 1, 1), (1, 1, 1), np.array([0])), 0, b"", limit=1000).run()


def test_a_waiting_warp_takes_the_latency_of_memory():
    """The control code: LDG releases scoreboard 0, FADD waits for it."""
    load, wait = 1 << 41 | 7 << 49, 1 << 41 | 7 << 46 | 7 << 49 | 1 << 52
    text = "\n".join(
        f"/*{16 * n:04x}*/ {line} ; /* 0x{0:016x} */ /* 0x{hi:016x} */"
        for n, (line, hi) in enumerate([("LDG.E R0, desc[UR4][R2.64]", load), ("FADD R0, R0, 1", wait), ("EXIT", wait)])
    )
    assert parse(text)[1].control.waits == 1
    counts = count(text, (1, 1, 1), 32, 0, b"")
    assert counts.cycles_l2 == 263 + 2
    assert counts.cycles_dram > counts.cycles_l2


def test_a_switch_jumps_through_its_table():
    """Threads with odd and even indices go to different cases; the table has their addresses."""
    lines = [
        "S2R R1, SR_TID.X",
        "LOP3.LUT R2, R1, 0x1, RZ, 0xc0, !PT",
        "IMAD.SHL.U32 R2, R2, 0x4, RZ",
        "BSSY B0, 0x90",
        "LDC R3, c[0x2][R2]",
        "BRX R3 -0x60",
        "NOP",  # even
        "BRA 0x80",
        "BSYNC B0",  # odd
        "EXIT",
    ]
    counts = count(program(*lines), (1, 1, 1), 32, 0, b"", constants={2: struct.pack("<2I", 0x60, 0x80)})
    assert counts.by_instruction.tolist() == [1] * 10
    trace = [place for begin, end in counts.traces[0][0] for place in range(begin, end)]
    assert trace == list(range(10))  # both cases, then together


def test_samples_spread_over_the_grid():
    assert sample(10).tolist() == list(range(10))
    chosen = sample(100_000)
    assert chosen[0] == 0
    assert chosen[-1] == 99_999
    assert np.diff(chosen).max() < 2.7 * 100_000 / len(chosen)


# Whole kernels: in a process with the shim, which runs the same launch.

emulated = pytest.mark.skipif(
    not native.emulated(), reason="runs in the process that test_kernels_match_the_shim starts"
)


@pytest.fixture(scope="module")
def code() -> Library:
    try:
        return library(str(EXTENSION))
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no sm_90 machine code: {error}")


@pytest.mark.skipif(not SHIM.is_file(), reason="the shim is not built; run `make shim`")
@pytest.mark.skipif(tool() is None, reason="there is no cuobjdump: install a CUDA toolkit or Triton")
def test_a_library_without_cuda_kernels_is_refused():
    with pytest.raises(RuntimeError, match=r"no machine code for sm_90; build it: TORCH_CUDA_ARCH_LIST=9\.0 python"):
        Library(SHIM)


@pytest.mark.skipif(not SHIM.is_file(), reason="the shim is not built; run `make shim`")
@pytest.mark.skipif(native.emulated(), reason="this process already runs the shim")
def test_kernels_match_the_shim(code):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "emulated", __file__]
    environment = os.environ | {"HYPERSEG_EXTENSION": str(SHIM)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def upsample_argmax(dtype):
    x = random(2, 5, 9, 17, dtype=dtype)
    return [x], lambda: ops.upsample_argmax(x, (18, 34))


def stem(dtype):
    frames = torch.randint(0, 256, (1, 21, 77, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tensors = [frames, torch.full((3,), 0.01), torch.full((3,), -1.0), random(16, 3, 3, 3, dtype=dtype)]
    tensors.append(random(16, dtype=dtype))
    return tensors, lambda: ops.stem(*tensors, size=(24, 80), stride=2, padding=(0, 1, 0, 1))


def generate_weights(dtype):
    signal, generators = random(1, 12, 4, 5, dtype=dtype), [random(40, 3, dtype=dtype), random(24, 6, dtype=dtype)]
    return [signal, *generators], lambda: ops.generate_weights(
        signal, generators, offsets=[0, 0], groups=[4, 2], sizes=[40, 22]
    )


def inverted_residual(dtype):
    x, weights = random(1, 6, 8, 16, dtype=dtype), random(1, 2, 4, 9 * 8 + 8 * 6 + 8 * 5, dtype=dtype)
    bias = random(8 + 8 + 5, dtype=dtype)
    return [x, weights, bias], lambda: ops.patch_inverted_residual(
        x, weights, bias, hidden=8, out_channels=5, halo="own"
    )


@emulated
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("case", [upsample_argmax, stem, generate_weights, inverted_residual])
def test_emulated_kernel(code, case, dtype):
    """Every byte of the output is stored once, nothing else is; without tensor cores the values are the shim's."""
    inputs, call = case(dtype)
    with ops.use_backend("cuda"), recording.recording(run=True) as launches:
        expected = call()
    (launch,) = launches
    out = np.full(expected.nbytes, 0xEE, np.uint8)
    arrays = {t.data_ptr(): t.untyped_storage() for t in inputs}
    memory = {address: np.frombuffer(bytes(s), np.uint8) for address, s in arrays.items()}
    memory[expected.data_ptr()] = out
    stored = Stores(memory)
    kernel = code.resources(launch)
    banks = constants(kernel.cubin, kernel.mangled)
    count(code.text(launch), launch.grid, launch.threads, launch.shared_bytes, launch.parameters, stored, 10**9, banks)
    covered = np.bincount(np.concatenate(stored.places) - expected.data_ptr(), minlength=expected.nbytes)
    assert np.array_equal(covered, np.ones(expected.nbytes))
    if dtype == torch.float32:
        found = torch.from_numpy(out).view(expected.dtype)
        torch.testing.assert_close(found, expected.as_strided((expected.numel(),), (1,)), rtol=1e-5, atol=1e-5)


class Stores(Buffers):
    """Memory that notes the addresses of the bytes stored."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self.places = []

    def store(self, addresses, values):
        super().store(addresses, values)
        self.places.append((addresses[:, None] + np.arange(values.shape[1])).reshape(-1))
