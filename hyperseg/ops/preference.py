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
EXCEPTIONS: dict[tuple[str, str], tuple[str, ...]] = {}


def order(operator: str, device_type: str) -> tuple[str, ...]:
    """The backends for ``operator`` on this kind of device, the preferred one first."""
    return EXCEPTIONS.get((device_type, operator)) or PREFERENCE.get(device_type, OTHER_DEVICES)
