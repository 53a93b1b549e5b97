"""What the launcher of this process says, without importing torch."""

import os


def launched() -> bool:
    """Return whether torchrun, or a launcher with its variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
