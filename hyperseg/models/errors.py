"""Errors of checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit its network. The message names the file and the reason."""
