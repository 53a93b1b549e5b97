"""`hyperseg predict`."""

import json as json_format
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hyperseg.cli import UserError

if TYPE_CHECKING:
    import torch

    from hyperseg.models import HyperSeg
    from hyperseg.predict import LabelSink, OverlaySink, Prediction, Segmenter, Source


def predict(
    photos: list[str],
    weights: str | None = None,
    model: str | None = None,
    output: str = "predictions",
    size: str = "native",
    device: str = "auto",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    alpha: float = 0.6,
    overlay: bool = True,
    overlay_format: Literal["png", "jpg"] = "png",
    legend: bool = False,
    json: bool = False,
) -> int:
    """Segment photos: writes a label PNG and an overlay of each, and lists the share of each class.

    The labels go to OUTPUT/<stem>_labels.png, where a pixel's palette index is its class, and the overlay to
    OUTPUT/<stem>_overlay.png. Photos are turned upright first, as their EXIF orientation says.

    Args:
        photos: Image files, folders of images, or quoted patterns such as 'photos/*.jpg'.
        weights: Trained weights: an official .pth file, a .safetensors file, or a folder that hyperseg.save wrote.
        model: A network by name, such as hyperseg-m, instead of weights. Its weights are then random and the labels
            mean nothing: it only tries the pipeline. Beside --weights: the network of a file that does not say.
        output: The folder to write to.
        size: The size the network works at: native (each photo's own), model (the one the published network was tested
            at) or HEIGHTxWIDTH. Photos are resized to it, and the scores back before the labels are taken.
        device: cpu, cuda, cuda:1, ... or auto: the GPU if there is one.
        dtype: The numbers to compute in.
        alpha: Opacity of the colours in the overlay, from 0 to 1.
        overlay: Write the label PNGs only.
        overlay_format: The kind of file for overlays.
        legend: Add a strip to the overlay that names the classes present.
        json: Print one JSON document instead of tables.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"--alpha is {alpha}; give 0 (photo only) to 1 (colours only)")
    if weights is None and model is None:
        raise UserError(
            "no network is given; add --weights FILE for trained weights, "
            "or --model NAME to try the pipeline with random ones"
        )

    from hyperseg.predict import ImageSource, LabelSink, OverlaySink, Segmenter, find_images, parse_size

    try:
        parse_size(size, resolution=(1, 1))  # a misspelt size is better told before the network is loaded
        paths = find_images(photos)
    except ValueError as error:
        raise UserError(str(error)) from None
    place = _device(device)
    failures: list[str] = []

    def fail(message: str) -> None:
        failures.append(message)
        _tell(message)

    source = ImageSource(paths, on_error=lambda error: fail(str(error)))
    sinks: dict[str, LabelSink | OverlaySink] = {"labels": LabelSink(output)}
    if overlay:
        sinks["overlay"] = OverlaySink(output, alpha, legend, overlay_format)
    _check_outputs(output, paths, [sink.path(name) for sink in sinks.values() for name in source.names])
    for path, name in zip(paths, source.names, strict=True):
        if name != path.stem:
            _tell(f"several photos are called {path.stem}; the outputs of {path} are called {name}")

    network = _load(weights, model)
    working_size = parse_size(size, network.config.resolution)
    try:
        segmenter = Segmenter(network, working_size, place, dtype)
    except ValueError as error:
        raise UserError(str(error)) from None

    records = []
    for prediction, files in _run(source, segmenter, sinks, fail):
        record = _record(prediction, files, working_size)
        records.append(record)
        if not json:
            _print(_table(record), sys.stdout)
    if json:
        about = {"model": network.config.name, "weights": weights, "random_weights": weights is None, "size": size}
        print(json_format.dumps({**about, "images": records, "errors": failures}, indent=2))
    return 1 if failures else 0


def _run(
    source: "Source",
    segmenter: "Segmenter",
    sinks: "dict[str, LabelSink | OverlaySink]",
    fail: Callable[[str], None],
) -> "Iterator[tuple[Prediction, dict[str, str]]]":
    """Yields each prediction and the files written for it; a photo that does not fit in memory goes to `fail`."""
    from tqdm import tqdm

    from hyperseg.predict import Prediction
    from hyperseg.runtime import EngineError
    from hyperseg.runtime.device import is_out_of_memory

    hidden = len(source) < 2 or not sys.stderr.isatty()
    for frame in tqdm(source, desc="predict", unit="photo", disable=hidden, file=sys.stderr):
        height, width = frame.image.shape[:2]
        try:
            labels = segmenter(frame.image)
        except EngineError as error:
            raise UserError(str(error)) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fail(f"{frame.path} ({height}x{width}) does not fit in memory; try --size model")
            continue
        prediction = Prediction(frame, labels, segmenter.label_set)
        try:
            files = {kind: str(sink.write(prediction)) for kind, sink in sinks.items()}
        except OSError as error:
            raise UserError(f"the outputs of {frame.path} could not be written: {error}") from None
        yield prediction, files


def _load(weights: str | None, model: str | None) -> "HyperSeg":
    """The network in eval mode: with random weights if there are no others, which it says on stderr."""
    import torch

    import hyperseg
    from hyperseg.models import model_config

    try:
        name = None if model is None else model_config(model).name
    except ValueError as error:
        raise UserError(str(error)) from None
    if weights is None:
        _tell(
            f"no --weights: {name} runs with random weights, so its labels mean nothing; this only tries the pipeline"
        )
        with torch.random.fork_rng(devices=[]):
            return hyperseg.synthesize_weights(hyperseg.create_model(name)).eval()

    path = Path(weights)
    if not path.exists():
        raise UserError(
            f"there is no file or folder {weights}; "
            "--weights takes an official .pth, a .safetensors or a folder that hyperseg.save wrote"
        )
    try:
        if not _is_own_format(path):
            return hyperseg.load_official(path, name=name).eval()
        network = hyperseg.load(path).eval()
    except (ValueError, OSError) as error:
        advice = "" if name is None else f" (--model says that it is {name}; leave it out if that is not sure)"
        raise UserError(_first_lines(error) + advice) from None
    if name not in (None, network.config.name):
        raise UserError(f"{weights} holds {network.config.name}, not the {name} of --model; leave --model out")
    return network


def _first_lines(error: Exception) -> str:
    """A checkpoint that does not fit lists all its keys; a few show what is wrong."""
    lines = str(error).splitlines() or [type(error).__name__]
    first, rest = lines[0], [line.strip() for line in lines[1:4]] + ["..."] * (len(lines) > 4)
    return f"{first} {'; '.join(rest)}".strip()


def _is_own_format(path: Path) -> bool:
    """A folder or a safetensors file, whatever it is called: that starts with a length in 8 bytes and then JSON."""
    if path.is_dir() or path.suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _device(name: str) -> "torch.device":
    from hyperseg.runtime.device import pick_device

    try:
        return pick_device(name)
    except ValueError as error:
        raise UserError(f"--device {name}: {error}") from None


def _check_outputs(output: str, photos: Sequence[Path], files: Sequence[Path]) -> None:
    """Before anything is computed: the folder can be one, and no photo would be written over."""
    if Path(output).exists() and not Path(output).is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    inputs = {path.resolve() for path in photos}
    for file in files:
        if file.resolve() in inputs:
            raise UserError(f"{file} is one of the photos and would be written over; give another --output")


def _record(prediction: "Prediction", files: dict[str, str], working_size: tuple[int, int] | None) -> dict[str, Any]:
    height, width = prediction.labels.shape
    return {
        "image": str(prediction.frame.path),
        "height": height,
        "width": width,
        "network_size": list(working_size or (height, width)),
        **files,
        "classes": [vars(share) for share in prediction.shares],
    }


def _table(record: dict[str, Any]) -> str:
    from hyperseg.predict.legend import percent

    lines = [f"{record['image']} ({record['height']}x{record['width']}) -> {record['labels']}"]
    names = max(len(share["name"]) for share in record["classes"])
    lines += [f"  {share['name']:<{names}}  {percent(share['share']):>7}" for share in record["classes"]]
    return "\n".join(lines)


def _tell(message: str) -> None:
    """A line on stderr, as UserError would print it but without ending the run."""
    _print(f"hyperseg predict: {message}", sys.stderr)


def _print(text: str, stream: Any) -> None:
    from tqdm import tqdm

    tqdm.write(text, file=stream)  # keeps out of the progress bar's line
