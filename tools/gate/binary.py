"""Resources of a compiled kernel: registers, memory and stack from Triton's cuobjdump, MMA instructions from PTX."""

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.compiler import CompiledKernel

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

# MMA of a warp, of four warps (sm_90), of tensor memory (sm_100). Each PTX instruction is one of the machine, never
# emulated; starting a disassembler would take longer than everything else here.
_MMA = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")


@dataclass(frozen=True)
class Usage:
    """Registers per thread, bytes of shared memory per block, bytes of stack per thread (spills included)."""

    registers: int
    shared: int
    stack: int
    tensor_core: int  # MMA instructions


def usage(kernel: CompiledKernel) -> Usage:
    """Return the resources of a compiled kernel; each kernel is read once."""
    return _usage(kernel.hash, kernel.metadata.shared, kernel.asm["cubin"], kernel.asm["ptx"])


@functools.lru_cache(None)
def _usage(hash_: str, shared: int, cubin: bytes, ptx: str) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOL), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", printed))
    if len(found) != 4:
        raise RuntimeError(f"unexpected output of {TOOL.name}:\n{printed[:2000]}")
    return Usage(
        registers=int(found["REG"]),
        shared=shared + int(found["SHARED"]),  # Triton's is dynamic; ptxas adds static shared memory
        stack=int(found["STACK"]) + int(found["LOCAL"]),
        tensor_core=len(_MMA.findall(ptx)),
    )
