"""Errors of engines."""


class EngineError(RuntimeError):
    """These settings do not go together, or the engine's output does not match the module."""


class LostDeviceError(EngineError):
    """A kernel left the process's CUDA context unusable. Only a new process can use the device."""
