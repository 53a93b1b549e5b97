"""Batch statistics over processes: two processes with parts of a batch equal one with the whole batch."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import distributed

from hyperseg import _distributed
from hyperseg.ops import reference, use_backend
from hyperseg.ops.backends import native
from hyperseg.verify.arguments import double
from tests.ops.cases import HALOS
from tests.ops.sync_worker import DTYPES, NAMES, OPERATOR, SIZES, case, gradient, step
from tests.ops.targets import Target, on_every_target, skip_if_not_supported
from tests.tolerances import FORWARD, GRADIENT, assert_close

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "build/shim/hyperseg/_C.abi3.so"
F64 = torch.float64


@dataclass(frozen=True)
class Pair:
    """Two processes and the backends that they run: a process has one extension."""

    backends: tuple[str, ...]
    device: str = "cpu"
    environment: tuple[tuple[str, str], ...] = ()


PLAIN = Pair(("reference", "cpp", "triton"), environment=(("TRITON_INTERPRET", "1"),))
EMULATED = Pair(("cuda",), environment=(("HYPERSEG_EXTENSION", str(SHIM)),))
ON_GPU = Pair(("reference", "triton", "cuda"), "cuda")
RUNS = [
    *[pytest.param(PLAIN, backend, id=backend) for backend in PLAIN.backends],
    pytest.param(EMULATED, "cuda", id="shim"),
    *[pytest.param(ON_GPU, backend, id=f"{backend}-gpu", marks=pytest.mark.gpu) for backend in ON_GPU.backends],
]


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Return what the processes of a pair computed; each pair runs once."""
    return functools.cache(lambda pair: run(pair, tmp_path_factory.mktemp("processes")))


def run(pair, folder):
    if pair.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device that PyTorch can use")
    if pair is EMULATED and not SHIM.is_file():
        pytest.skip("the shim is not built; run `make shim`")
    environment = dict(os.environ)
    if native.emulated():
        environment.pop("HYPERSEG_EXTENSION")
    environment.pop("TRITON_INTERPRET", None)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ops.sync_worker", str(rank), str(folder), pair.device, *pair.backends],
            cwd=ROOT,
            env=environment | dict(pair.environment),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)[-4000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("halo", HALOS)
@pytest.mark.parametrize("sizes", SIZES, ids=["equal", "unequal"])
@pytest.mark.parametrize(("pair", "backend"), RUNS)
def test_two_processes_equal_one(pair, backend, sizes, halo, computed):
    results = computed(pair)
    dtypes = [dtype for dtype in DTYPES if (backend, sizes, halo, dtype) in results[0]]
    if not dtypes:
        pytest.skip(f"{backend} does not run here, or takes too long")
    assert torch.float32 in dtypes
    for dtype in dtypes:
        arguments = double(case(halo, sum(sizes)).arguments(dtype))
        with use_backend("reference"):
            expected = dict(zip(NAMES, step(arguments, gradient(sum(sizes)).to(dtype).to(F64), ""), strict=True))
        parts = [found[backend, sizes, halo, dtype] for found in results]
        for key in NAMES:
            values, tolerance = [part[key] for part in parts], (FORWARD if key in NAMES[:3] else GRADIENT)[dtype]
            if key in ("mean", "variance"):
                assert torch.equal(*values), f"{key} differs between the processes"
                found = values[0]
            elif key in ("scale", "shift"):
                assert all(not torch.allclose(v.double(), expected[key], rtol=0.01) for v in values), "parts of a sum"
                found = values[0] + values[1]
            else:
                found = torch.cat(values)
            assert_close(f"{dtype} {key}", found, expected[key], tolerance)
            if dtype == F64:
                torch.testing.assert_close(found, expected[key], rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# One process


@pytest.fixture
def group(tmp_path):
    """Return the name of a group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield distributed.group.WORLD.group_name
    distributed.destroy_process_group()


@pytest.mark.parametrize("halo", HALOS)
@on_every_target(OPERATOR)
def test_the_sums_of_a_level(target: Target, halo, group, monkeypatch):
    """Three sums forward and three backward, one per norm: float64, two numbers per channel and the count of values."""
    arguments = case(halo, 2).arguments(torch.float32, target.device)
    skip_if_not_supported(target, OPERATOR, arguments)
    sums = []
    collectives = torch.ops._c10d_functional
    all_reduce = collectives.all_reduce

    def recorded(values, *rest):
        assert values.dtype == F64
        sums.append(values.clone())
        return all_reduce(values, *rest)

    monkeypatch.setattr(collectives, "all_reduce", recorded)
    with use_backend(target.backend):
        found = step(arguments, gradient(2), group)
        n, _, height, width = arguments[0].shape
        hidden, out_channels = arguments[4:6]
        counts = [n * (height + 2) * (width + 4) if halo == "own" else n * height * width, *[n * height * width] * 2]
        stored = (hidden + 7) // 8 * 8 if target.backend == "cuda" else hidden  # with spare channels
        sizes = [2 * stored + 1, 2 * stored + 1, 2 * out_channels + 1]
        assert [len(s) for s in sums[:3]] == sizes
        assert [s[-1] for s in sums[:3]] == counts
        # The reference's backward pass runs its forward pass again.
        assert [len(s) for s in sums[-3:]] == sizes[::-1]
        assert len(sums) == (9 if target.backend == "reference" else 6)
        sums.clear()
        for name, actual, expected in zip(NAMES, found, step(arguments, gradient(2), ""), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert not sums, "without a group there is nothing to add"


def test_the_sum_over_processes_can_be_differentiated(group):
    values = torch.randn(3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: _distributed.differentiable_all_reduce(v, group), values)
    _, pull = torch.func.vjp(lambda v: _distributed.differentiable_all_reduce(v, group), values.detach())
    assert torch.equal(pull(torch.ones(3, dtype=F64))[0], torch.ones(3, dtype=F64))


def test_statistics_of_equal_values_have_no_variance(group):
    mean = torch.full((2,), 1e8, dtype=torch.float32)
    found = reference.statistics_of_group(mean, torch.zeros(2), 1000, group)
    assert torch.equal(found[0], mean)
    assert torch.equal(found[1], torch.zeros(2))


@pytest.mark.parametrize("with_group", [False, True], ids=["no group", "another group"])
def test_unknown_group(with_group, request):
    if with_group:
        request.getfixturevalue("group")
    with pytest.raises(ValueError, match=f"^{OPERATOR}: this process is in no process group named 'other'; pass"):
        step(case("own", 1).arguments(F64), gradient(1), "other")
    with pytest.raises(TypeError, match=f"^{OPERATOR}: group must be a string, got None"):
        step(case("own", 1).arguments(F64), gradient(1), None)


def test_names_of_groups(group):
    assert _distributed.name_of_group(None) == ""
    assert _distributed.name_of_group("") == ""
    assert _distributed.name_of_group(group) == "", "a group of one process"
    assert _distributed.name_of_group(distributed.group.WORLD) == ""
    with pytest.raises(ValueError, match="this process is in no process group named 'other'"):
        _distributed.name_of_group("other")
    with pytest.raises(ValueError, match="this process is not in the process group"):
        _distributed.name_of_group(distributed.GroupMember.NON_GROUP_MEMBER)


def test_without_a_default_group():
    assert _distributed.name_of_group(None) == ""
