"""What a compiled kernel needs of a GPU, read from its machine code by the tools that come with Triton."""

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.compiler import CompiledKernel

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

# Tensor cores: HMMA and IMMA of a warp, HGMMA of four (sm_90), UTCHMMA of tensor memory (sm_100).
_MMA = re.compile(r"\s(?:[HIQOBD]G?MMA|UTC[A-Z]*MMA)\b")
_SPILL = re.compile(r"\s(?:LDL|STL)\b")


@dataclass(frozen=True)
class Usage:
    """``registers`` a thread; ``shared`` bytes a block; ``stack`` bytes a thread; instructions of the other two."""

    registers: int
    shared: int
    stack: int
    spills: int
    tensor_core: int


def usage(kernel: CompiledKernel) -> Usage:
    return _usage(kernel.hash, kernel.metadata.shared, kernel.asm["cubin"])


@functools.lru_cache(None)
def _usage(hash_: str, shared: int, cubin: bytes) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run(
            [TOOL, "--dump-resource-usage", "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", printed))
    code = [line for line in printed.splitlines() if line.lstrip().startswith("/*")]
    if not code or len(found) != 4:
        raise RuntimeError(f"unexpected output of {TOOL.name}:\n{printed[:2000]}")
    return Usage(
        registers=int(found["REG"]),
        shared=shared + int(found["SHARED"]),  # Triton's is dynamic, ptxas adds its own
        stack=int(found["STACK"]) + int(found["LOCAL"]),
        spills=sum(bool(_SPILL.search(line)) for line in code),
        tensor_core=sum(bool(_MMA.search(line)) for line in code),
    )
