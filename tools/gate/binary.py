"""What a compiled kernel needs of a GPU: its resources by the tool that comes with Triton, its products by its PTX."""

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.compiler import CompiledKernel

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

# Of a warp, of four (sm_90), of tensor memory (sm_100). Each is an instruction of the machine and never emulated, and a
# disassembler takes longer to start than all else here.
_MMA = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")


@dataclass(frozen=True)
class Usage:
    """``registers`` a thread; ``shared`` bytes a block; ``stack`` bytes a thread, spilled registers among them."""

    registers: int
    shared: int
    stack: int
    tensor_core: int  # instructions


def usage(kernel: CompiledKernel) -> Usage:
    return _usage(kernel.hash, kernel.metadata.shared, kernel.asm["cubin"], kernel.asm["ptx"])


@functools.lru_cache(None)
def _usage(hash_: str, shared: int, cubin: bytes, ptx: str) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOL, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", printed))
    if len(found) != 4:
        raise RuntimeError(f"unexpected output of {TOOL.name}:\n{printed[:2000]}")
    return Usage(
        registers=int(found["REG"]),
        shared=shared + int(found["SHARED"]),  # Triton's is dynamic, ptxas adds its own
        stack=int(found["STACK"]) + int(found["LOCAL"]),
        tensor_core=len(_MMA.findall(ptx)),
    )
