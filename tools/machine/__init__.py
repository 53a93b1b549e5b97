"""Execute sm_90 machine code on the CPU, to count the instructions that a launch executes.

    from tools.machine import count

    counts = count(text, grid=(128, 1, 1), block=256, shared_bytes=8192, parameters=raw)
    counts.instructions, counts.mufu, counts.hmma, counts.divisions, counts.shared_wavefronts, counts.global_sectors

``text`` is the output of ``cuobjdump -sass`` for one function (:func:`tools.machine.sass.functions` splits a dump;
:func:`tools.machine.sass.disassemble` makes one of a cubin file), ``parameters`` the bytes of the parameter buffer, as
``cuLaunchKernel`` would lay them out: each argument at its own alignment. Pointers need not be valid: loads from global
memory return zeros, unless ``memory`` is given (:class:`tools.machine.memory.Buffers`), and stores are only counted.

A sample of the grid's blocks is executed, and :class:`tools.machine.counting.Counts` says what the whole grid executes.
Integer, predicate, float32 and control instructions are exact, with the convergence barriers of the hardware; results
of tensor cores and packed 16-bit arithmetic are zeros. An instruction without a definition raises
:class:`tools.machine.sass.UnknownInstruction`.
"""

from tools.machine.counting import Counts, count

__all__ = ["Counts", "count"]
