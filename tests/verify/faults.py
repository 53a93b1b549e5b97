"""A child process of a verification in which kernels are faulty: those that the variable KERNEL_FAULTS names.

It is JSON: ``{"operator of backend": fault}``. Further keys: ``"fake"``: install the fake CUDA device, with backends
cuda and triton that run the reference; ``"order"``: the backends for a device type, as ``{"cpu": [...]}``; ``"loads"``:
report when a backend is loaded.
"""

import dataclasses
import faulthandler
import json
import os
import time

import torch

from hyperseg.ops.backends import BACKENDS, Backend, dispatch

CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1])['path']; from tests.verify.faults import main; main()"


def wrong(function):
    """Return the result of the function, with a first output that is changed: labels are 0, values one more."""

    def run(*args):
        result = function(*args)
        first = result if not isinstance(result, tuple | list) else result[0]
        first.mul_(0) if first.dtype == torch.uint8 else first.add_(1)
        return result

    return run


def crash(function):
    return lambda *args: faulthandler._sigsegv()


def abort(function):
    return lambda *args: os.abort()


def hang(function):
    """Report that the kernel hangs, among the reports of the verification, and hang."""

    def run(*args):
        os.write(_reports, b'{"hangs": true}\n')
        time.sleep(3600)

    return run


def unsteady(function):
    """Return the right result on every other call only."""
    calls = []

    def run(*args):
        calls.append(args)
        return wrong(function)(*args) if len(calls) % 2 == 0 else function(*args)

    return run


def fail(function):
    def run(*args):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nand more lines")

    return run


def exhaust(function):
    def run(*args):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return run


def loading(function):
    def run():
        os.write(_reports, b'{"loads": true}\n')
        return function()

    return run


_reports = -1  # file descriptor
FAULTS = {f.__name__: f for f in (wrong, crash, abort, hang, unsteady, fail, exhaust)}


def install() -> None:
    """Prepare this process; the faults are those of the variable."""
    settings = json.loads(os.environ["KERNEL_FAULTS"])
    if settings.pop("fake", False):
        from tests.fakes import cuda as fake_cuda

        fake_cuda.install()
        for name in ("cuda", "triton"):
            BACKENDS[name] = Backend(name, "the reference", dict(BACKENDS["reference"].supported))
    if settings.pop("loads", False):
        for name, backend in BACKENDS.items():
            BACKENDS[name] = dataclasses.replace(backend, unavailable_reasons=loading(backend.unavailable_reasons))
    dispatch.PREFERENCE.update(settings.pop("order", {}))
    for kernel, fault in settings.items():
        operator, backend = kernel.split(" of ")
        supported = BACKENDS[backend].supported
        supported[operator] = FAULTS[fault](supported[operator])


def main() -> None:
    global _reports
    install()
    _reports = os.dup(1)  # the child keeps standard output for its reports, too
    from hyperseg.verify.child import main as child

    child()
