"""``mbconv`` in bfloat16 by vectors or tiles: sums in float32, every shape, weights of either order, other pixels."""

import pytest
import torch

from hyperseg import ops
from hyperseg.ops import reference
from hyperseg.ops.backends import native
from tests.ops.cases import mbconv
from tests.ops.test_instruction_sets import run

if native.cpu_capability() not in native.BFLOAT16_CAPABILITIES:
    pytest.skip("needs a CPU with AVX512-BF16 or AMX", allow_module_level=True)

# Rounding to bfloat16, half a unit in the last place, is up to 3.9e-3 of a value and 1.1e-3 to 1.7e-3 of many in the
# root mean square. A block rounds its filtered map, its gated projection and its output.
LARGEST, RMS = 2e-2, 3.5e-3

SHAPES = {
    "stage-2": mbconv(1, 16, 96, 24, 4, 3, 2, (0, 1, 0, 1), (64, 100)),
    "stage-3": mbconv(2, 24, 144, 24, 6, image=(19, 61), add=True),
    "stage-5": mbconv(1, 80, 480, 112, 20, 5, image=(9, 17)),
    "stage-6-strided": mbconv(1, 112, 672, 192, 28, 5, 2, (1, 2, 1, 2), (10, 18)),
    "stage-7": mbconv(1, 320, 1920, 320, 80, image=(4, 8), add=True),
    "not-expanded": mbconv(1, 32, 32, 16, 8, image=(48, 97), expand=False),
    "not-expanded-odd": mbconv(1, 13, 13, 7, 3, image=(9, 11), expand=False),
    "odd-channels": mbconv(1, 7, 21, 9, 3, image=(9, 11)),
    "odd-hidden": mbconv(2, 6, 49, 17, 5, image=(7, 50)),
    "column": mbconv(1, 8, 48, 8, 2, 3, 2, (0, 1, 0, 1), (6, 2)),
    "pixel": mbconv(1, 40, 64, 33, 2, 5, image=(1, 1)),
    "filter-1": mbconv(1, 8, 48, 8, 2, 1, image=(5, 40)),
    "filter-7-stride-3": mbconv(1, 8, 48, 8, 2, 7, 3, image=(20, 61)),
}


def arguments(name: str) -> list:
    """The arguments of a case in bfloat16 and channels-last memory."""
    args = SHAPES[name](torch.Generator().manual_seed(0))
    args = [a.bfloat16() if isinstance(a, torch.Tensor) else a for a in args]
    return [args[0].contiguous(memory_format=torch.channels_last), *args[1:]]


def exact(args: list) -> torch.Tensor:
    return reference.mbconv(*[a.double() if isinstance(a, torch.Tensor) else a for a in args])


def by_cpp(args: list) -> torch.Tensor:
    with ops.use_backend("cpp"):
        return ops.mbconv(*args[:11], stride=args[11], padding=tuple(args[12]), residual=args[13])


@pytest.mark.parametrize("name", SHAPES)
def test_only_stored_values_are_rounded(name):
    args = arguments(name)
    actual, expected = by_cpp(args), exact(args)
    assert actual.dtype == torch.bfloat16
    assert actual.is_contiguous(memory_format=torch.channels_last)
    scale = expected.square().mean().sqrt()
    error = (actual.double() - expected).abs() / scale
    assert error.max() < LARGEST * max(1, expected.abs().max() / scale)
    assert error.square().mean().sqrt() < RMS


@pytest.mark.parametrize("name", ["stage-3", "stage-6-strided", "odd-hidden"])
def test_any_strides(name):
    """Matrices in either order or with gaps, and maps in NCHW memory, give bitwise the same."""
    args = arguments(name)
    expected = by_cpp(args)
    transposed = [a.t().contiguous().t() if isinstance(a, torch.Tensor) and a.dim() == 2 else a for a in args]
    assert torch.equal(by_cpp(transposed), expected)
    apart = [a.repeat_interleave(2, 1)[:, ::2] if isinstance(a, torch.Tensor) and a.dim() == 2 else a for a in args]
    assert torch.equal(by_cpp(apart), expected)
    filters = args[3].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(by_cpp([*args[:3], filters, *args[4:]]), expected)
    assert torch.equal(by_cpp([*args[:3], args[3].transpose(1, 2).contiguous().transpose(1, 2), *args[4:]]), expected)
    assert torch.equal(by_cpp([args[0].contiguous(), *args[1:]]), expected)


def test_pixels_that_are_not_finite_stay_where_they_are():
    """Tiles take several pixels and zeros beyond the channels: neither may carry NaN or infinity to other pixels."""
    args = arguments("odd-hidden")
    expected = by_cpp(args)
    for value in (float("nan"), float("inf")):
        x = args[0].clone(memory_format=torch.preserve_format)
        x[0, :, 3, 20] = value
        actual = by_cpp([x, *args[1:]])
        assert torch.equal(actual[1], expected[1])  # the squeezed map carries it to all pixels of its own image
        assert actual[0].isnan().any()


def test_threads_do_not_change_the_result():
    args = arguments("stage-2")
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(by_cpp(args))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("capability", ["avx2", "avx512", "avx512_bf16", native.cpu_capability()])
def test_it_can_be_turned_off(capability):
    script = "from hyperseg.ops.backends import native; print(native.cpu_capability())"
    assert run(script, capability).stdout.split() == [capability]


@pytest.mark.skipif(native.cpu_capability() != "amx", reason="the other tests run these vectors already")
def test_vectors_where_there_are_tiles():
    """The tests of this file, with AVX512-BF16 on a CPU that has AMX."""
    script = f"import sys, pytest; sys.exit(pytest.main([{__file__!r}, '-q', '-p', 'no:cacheprovider']))"
    result = run(script, "avx512_bf16")
    assert result.returncode == 0, result.stdout[-3000:]
