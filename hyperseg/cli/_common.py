"""Parts that verbs share: errors for users, types and help texts of options, the device, the network, output checks."""

import argparse
import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hyperseg._files import printable

if TYPE_CHECKING:
    import torch

    from hyperseg.models import HyperSeg

# Help texts of options that verbs share.
WEIGHTS = (
    "an official .pth file, a .safetensors file, a folder that hyperseg.save wrote, the name of a network whose "
    "weights were released, such as hyperseg-m-cityscapes, or hf-hub:OWNER/NAME[@REVISION] on the Hugging Face Hub: "
    "they are downloaded once"
)
MODEL = (
    "a network by name, such as hyperseg-m, with random weights, to try the pipeline: its labels mean nothing; with "
    "--weights, the network of a file that does not name it"
)
OFFLINE = "download nothing; weights by name must be in the cache (HYPERSEG_OFFLINE=1 does the same)"
DEVICE = "cpu, cuda, cuda:1, ... or auto: the GPU if there is one"


class HelpFormatter(argparse.HelpFormatter):
    """Wraps each paragraph of a description by itself."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in text.split("\n\n"))


class UserError(Exception):
    """An error that the user can fix. It is printed as one line, without a traceback. `code`: the exit code."""

    code = 1


class UsageError(UserError):
    """The command line is not valid: on no machine would it be."""

    code = 2


@contextlib.contextmanager
def user_errors(*types: type[Exception], prefix: str = "", to: type[UserError] = UserError) -> Iterator[None]:
    """Turn exceptions of these types into `to` with the same message."""
    try:
        yield
    except types as error:
        raise to(f"{prefix}{reason(error) if prefix else error}") from None


def reason(error: Exception) -> str:
    """Return why something failed, for a message that names the file: of an error of the system without its number."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def text(value: str) -> str:
    """Return the value of an option or argument; an empty one is an error."""
    if not value.strip():
        raise argparse.ArgumentTypeError("the value is empty; is it a variable that is not set?")
    return value


def opacity(value: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no number such as 0.6; give 0 (image only) to 1 (colours only)")
    return number


def count(value: str) -> int:
    """Parse a whole number from 1."""
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no whole number from 1")
    return int(value)


def pick_device(name: str) -> "torch.device":
    """Return the device for `--device`."""
    from hyperseg.runtime.device import MissingDeviceError, pick_device

    try:
        return pick_device(name)
    except ValueError as error:
        kind = UserError if isinstance(error, MissingDeviceError) else UsageError
        raise kind(f"--device: {error}") from None


def device_of_rank(name: str) -> str:
    """Return the device for `--device` of one of several processes: a GPU of its own, if GPUs are not named."""
    rank = os.environ.get("LOCAL_RANK", "")
    if not rank.isdigit() or os.environ.get("WORLD_SIZE", "1") == "1" or name not in ("auto", "cuda"):
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{int(rank) % count}" if count else name


def check_network(weights: str | None, model: str | None) -> str | None:
    """Check `--weights` and `--model` before anything is loaded. Return the network's full name, if it is given."""
    if weights is None and model is None:
        raise UsageError(
            "no network is given; add --weights FILE for trained weights, "
            "or --model NAME to try the pipeline with random ones"
        )
    from hyperseg.models import CheckpointError, model_config
    from hyperseg.models.hub import hub_name, is_hub_name
    from hyperseg.models.released import named_network, names_hint, released_file

    with user_errors(ValueError, prefix="--model: ", to=UsageError):
        name = None if model is None else model_config(model).name
    if weights is not None and is_hub_name(weights):
        with user_errors(CheckpointError, prefix="--weights: ", to=UsageError):
            hub_name(weights)
    elif weights is not None and not os.path.exists(weights):
        network = named_network(weights)
        if network is None:
            raise UserError(
                f"there is no file or folder {weights}; "
                "--weights takes an official .pth, a .safetensors, a folder that hyperseg.save wrote, "
                f"hf-hub:OWNER/NAME, or a name: {names_hint(weights)}"
            )
        if name not in (None, network):
            raise UsageError(f"--weights {weights} is the network {network}, but --model is {name}; leave --model out")
        with user_errors(CheckpointError, prefix="--weights: "):
            released_file(network)
    return name


def load_network(weights: str | None, name: str | None) -> "HyperSeg":
    """Return the network for `--weights` and the name that `check_network` returned, in eval mode.

    Without weights the network gets random ones, the same on each call.
    """
    import torch

    import hyperseg

    if weights is None:
        assert name is not None
        with torch.random.fork_rng(devices=[]):
            return hyperseg.synthesize_weights(hyperseg.create_model(name)).eval()
    try:
        return hyperseg.load(weights, name=name)
    except (ValueError, OSError) as error:
        raise UserError(first_lines(error) + _advice(weights, name)) from None


def _advice(weights: str, name: str | None) -> str:
    """Return what to do about `--model` if the weights cannot be loaded as the network of this name."""
    import hyperseg
    from hyperseg.models.released import named_network

    if not os.path.exists(weights) and named_network(weights) is not None:
        return f". To try the pipeline without them: --model {weights} instead of --weights, with random weights"
    if name is None or not os.path.exists(weights):  # the name of a network is not tried again
        return ""
    try:
        own = hyperseg.load(weights).config.name
    except (ValueError, OSError):  # it is damaged, or does not name its network
        return f" (--model says that it is {name}; give the network that it was trained as)"
    return f" (the file says that it is {own}; leave --model out)"


def first_lines(error: Exception) -> str:
    """Shorten the message of a checkpoint that does not fit, which lists all its keys, to the first three."""
    lines = str(error).splitlines() or [type(error).__name__]
    first, rest = lines[0], [line.strip() for line in lines[1:4]] + ["..."] * (len(lines) > 4)
    return f"{first} {'; '.join(rest)}".strip()


@contextlib.contextmanager
def without_downloads(offline: bool) -> Iterator[None]:
    """Turn downloads off, also those of timm, if `offline`: for this process and those that it starts."""
    names = ("HYPERSEG_OFFLINE", "HF_HUB_OFFLINE") if offline else ()
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_output_file(option: str, file: str) -> None:
    """Check before anything is computed that a file can be written, or written anew. Its folder need not exist."""
    if os.path.isdir(file) or file.endswith(("/", os.sep)):
        raise UserError(f"{option} {file} is a folder; give the name of a file")
    nearest = os.path.dirname(os.path.abspath(file))
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise UserError(f"{option} {file}: {nearest} is a file; give a name in a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{option} {file}: this user may not write to {nearest}; give another name")


def _check_folder(folder: str) -> None:
    """Create a folder that is not there, and remove it again: rights do not say all, as in /proc or on a full disk."""
    missing = []
    path = os.path.abspath(folder)
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: it cannot be created ({reason(error)}); give another --output") from None
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # another process has begun to write there
                os.rmdir(path)


def check_outputs(folder: str, inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Check before anything is computed that `--output` can be written to and that no input would be overwritten."""
    nearest = os.path.abspath(folder)
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise UserError(f"--output {folder}: {nearest} is a file; give a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--output {folder}: this user may not write to {nearest}; give another --output")
    _check_folder(folder)
    resolved = {os.path.realpath(path) for path in inputs}
    for file in outputs:
        if os.path.realpath(file) in resolved:
            name = printable(file)
            raise UserError(f"{name} is one of the input images and would be overwritten; give another --output")
