"""Show which parts are built, which backend runs each operator, and the reasons against the other backends.

With --network, show instead what a network is: its encoder's stages, the signal, the levels of the decoder with their
patches and generated weights, and the parameters and FLOPs of each part, for one image in inference. Nothing runs.

With --network and --explain, run it, and show each operator call of a frame instead: which backend ran it and why not
another, bytes, FLOPs, the measured time, and the shortest time that this machine allows. A network by name gets random
weights, which do not change times.
"""

import argparse
import json
import os
from typing import TYPE_CHECKING

from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, UserError, user_errors

if TYPE_CHECKING:
    from hyperseg.models import HyperSeg, HyperSegConfig

_EXPLAIN = ("explain", "device", "dtype", "mode")
_NETWORK = (
    "a network by name, such as hyperseg-m, which needs no weights; or a network of your own: an official .pth file, a "
    ".safetensors file, a folder that hyperseg.save wrote, or hf-hub:OWNER/NAME, which is downloaded once"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--verify",
        action="store_true",
        help="first compare every kernel that is chosen here with the reference again, in child processes, and print a "
        "table; exit code 1 if one is wrong",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON, for a bug report")
    add = parser.add_argument_group("a network").add_argument
    add("--network", metavar="NAME", type=_common.text, help=_NETWORK)
    add("--size", metavar="HxW", type=_sides, help="size of the image (default: the published one)")
    add("--svg", metavar="FILE", type=_common.text, help="also draw it: write an SVG file")
    add("--explain", action="store_true", help="run it, and show the calls of a frame with their backends and times")
    add("--device", metavar="DEVICE", type=_common.text, help=f"with --explain: {_common.DEVICE} (default: auto)")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="with --explain (default: float32)")
    add("--mode", choices=("eager", "compile", "cudagraph"), help="with --explain: of the engine (default: eager)")


def run(args: argparse.Namespace) -> int:
    """Run the verb; return the exit code."""
    if args.network is not None:
        return _show_network(args)
    for option in ("size", "svg", *_EXPLAIN):
        if getattr(args, option):
            raise UsageError(f"--{option} is about a network; add --network NAME, such as --network hyperseg-m")
    from hyperseg.info import main

    return main(args.verify, args.json)


def _show_network(args: argparse.Namespace) -> int:
    if args.verify:
        raise UsageError("--verify is about kernels, not about a network; leave one of --verify and --network out")
    if args.explain:
        return _explain(args)
    for option in _EXPLAIN[1:]:
        if getattr(args, option) is not None:
            raise UsageError(f"--{option} is about running a network; add --explain")
    if args.svg is not None:
        _common.check_output_file("--svg", args.svg)
    config = _configuration(args.network)
    from hyperseg.cli._network_svg import network_svg
    from hyperseg.cli._network_text import network_lines
    from hyperseg.models.describe import describe

    network = describe(config, args.size)
    if args.json:
        print(json.dumps(network.to_dict(), indent=1))
    else:
        for line in network_lines(network):
            print(line)
    if args.svg is not None:
        from hyperseg._files import atomic_write

        with user_errors(OSError, prefix=f"--svg {args.svg}: "), atomic_write(args.svg) as temporary:
            temporary.write_text(network_svg(network), encoding="utf-8")
    return 0


def _explain(args: argparse.Namespace) -> int:
    """Run a network and print the calls of a frame."""
    if args.svg is not None:
        raise UsageError("--svg draws what a network is; leave one of --svg and --explain out")
    device = _common.pick_device(args.device or "auto")
    model = _network(args.network)
    import torch

    from hyperseg.runtime import EngineError, build_engine, measure_rates

    dtype = getattr(torch, args.dtype or "float32")
    size = args.size or model.config.resolution
    with user_errors(EngineError):
        engine = build_engine(model, size, dtype, device, mode=args.mode or "eager", check=False)
        explanation = engine.explain(rates=measure_rates(device, dtype) if device.type == "cpu" else None)
    print(json.dumps(explanation.to_dict(), indent=1) if args.json else explanation)
    return 0


def _network(network: str) -> "HyperSeg":
    """Return the network for `--network`; one by name has random weights."""
    from hyperseg.models import load
    from hyperseg.models.hub import is_hub_name

    if os.path.exists(network) or is_hub_name(network):
        try:
            return load(network)
        except (ValueError, OSError) as error:
            raise UserError(f"--network: {_common.first_lines(error)}") from None
    return _common.load_network(None, _configuration(network).name)


def _configuration(network: str) -> "HyperSegConfig":
    """Return the configuration for `--network`. That of a published network needs no weights."""
    from hyperseg.models import load, model_config
    from hyperseg.models.hub import is_hub_name
    from hyperseg.models.released import named_network

    if os.path.exists(network) or is_hub_name(network):
        try:
            return load(network, check_finite=False).config
        except (ValueError, OSError) as error:
            raise UserError(f"--network: {_common.first_lines(error)}") from None
    if named_network(network) is None and (os.path.dirname(network) or os.path.splitext(network)[1]):
        raise UserError(f"--network: there is no file or folder {network}")
    with user_errors(ValueError, prefix="--network: ", to=UsageError):
        return model_config(network)


def _sides(text: str) -> tuple[int, int]:
    from hyperseg._text import parse_sides

    sides = parse_sides(text)
    if sides is None or max(sides) > 16384:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give HEIGHTxWIDTH such as 720x1280")
    return sides
