"""Errors of checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit its network. The message names the file and the reason."""


class EncoderDownloadError(CheckpointError):
    """Pretrained weights of an encoder cannot be downloaded.

    reason: what failed. source: where a browser finds them.
    """

    def __init__(self, reason: str, source: str) -> None:
        super().__init__(
            f"{reason}. Without an internet connection, get model.safetensors from {source} on another machine and "
            "give the file: pretrained_encoder='model.safetensors'."
        )
        self.reason, self.source = reason, source
