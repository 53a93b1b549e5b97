"""bench/core/errors.py: messages on one line keep the reasons that they list."""

import pytest

from bench.core.errors import one_line
from hyperseg.ops import BackendError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BackendError("cuda does not support stem:\n  - no kernels\n  - no device\nBackends that do: cpp."),
         "cuda does not support stem: no kernels; no device"),
        (ValueError("\nfirst\nsecond"), "first"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
    ids=["list", "lines", "no message"],
)  # fmt: skip
def test_one_line(error, line):
    assert one_line(error) == line
