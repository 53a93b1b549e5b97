"""Optional packages: imported when they are needed, and named with the command that installs them when they are not."""

import importlib
from typing import Any


class MissingPackageError(ImportError):
    """A package of an extra of hyperseg is not installed. The message says what needs it and how to install it."""


def require(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional package. `purpose` begins the message: "a video".

    Raises MissingPackageError if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = module.partition(".")[0]
        if error.name not in (None, missing):  # it is there, but does not work
            missing = f"{missing} ({error})"
        raise MissingPackageError(f"{purpose} needs {missing}; run pip install 'hyperseg[{extra}]'") from None
