"""Which backends ``auto`` tries, in which order. Measured, not assumed:

    python bench/ops.py --model all --backward --json ops.json
    python bench/preference.py ops.json

prints what was fastest and fails where this table says otherwise; so do the tests, for the files in bench/results.
"""

# The first that has no objection serves the call.
PREFERENCE: dict[str, tuple[str, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}
OTHER_DEVICES = ("reference",)

# (device, operator): where an operator's order is not its device's.
# Not measured, but counted (csrc/cuda/README.md, Training): CUDA C++ spends too much there on laying out operands.
EXCEPTIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("cuda", operator): ("triton", "cuda", "reference")
    for operator in (
        "decoder_level_backward",
        "patch_inverted_residual_backward",
        "patch_inverted_residual_batch_norm",
        "patch_inverted_residual_batch_norm_backward",
    )
}


def order(operator: str, device_type: str) -> tuple[str, ...]:
    """The backends for ``operator`` on this kind of device, the preferred one first."""
    return EXCEPTIONS.get((device_type, operator)) or PREFERENCE.get(device_type, OTHER_DEVICES)
