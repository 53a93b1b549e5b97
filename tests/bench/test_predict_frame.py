"""The prediction of a frame: the model of a GPU, tables, and comparison with a timeline."""

import dataclasses

import pytest

from bench import predict_frame
from bench.core.errors import Refused
from bench.core.gpu_model import GPUS, Cache, Prediction, occupancy
from bench.core.launches import Foreign, Kernel
from tools.machine.library import Resources
from tools.machine.recording import Launch, plain

LAUNCH = Launch("op", "a_kernel<__half>", (300, 1, 1), 256, 0, b"")
RESOURCES = Resources("_Z", "x.cubin", 64, 1024, 0)


@pytest.mark.parametrize(
    ("threads", "shared_bytes", "registers", "resident"),
    [
        (256, 0, 32, 8),  # threads
        (256, 0, 64, 4),  # registers
        (256, 0, 65, 3),  # allocated in steps of eight per thread
        (128, 50 * 1024, 32, 4),  # shared memory, of which each block takes 1 KB more
        (1024, 200 * 1024, 64, 1),
    ],
)
def test_resident_blocks(threads: int, shared_bytes: int, registers: int, resident: int):
    launch = dataclasses.replace(LAUNCH, threads=threads, shared_bytes=shared_bytes)
    resources = dataclasses.replace(RESOURCES, registers=registers)
    assert occupancy(launch, resources, GPUS["h100"]) == resident


def test_a_cache_keeps_what_was_used_last():
    cache = Cache(100)
    assert cache.touch(1, 40) == 40
    assert cache.touch(2, 40) == 40
    assert cache.touch(1, 40) == 0
    assert cache.touch(3, 60) == 60
    assert cache.touch(2, 40) == 40  # 1 and 3 were used since
    assert cache.touch(3, 80) == 20  # more of it than before


def test_names_of_both_compilers_are_equal():
    host = "N8hyperseg4shim6KernelIXadL_ZNS_4cuda12_GLOBAL__N_18a_kernelINS2_4halfELi3EEEvPT_EEEE"
    device = "_ZN8hyperseg4cuda41_GLOBAL__N__57f_19_generate_weights_cu_a18a_kernelI6__halfLi3EEEvPT_"
    assert plain(device) == "a_kernel<__half, 3>"
    assert plain(host) == plain(device)


def prediction(name: str, us: float, part: str = "blocks") -> Prediction:
    kernel = Kernel(part, dataclasses.replace(LAUNCH, kernel=name))
    return Prediction(kernel, us, {"issue": us - 1.5}, counts=object())


STEP = [
    prediction("a_kernel<__half>", 4.0),
    Prediction(Kernel("PyTorch", Foreign("relu_", 8)), 2.5, {"l2": 0.0}),
    prediction("b_kernel<float, 3>", 9.0, "labels"),
]


def measured(*kernels: tuple[str, float]) -> dict:
    return {"kernels": [{"name": name, "cost": cost} for name, cost in kernels]}


def test_parts_add_up_to_the_frame():
    found = predict_frame.summary(STEP)
    assert found["frame_us"] == 15.5
    assert found["launches"] == 3
    assert found["parts"]["labels"] == {"launches": 1, "us": 9.0, "throughput_us": 9.0}


def test_a_timeline_is_compared_whatever_pytorch_launches():
    timeline = measured(
        ("void hyperseg::cuda::a_kernel<__half>(int)", 5.0), ("cudnn", 1.0), ("nhwc", 2.0), ("hyperseg::b_kernel", 8.0)
    )
    assert predict_frame.matched(STEP, timeline) == {0: 5.0, 2: 8.0}
    assert predict_frame.comparison(STEP, timeline) == (
        "kernels of HyperSeg: predicted 13.0 us, measured 13.0; of PyTorch: 2.5 and 3.0; frame: 15.5 and 16.0"
    )


@pytest.mark.parametrize("names", [["a_kernel"], ["b_kernel", "a_kernel"], ["a_kernel", "b_kernel", "b_kernel"]])
def test_a_timeline_of_other_sources_is_refused(names: list[str]):
    with pytest.raises(Refused, match="other sources"):
        predict_frame.matched(STEP, measured(*((f"hyperseg::{name}", 1.0) for name in names)))


def test_the_table_in_a_document_is_replaced(tmp_path):
    document = tmp_path / "page.md"
    document.write_text("a\n<!-- predictions: x -->\nold\n<!-- end of predictions -->\nb\n")
    predict_frame.update(document, "new")
    assert document.read_text() == "a\n<!-- predictions: x -->\nnew\n<!-- end of predictions -->\nb\n"
    document.write_text("nothing")
    with pytest.raises(Refused, match="no comments"):
        predict_frame.update(document, "new")
