"""Faulty kernels in real child processes: wrong, crashing and hanging ones are passed over; the next backend runs."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from hyperseg import ops
from hyperseg.ops import BACKENDS, chosen
from hyperseg.ops.backends import verdicts
from hyperseg.ops.backends.verdicts import RIGHT, UNKNOWN, WRONG, KernelWarning
from hyperseg.verify import processes, verification, verify_again, verify_kernels
from tests.verify import faults

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SHIM = ROOT / "build/shim/hyperseg/_C.abi3.so"

built = pytest.mark.skipif(bool(BACKENDS["cpp"].lacks("stem")), reason="the extension has no C++ operators")


@pytest.fixture
def children(monkeypatch):
    """Count child processes; they verify a few kernels in float32, with the faults that the test sets, in any time."""
    started = []
    run_child = processes.run_child

    def counted(items, *rest):
        started.append([item.operator for item in items])
        return run_child(items, *rest)

    monkeypatch.setattr(processes, "run_child", counted)
    monkeypatch.setattr(verification, "DTYPES", (torch.float32,))
    monkeypatch.setattr(verification, "ENGINE", ())
    monkeypatch.setitem(verification.LIMITS, "cpu", None)
    return started


def only(monkeypatch, faulty: dict[str, str], *operators: str) -> None:
    monkeypatch.setattr(verification, "OPERATORS", operators)
    monkeypatch.setattr(processes, "CODE", faults.CODE)
    monkeypatch.setenv("KERNEL_FAULTS", json.dumps({f"{operator} of cpp": fault for operator, fault in faulty.items()}))


@built
def test_faults_in_cpp(monkeypatch, children, patience):
    faulty = {
        "upsample_argmax": "wrong",
        "generate_weights": "unsteady",
        "decoder_level": "fail",
        "mbconv": "exhaust",
        "patch_conv2d_backward": "crash",
        "patch_conv2d": "hang",
    }
    only(monkeypatch, faulty, "stem", *faulty, "upsample_cross_entropy")
    with pytest.warns(KernelWarning) as caught:
        found = {v.operator: v for v in verify_kernels(CPU)}
    assert {o: v.outcome for o, v in found.items()} == {
        "stem": RIGHT,
        "upsample_argmax": WRONG,
        "generate_weights": WRONG,
        "decoder_level": WRONG,
        "mbconv": UNKNOWN,
        "patch_conv2d_backward": WRONG,
        "patch_conv2d": WRONG,
        "upsample_cross_entropy": RIGHT,
    }
    assert "the score of a label is" in found["upsample_argmax"].reason
    assert "another output" in found["generate_weights"].reason
    assert found["decoder_level"].reason.endswith("no kernel image is available for execution on the device")
    assert "out of memory" in found["mbconv"].reason
    assert found["patch_conv2d_backward"].reason == "case kernel-1: it ended the process (SIGSEGV)"
    assert found["patch_conv2d"].reason == "case kernel-1: it did not finish within 1 s"
    assert patience == [0.5, 1.0]
    assert [len(operators) for operators in children] == [8, 2, 1, 1], (
        "one child, after the crash, alone, after the hang"
    )

    (message,) = [str(w.message) for w in caught if w.category is KernelWarning]
    assert all(f"{operator} of cpp: case " in message for operator in faulty)
    backends = {operator: chosen(operator, "cpu")[0] for operator in found}
    assert backends == {o: "cpp" if v.outcome == RIGHT else "reference" for o, v in found.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, weights = torch.randn(1, 3, 4, 6), torch.randn(1, 2, 3, 12)
        ops.patch_conv2d(x, weights, out_channels=4)  # it would hang, and the backward pass crash
        children.clear()
        assert verify_kernels(CPU) == []
    assert children == []


def test_loading_does_not_count_as_time_of_a_case(monkeypatch):
    """A child is ready, from when on cases are timed, after it has loaded the extension."""
    monkeypatch.setenv("KERNEL_FAULTS", json.dumps({"loads": True}))
    request = {"device": "cpu", "items": [["stem", "cpp", "float32"]], "seconds": None, "path": [str(ROOT), *sys.path]}
    command = [sys.executable, "-c", faults.CODE, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert [*map(json.loads, done.stdout.splitlines())][:2] == [{"loads": True}, {"ready": True}], done.stderr


@built
def test_verdicts_are_stored_for_the_next_process(monkeypatch, children):
    only(monkeypatch, {"upsample_argmax": "wrong"}, "upsample_argmax", "stem")
    with pytest.warns(KernelWarning):
        first = verify_kernels(CPU)
    for table in (verdicts.PASSED_OVER, verdicts._known, verdicts._warned, verification._done):
        table.clear()  # a new process
    with pytest.warns(KernelWarning, match="upsample_argmax of cpp"):
        assert set(verify_kernels(CPU)) == set(first)
    assert len(children) == 1
    monkeypatch.setenv("KERNEL_FAULTS", "{}")  # a corrected kernel, of the same hash
    assert {v.outcome for v in verify_again(CPU)} == {RIGHT}
    assert len(children) == 2
    assert chosen("upsample_argmax", "cpu")[0] == "cpp"


def test_no_child_process(monkeypatch):
    """The kernels are used, with a warning, and there is no second attempt in this process."""
    monkeypatch.setattr(sys, "executable", "/usr/bin/uwsgi")
    monkeypatch.setattr(verification, "missing", lambda *_: [processes.Item("stem", "cpp", "float32")])
    with pytest.warns(KernelWarning, match="without having been verified there: no child process can be started"):
        assert verify_kernels(CPU) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verify_kernels(CPU) == []


@built
def test_a_cache_folder_that_cannot_be_written(monkeypatch, children, tmp_path):
    only(monkeypatch, {}, "stem")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYPERSEG_CACHE", str(tmp_path / "file"))
    with pytest.warns(KernelWarning, match="cannot be stored .* HYPERSEG_CACHE names another folder"):
        found = verify_kernels(CPU)
    assert [v.outcome for v in found] == [RIGHT]


@pytest.mark.parametrize("reason", ["HYPERSEG_VERIFY", "HYPERSEG_BACKEND"])
def test_when_nothing_is_verified(monkeypatch, children, reason):
    monkeypatch.setenv(reason, {"HYPERSEG_VERIFY": "0", "HYPERSEG_BACKEND": "reference"}[reason])
    assert verify_kernels(CPU) == []
    assert children == []


# The kernels of the cuda backend on the CPU (csrc/shim): a process of its own, because a process loads one extension.
ON_THE_SHIM = """
import torch, warnings
from tests.verify import faults
from hyperseg.ops import chosen, upsample_argmax
from hyperseg.ops.backends import dispatch
from hyperseg.verify import processes, verification, verify_kernels
dispatch.PREFERENCE["cpu"] = ("cuda", "reference")
processes.CODE = faults.CODE
verification.DTYPES, verification.ENGINE = (torch.float32, torch.float16), ()
verification.OPERATORS = ("stem", "generate_weights", "upsample_argmax", "patch_conv2d")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for v in verify_kernels(torch.device("cpu")):
        print(v.operator, v.backend, v.dtype, v.outcome, v.reason)
print(len(caught), [chosen(operator, "cpu")[0] for operator in verification.OPERATORS])
"""


def in_a_process(script: str, tmp_path: Path, **variables: str) -> list[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not SHIM.is_file(), reason="the shim is not built: `make shim`")
def test_cuda_kernels_on_the_shim(tmp_path):
    faulty = {"upsample_argmax of cuda": "wrong", "patch_conv2d of cuda": "abort", "order": {"cpu": ["cuda"]}}
    lines = in_a_process(ON_THE_SHIM, tmp_path, HYPERSEG_EXTENSION=str(SHIM), KERNEL_FAULTS=json.dumps(faulty))
    assert lines == [
        "stem cuda float32 right ",
        "stem cuda float16 right ",
        "generate_weights cuda float32 right ",
        "generate_weights cuda float16 right ",
        lines[4],
        lines[5],
        "patch_conv2d cuda float32 wrong case kernel-1: it ended the process (SIGABRT)",
        "1 ['cuda', 'cuda', 'reference', 'reference']",
    ]
    assert lines[4].startswith("upsample_argmax cuda float32 wrong case double: the score of a label")
    assert lines[5].startswith("upsample_argmax cuda float16 wrong case double: the score of a label")


# On the fake device, backends cuda and triton run the reference. If cuda's kernel fails, triton's is verified.
ON_THE_FAKE = """
import torch, warnings
from tests.verify import faults
faults.install()
from hyperseg import ops
from hyperseg.ops import chosen
from hyperseg.ops.backends import verdicts
from hyperseg.verify import processes, verification, verify_kernels
processes.CODE = faults.CODE
verification.ENGINE = ("stem", "upsample_argmax", "generate_weights")
device = torch.device("cuda", 0)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for v in verify_kernels(device, (torch.float16,)):
        print(v.operator, v.backend, v.dtype, v.outcome, v.reason)
print(len(caught), [chosen(operator, "cuda")[0] for operator in verification.ENGINE])
print(verdicts.fingerprint(device)["device"], verdicts.fingerprint(device)["capability"])
print(ops.upsample_argmax(torch.eye(4).view(1, 4, 2, 2).to("cuda"), (2, 2)).flatten().tolist())
"""


def test_the_next_backend_is_verified(tmp_path):
    faulty = {
        "upsample_argmax of cuda": "wrong",
        "generate_weights of cuda": "fail",
        "generate_weights of triton": "wrong",
    }
    settings = json.dumps(faulty | {"fake": True})
    lines = in_a_process(ON_THE_FAKE, tmp_path, KERNEL_FAULTS=settings)
    assert [line.split(" ")[:4] for line in lines[:5]] == [
        ["stem", "cuda", "float16", "right"],
        ["upsample_argmax", "cuda", "float16", "wrong"],
        ["generate_weights", "cuda", "float16", "wrong"],
        ["upsample_argmax", "triton", "float16", "right"],
        ["generate_weights", "triton", "float16", "wrong"],
    ]
    assert "RuntimeError: CUDA error: no kernel" in lines[2]
    assert lines[5:] == ["1 ['cuda', 'triton', 'reference']", "NVIDIA H200 9.0", "[0, 1, 2, 3]"]
