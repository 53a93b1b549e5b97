"""Parts that verbs share: errors for users, help texts, the device, the network, and checks of outputs."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from hyperseg.models import HyperSeg

# Help texts of options that verbs share.
WEIGHTS = "an official .pth file, a .safetensors file, or a folder that hyperseg.save wrote"
MODEL = (
    "a network by name, such as hyperseg-m, with random weights, to try the pipeline: its labels mean nothing; with "
    "--weights, the network of a file that does not name it"
)
DEVICE = "cpu, cuda, cuda:1, ... or auto: the GPU if there is one"


class UserError(Exception):
    """An error that the user can fix. It is printed as one line, without a traceback."""


@contextlib.contextmanager
def user_errors(*types: type[Exception], prefix: str = "") -> Iterator[None]:
    """Turn exceptions of these types into UserError with the same message."""
    try:
        yield
    except types as error:
        raise UserError(f"{prefix}{error}") from None


def pick_device(name: str) -> "torch.device":
    """Return the device for `--device`."""
    from hyperseg.runtime.device import pick_device

    with user_errors(ValueError, prefix="--device: "):
        return pick_device(name)


def check_network(weights: str | None, model: str | None) -> None:
    """Check that `--weights` or `--model` is given."""
    if weights is None and model is None:
        raise UserError(
            "no network is given; add --weights FILE for trained weights, "
            "or --model NAME to try the pipeline with random ones"
        )


def load_network(weights: str | None, model: str | None) -> "tuple[HyperSeg, str | None]":
    """Return the network for `--weights` and `--model`, in eval mode, and a warning or None.

    Without weights the network gets random ones, the same on each call, and there is a warning.
    """
    import torch

    import hyperseg
    from hyperseg.models import model_config

    check_network(weights, model)
    with user_errors(ValueError):
        name = None if model is None else model_config(model).name
    if weights is None:
        assert name is not None
        with torch.random.fork_rng(devices=[]):
            network = hyperseg.synthesize_weights(hyperseg.create_model(name)).eval()
        return network, (
            f"no --weights: {name} runs with random weights, so its labels mean nothing; this only tries the pipeline"
        )
    if not Path(weights).exists():
        raise UserError(
            f"there is no file or folder {weights}; "
            "--weights takes an official .pth, a .safetensors or a folder that hyperseg.save wrote"
        )
    try:
        return hyperseg.load(weights, name=name), None
    except (ValueError, OSError) as error:
        advice = "" if name is None else f" (--model says that it is {name}; leave it out if that is not sure)"
        raise UserError(_first_lines(error) + advice) from None


def _first_lines(error: Exception) -> str:
    """Shorten the message of a checkpoint that does not fit, which lists all its keys, to the first three."""
    lines = str(error).splitlines() or [type(error).__name__]
    first, rest = lines[0], [line.strip() for line in lines[1:4]] + ["..."] * (len(lines) > 4)
    return f"{first} {'; '.join(rest)}".strip()


def check_outputs(folder: str, inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Check before anything is computed that `--output` can be a folder and that no input would be overwritten."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UserError(f"--output {folder} is a file; give a folder")
    resolved = {path.resolve() for path in inputs}
    for file in outputs:
        if file.resolve() in resolved:
            raise UserError(f"{file} is one of the input images and would be overwritten; give another --output")
