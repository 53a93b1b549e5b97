"""Kernels verified where they run: each kernel that ``auto`` takes is compared with the reference on this machine.

A kernel is an operator of a backend, tested on the hardware that its authors had. The first time an engine or a
training run meets a device, ``verify_kernels`` runs a few small cases (``cases.py``) of each kernel in a child process,
in the dtypes that will run, and compares the outputs with the reference in float64 on the CPU. ``auto`` passes over a
kernel that is wrong, raises an error, crashes or hangs, with one warning per process. So a kernel that is faulty on
this hardware costs speed: it gives no wrong result, and does not end the user's process.

- *A verdict depends on* the device, its driver or instruction sets, torch, Triton, the kernels' files and the cases
  (``fingerprint`` in ``hyperseg/ops/backends/verdicts.py``). If any of these changes, kernels are verified again.
- *If the first choice fails*, the next backend in the order is verified for that operator.
- *Time*: one or two seconds of checks on a CPU, besides the import of torch; on a GPU at most 15 s besides the start.
  Kernels that are not reached by then are passed over in this process, and verified by the next one. Afterwards there
  is no cost per call: ``auto`` reads a table.
- *Lack of memory*, or a process that is killed from outside, says nothing about a kernel and is not stored.
- *Where no child process can be started* or use the device, kernels are used unverified, with a warning.
- *An operator that is called without an engine* heeds the stored verdicts, and starts no verification.
- *A backend that the user names* runs regardless.

``hyperseg info --verify`` runs it again and prints a table. HYPERSEG_VERIFY=0 turns it off, HYPERSEG_CACHE moves its
files.
"""

from hyperseg.ops.backends.verdicts import KernelWarning, Verdict
from hyperseg.verify.processes import Unavailable
from hyperseg.verify.verification import verify_again, verify_kernels

__all__ = ["KernelWarning", "Unavailable", "Verdict", "verify_again", "verify_kernels"]
