"""The choice of a backend: by name, by environment or automatically; error messages if none supports a call."""

import dataclasses
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from hyperseg import ops
from hyperseg.ops import BACKENDS, OPERATORS, BackendError, chosen, has_kernel, named_backend, use_backend
from hyperseg.ops.backends import Backend, dispatch, native

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


def test_a_name_holds_in_every_thread(others):
    """Backward passes run on autograd's threads, not on the thread that named the backend."""
    found = []
    with use_backend("working"):
        thread = threading.Thread(target=lambda: found.append(label()))
        thread.start()
        thread.join()
    assert found == [7]


def test_a_named_backend_runs_the_backward_too(others, monkeypatch):
    called = []

    def backward(grad, x, weights, bias, *rest):
        called.append(tuple(grad.shape))
        return torch.zeros_like(x), torch.zeros_like(weights), grad.new_empty(0)

    forward = BACKENDS["reference"].supported["patch_conv2d"]
    monkeypatch.setitem(others["working"].supported, "patch_conv2d", forward)
    monkeypatch.setitem(others["working"].supported, "patch_conv2d_backward", backward)
    x = torch.ones(1, 2, 2, 2, requires_grad=True)
    with use_backend("working"):
        ops.patch_conv2d(x, torch.ones(1, 1, 1, 4), out_channels=2).sum().backward()
    assert called == [(1, 2, 2, 2)]
    assert (x.grad == 0).all()


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


def test_a_missing_build_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERSEG_EXTENSION", str(tmp_path / "_C.abi3.so"))
    module, message = native.extension.__wrapped__()
    assert module is None
    advice = "name a build of hyperseg._C, or unset it"
    assert message == f"HYPERSEG_EXTENSION names {tmp_path}/_C.abi3.so, which does not exist; {advice}"
    (tmp_path / "_C.abi3.so").write_text("not a library")
    assert "does not load" in native.extension.__wrapped__()[1]
