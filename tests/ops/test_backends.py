"""The choice of a backend: by name, by environment or automatically; error messages if none supports a call."""

import dataclasses
import importlib
import logging
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hyperseg import ops
from hyperseg.ops import BACKENDS, OPERATORS, BackendError, chosen, has_kernel, named_backend, use_backend
from hyperseg.ops.backends import Backend, caller, dispatch, native
from hyperseg.ops.backends.cuda import device_reasons

ROOT = Path(__file__).resolve().parents[2]
LOGITS = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)


def constant(value: int):
    """Return an implementation of upsample_argmax that returns this value."""
    return lambda logits, h, w: torch.full((logits.shape[0], h, w), value, dtype=torch.uint8)


def label() -> int:
    """Return the label from the backend that ran. The reference returns 1, the correct label."""
    return int(ops.upsample_argmax(LOGITS, (1, 1)))


@pytest.fixture(autouse=True)
def automatic(monkeypatch):
    """Ignore the backend that the environment of the test run names."""
    monkeypatch.delenv("HYPERSEG_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_logged", set())


@pytest.fixture
def others(monkeypatch):
    """Three more backends: one works, one is missing something, one does not support some arguments."""

    def reasons(operator, args):
        _, h, w = args
        return [] if h > 1 else ["one row is too few", f"{w} columns too"]

    made = {
        "working": Backend("working", "", {"upsample_argmax": constant(7)}),
        "missing": Backend("missing", "", {"upsample_argmax": constant(8)}, lambda: ["no compiler", "no device"]),
        "picky": Backend("picky", "", {"upsample_argmax": constant(9)}, call_reasons=reasons),
    }
    for name, backend in made.items():
        monkeypatch.setitem(BACKENDS, name, backend)
    return made


def prefer(monkeypatch, *names: str) -> None:
    monkeypatch.setitem(dispatch.PREFERENCE, "cpu", names)


def test_a_named_backend_runs(others):
    with use_backend("working"):
        assert label() == 7
    with use_backend("reference"):
        assert label() == 1


def test_names_nest_and_end_with_their_block(others):
    with use_backend("reference"):
        with use_backend("working"):
            assert label() == 7
            with use_backend("reference"):
                assert label() == 1
            assert label() == 7
        assert label() == 1
    assert named_backend() is None


def test_a_name_ends_with_its_block_after_an_error_too(others):
    with pytest.raises(ZeroDivisionError), use_backend("working"):
        _ = 1 / 0
    assert named_backend() is None


def test_auto_returns_to_the_automatic_choice(others, monkeypatch):
    prefer(monkeypatch, "reference")
    monkeypatch.setenv("HYPERSEG_BACKEND", "working")
    with use_backend("working"), use_backend("auto"):
        assert named_backend() is None
        assert label() == 1


def test_unknown_names(monkeypatch):
    with (
        pytest.raises(BackendError, match=r"There is no backend 'cuddn'; the backends are auto, .*cpp.*reference"),
        use_backend("cuddn"),
    ):
        pass
    monkeypatch.setenv("HYPERSEG_BACKEND", "fastest")
    with pytest.raises(BackendError, match="There is no backend 'fastest'"):
        label()


def test_the_environment_names_a_backend(others, monkeypatch):
    monkeypatch.setenv("HYPERSEG_BACKEND", "working")
    assert label() == 7
    with use_backend("reference"):
        assert label() == 1
    monkeypatch.setenv("HYPERSEG_BACKEND", "auto")
    assert named_backend() is None


def test_the_environment_of_a_process():
    """Set the variable as a user does, and read the error message on stderr."""
    code = "import torch; from hyperseg import ops; ops.upsample_argmax(torch.zeros(1, 2, 1, 1), (1, 1))"
    environment = os.environ | {"HYPERSEG_BACKEND": "triton", "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    refused = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "The backend 'triton' does not support upsample_argmax of (1, 2, 1, 1) float32 cpu:" in refused.stderr
    assert "Backends that do: " in refused.stderr


def test_a_named_backend_raises_what_is_missing(others):
    with use_backend("missing"), pytest.raises(BackendError) as caught:
        label()
    message = str(caught.value)
    assert message.startswith("The backend 'missing' does not support upsample_argmax of (1, 2, 1, 1) float32 cpu:\n")
    assert "\n  - no compiler\n  - no device\n" in message
    able = message.splitlines()[-1].removeprefix("Backends that do: ").removesuffix(".").split(", ")
    assert {"reference", "working"} <= set(able)
    assert not {"missing", "picky"} & set(able)


def test_a_named_backend_raises_why_it_does_not_support_the_arguments(others):
    with use_backend("picky"):
        assert int(ops.upsample_argmax(LOGITS, (2, 1))[0, 0, 0]) == 9
        with pytest.raises(BackendError, match="one row is too few\n  - 5 columns too"):
            ops.upsample_argmax(LOGITS, (1, 5))


def test_a_named_backend_without_the_operator(others):
    with use_backend("working"), pytest.raises(BackendError, match="it has no implementation of patch_conv2d"):
        ops.patch_conv2d(torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 1, 4), out_channels=2)


def test_auto_takes_the_first_that_supports_the_call(others, monkeypatch):
    prefer(monkeypatch, "missing", "picky", "working", "reference")
    assert label() == 7
    assert int(ops.upsample_argmax(LOGITS, (2, 1))[0, 0, 0]) == 9
    prefer(monkeypatch, "reference", "working")
    assert label() == 1


def test_auto_logs_each_reason_once(others, monkeypatch, caplog):
    prefer(monkeypatch, "missing", "picky", "reference")
    caplog.set_level(logging.DEBUG, "hyperseg.ops")
    for _ in range(3):
        label()
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("DEBUG", "missing passed over for upsample_argmax: no compiler; no device"),
        ("DEBUG", "picky passed over for upsample_argmax: one row is too few; 1 columns too"),
    ]
    ops.upsample_argmax(LOGITS, (1, 3))
    assert caplog.records[-1].message.endswith("3 columns too"), "another reason is logged too"


def test_auto_is_silent_above_debug(others, monkeypatch, caplog):
    prefer(monkeypatch, "missing", "reference")
    caplog.set_level(logging.INFO, "hyperseg.ops")
    label()
    assert not caplog.records


def test_auto_without_any_supporting_backend(others, monkeypatch):
    prefer(monkeypatch, "missing")
    with pytest.raises(BackendError, match="No backend supports upsample_argmax on cpu"):
        label()


def in_thread(function):
    """Return the function's result from a thread of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture(params=["of torch", "of threading"])
def storage(request, monkeypatch):
    """The thread-local state: torch's, or what replaces its private functions if a version of torch lacks them."""
    if request.param == "of torch":
        yield
        return
    monkeypatch.delattr(torch._C, "_is_key_in_tls")
    importlib.reload(caller)
    assert caller.has.__module__ == caller.__name__
    yield
    monkeypatch.undo()
    importlib.reload(caller)


def test_a_name_holds_for_the_thread_that_gave_it(others, storage, monkeypatch):
    prefer(monkeypatch, "reference")
    with use_backend("working"):
        assert in_thread(label) == 1
        assert label() == 7
        monkeypatch.setenv("HYPERSEG_BACKEND", "picky")
        assert in_thread(named_backend) == "picky", "the environment holds for all threads"


def test_threads_name_different_backends_at_the_same_time(others, storage, monkeypatch):
    """All threads are inside their block before the first calls an operator, and call it in turns."""
    together = threading.Barrier(3, timeout=60)

    def work(name: str) -> set[int]:
        found = set()
        for _ in range(5):
            with use_backend(name):
                together.wait()
                found.add(label())
                together.wait()
        return found

    names = {"working": 7, "reference": 1, "auto": 9}
    prefer(monkeypatch, "always", "reference")
    monkeypatch.setitem(BACKENDS, "always", Backend("always", "", {"upsample_argmax": constant(9)}))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, names))
    assert found == [{expected} for expected in names.values()]


def test_blocks_may_end_in_any_order(others, storage):
    """Generators keep a block open while they are suspended, and the garbage collector may close them anywhere."""

    def labels(name: str):
        with use_backend(name):
            while True:
                yield label()

    first, second = labels("working"), labels("reference")
    assert (next(first), next(second)) == (7, 1)
    first.close()
    assert label() == 1, "the second is open"
    in_thread(second.close)
    assert named_backend() is None
    assert not dispatch._open


def recorded(others, monkeypatch) -> list[int]:
    """Give "working" a patch_conv2d with a backward that appends the id of the thread that runs it."""
    threads = []

    def backward(grad, x, weights, bias, *rest):
        threads.append(threading.get_ident())
        return torch.zeros_like(x), torch.zeros_like(weights), grad.new_empty(0)

    forward = BACKENDS["reference"].supported["patch_conv2d"]
    monkeypatch.setitem(others["working"].supported, "patch_conv2d", forward)
    monkeypatch.setitem(others["working"].supported, "patch_conv2d_backward", backward)
    return threads


def conv(x):
    return ops.patch_conv2d(x, torch.ones(1, 1, 1, 4), out_channels=2)


def test_a_named_backend_runs_the_backward_too(others, storage, monkeypatch):
    threads = recorded(others, monkeypatch)
    x = torch.ones(1, 2, 2, 2, requires_grad=True)
    with use_backend("working"):
        conv(x).sum().backward()
    assert threads == [threading.get_ident()]
    assert (x.grad == 0).all()
    y = conv(x).sum()
    with use_backend("working"), torch.autograd.set_multithreading_enabled(False):
        y.backward()
    with use_backend("working"):
        checkpoint(conv, x, use_reentrant=False).sum().backward()
        checkpoint(conv, x, use_reentrant=True).sum().backward()
    assert len(threads) == 4


class Nested(torch.autograd.Function):
    """The identity, whose backward pass runs `depth` backward passes inside each other and the last of `run`."""

    @staticmethod
    def forward(ctx, x, depth, run):
        ctx.depth, ctx.run = depth, run
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            y = ctx.run() if ctx.depth == 0 else Nested.apply(torch.ones(1, requires_grad=True), ctx.depth - 1, ctx.run)
            y.sum().backward()
        return grad, None, None


def test_a_name_holds_on_the_threads_of_autograd(others, monkeypatch):
    """Autograd continues backward passes nested 60 deep on threads of its own, as it runs all those of CUDA tensors."""
    threads = recorded(others, monkeypatch)
    x = torch.ones(1, 2, 2, 2, requires_grad=True)
    with use_backend("working"):
        Nested.apply(torch.ones(1, requires_grad=True), 70, lambda: conv(x)).sum().backward()
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


def test_a_block_in_a_compiled_function_holds_for_its_calls(others):
    """Tracing it would run the calls after the block has ended, so it is a graph break."""

    def function(logits):
        with use_backend("working"):
            return ops.upsample_argmax(logits * 2, (1, 1))

    assert int(torch.compile(function, backend="aot_eager")(LOGITS)) == 7


def test_the_choice_that_info_shows(others, monkeypatch):
    prefer(monkeypatch, "missing", "working", "reference")
    assert chosen("upsample_argmax", "cpu") == ("working", {"missing": ["no compiler", "no device"]})
    name, why = chosen("patch_conv2d", "cpu")
    assert name == "reference"
    assert why["working"] == ["it has no implementation of patch_conv2d"]


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "reference"])
def test_a_backend_may_lack_an_operator(name, monkeypatch, caplog):
    """An operator needs no kernel in every backend: the next backend runs it, and the reason is logged."""
    without = {operator: run for operator, run in BACKENDS[name].supported.items() if operator != "upsample_argmax"}
    available = dataclasses.replace(BACKENDS[name], supported=without, unavailable_reasons=list)
    monkeypatch.setitem(BACKENDS, name, available)
    prefer(monkeypatch, name, "reference")
    caplog.set_level(logging.DEBUG, "hyperseg.ops")
    reason = "it has no implementation of upsample_argmax"
    assert label() == 1
    assert [r.message for r in caplog.records] == [f"{name} passed over for upsample_argmax: {reason}"]
    assert chosen("upsample_argmax", "cpu") == ("reference", {name: [reason]})
    assert not has_kernel("upsample_argmax", "cpu")
    with use_backend(name), pytest.raises(BackendError, match=f"does not support upsample_argmax .*\n  - {reason}\n"):
        label()


def schema(namespace: str, operator: str) -> str:
    """Return an operator's schema without its namespace. SymInt is replaced by int, as the native schemas have int."""
    written = str(getattr(getattr(torch.ops, namespace), operator).default._schema)
    return written.removeprefix(f"{namespace}::").replace("SymInt", "int")


@pytest.mark.skipif(native.extension()[0] is None, reason="the extension is not built")
@pytest.mark.parametrize("operator", OPERATORS)
def test_native_schemas_match_the_operators(operator):
    assert schema("hyperseg_native", operator) == schema("hyperseg", operator)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_reference_supports_every_operator_everywhere(operator):
    assert operator in BACKENDS["reference"].supported
    assert BACKENDS["reference"].unavailable_reasons() == []
    assert all("reference" in names for names in [*dispatch.PREFERENCE.values(), dispatch.OTHER_DEVICES])


@pytest.mark.parametrize("name", list(BACKENDS))
def test_backends_support_known_operators_and_give_reasons(name):
    backend = BACKENDS[name]
    assert set(backend.supported) <= set(OPERATORS)
    assert backend.name == name
    assert backend.description
    assert all(isinstance(reason, str) and len(reason) > 10 for reason in backend.unavailable_reasons())


@pytest.mark.parametrize(
    ("error", "platform", "message"),
    [
        (ImportError("libtorch_cuda.so: cannot open"), "linux", "a build with CUDA, for a PyTorch with the same major"),
        (ImportError("libcudart.so.13: cannot open"), "linux", "or the wheel for the CPU"),
        (ImportError("undefined symbol: f"), "linux", "rebuild it with `python setup.py build_ext`"),
        (ModuleNotFoundError("no"), "linux", "was not built; run `python setup.py build_ext`"),
        (ModuleNotFoundError("no"), "win32", "the extension hyperseg._C is for Linux, and this is win32"),
    ],
)
def test_an_extension_that_is_not_there_or_for_another_torch(error, platform, message, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.delenv("HYPERSEG_EXTENSION", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(importlib, "import_module", fail)
    module, found = native.extension.__wrapped__()
    monkeypatch.undo()
    assert module is None
    assert message in found


def test_what_belongs_to_a_thread_is_kept_until_it_is_replaced():
    """In torch 2.11 the private function takes a reference that is not its own."""

    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    begin = sys.getrefcount(thing)
    caller.put("hyperseg.test", thing)
    assert sys.getrefcount(thing) == begin + 1
    for _ in range(3):
        caller.put("hyperseg.test", thing)
        assert caller.get("hyperseg.test") is thing
    assert sys.getrefcount(thing) == begin + 1
    del thing
    assert gone() is not None
    caller.put("hyperseg.test", None)
    assert gone() is None


def test_a_missing_build_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERSEG_EXTENSION", str(tmp_path / "_C.abi3.so"))
    module, message = native.extension.__wrapped__()
    assert module is None
    advice = "name a build of hyperseg._C, or unset it"
    assert message == f"HYPERSEG_EXTENSION names {tmp_path}/_C.abi3.so, which does not exist; {advice}"
    (tmp_path / "_C.abi3.so").write_text("not a library")
    assert "does not load" in native.extension.__wrapped__()[1]


@pytest.mark.parametrize(
    ("capability", "architectures", "message"),
    [
        ((8, 0), "80-real 90-real 100", None),
        ((8, 6), "80-real 90-real 100", None),  # machine code of 8.0
        ((8, 9), "80-real 90-real 100", None),
        ((12, 0), "80-real 90-real 100", None),  # PTX of 10.0
        ((12, 0), "100-virtual", None),
        ((9, 0), "90a-real", None),
        ((7, 5), "80-real 90-real 100", "compute capability 7.5; the CUDA kernels need 8.0"),
        ((8, 6), "90-real", "built for 90-real; run `TORCH_CUDA_ARCH_LIST=8.6 "),
        ((10, 0), "90a", "built for 90a"),  # neither its machine code nor its PTX runs on later ones
        ((8, 0), "86-real", "built for 86-real"),
    ],
)
def test_a_gpu_without_code_in_the_build_is_named(capability, architectures, message):
    reasons = device_reasons(capability, architectures)
    assert (not reasons) if message is None else message in reasons[0]


def test_architectures_are_separated_as_the_build_does_it():
    build = (Path(__file__).parents[2] / "CMakeLists.txt").read_text()
    assert 'list(JOIN CMAKE_CUDA_ARCHITECTURES " " cuda_archs)' in build
