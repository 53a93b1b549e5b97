"""Show segmentation in the browser: drop a photo or open the camera; programs POST images to /api/segment.

The page and the JSON endpoint have one address, http://127.0.0.1:8000 by default, which only this machine reaches.
`--host 0.0.0.0` lets others in; put a proxy with encryption and passwords in front of it. Images are kept in memory
while they are worked on, and not written anywhere. Ctrl-C ends it.

It needs two more packages: pip install 'hyperseg[serve]'.

Exit codes: 0: ended by Ctrl-C. 1: it could not start. 2: the command line is not valid.
"""

import argparse
import sys
import warnings
from importlib.util import find_spec

from hyperseg._files import printable
from hyperseg.cli import _common
from hyperseg.cli._common import UsageError, UserError, user_errors
from hyperseg.cli._output import write_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add, default, text = parser.add_argument, "(default: %(default)s)", _common.text
    several = "; several times for several networks, the first is the default"
    add("--weights", metavar="FILE", type=text, action="append", help=f"trained weights: {_common.WEIGHTS}{several}")
    add("--model", metavar="NAME", type=text, action="append", help=f"{_common.MODEL}{several}")
    add("--offline", action="store_true", help=_common.OFFLINE)
    add("--host", metavar="ADDRESS", type=text, default="127.0.0.1", help=f"the address to listen at {default}")
    add("--port", metavar="PORT", type=_port, default=8000, help=f"its port; 0 takes any that is free {default}")
    add("--size", type=text, default="fit", help=f"{_SIZE} {default}")
    add("--device", type=text, default="auto", help=f"{_common.DEVICE} {default}")
    dtypes = ("float32", "float16", "bfloat16")
    add("--dtype", choices=dtypes, default="float32", help=f"the precision that the network runs in {default}")
    hosts = "a name by which the server may be asked, besides localhost and addresses; several times for several names"
    add("--allow-host", metavar="NAME", type=text, action="append", default=[], help=hosts)
    proxy = "a proxy on this machine passes requests on: take clients' addresses from its X-Forwarded-For header"
    add("--proxy", action="store_true", help=proxy)
    add("--max-mib", metavar="N", type=_common.count, default=20, help=f"largest file that is taken, in MiB {default}")
    pixels = f"largest image that is decoded, in millions of pixels {default}"
    add("--max-megapixels", metavar="N", type=_common.count, default=16, help=pixels)
    add("--queue", metavar="N", type=_common.count, default=8, help=f"images that wait or are being done {default}")
    add("--rate", metavar="N", type=_common.count, default=60, help=f"requests per second of one client {default}")
    add("--timeout", metavar="SECONDS", type=_common.count, default=60, help=f"longest time for a result {default}")


_SIZE = (
    "the size that the network runs at where a request gives none: fit (at most about as many pixels as the published "
    "network was tested with, and as the image has, in its shape), model (the size that it was tested at), native (the "
    "image's own) or HEIGHTxWIDTH"
)


def run(args: argparse.Namespace) -> int:
    """Run the verb; return the exit code."""
    _check_packages()
    sources = _sources(args)

    from hyperseg.ops import BackendError, named_backend
    from hyperseg.serve import Limits, Network, Worker, create_app
    from hyperseg.serve.errors import RequestError
    from hyperseg.serve.requests import parse_size
    from hyperseg.serve.run import bind, server

    with user_errors(BackendError, prefix="HYPERSEG_BACKEND: "):
        named_backend()
    with user_errors(RequestError, prefix="--size: ", to=UsageError):
        parse_size(args.size)
    device = _common.pick_device(args.device)
    limits = Limits(
        body_bytes=args.max_mib * 2**20,
        pixels=args.max_megapixels * 1_000_000,
        queue=args.queue,
        rate=float(args.rate),
        result_seconds=float(args.timeout),
    )
    try:  # before the networks are loaded, which takes a while
        listening = bind(args.host, args.port)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen at {args.host} port {args.port} ({reason}); give another --port or --host"
        ) from None
    with listening:
        networks: list[Network] = []
        for weights, model in sources:
            network = _common.load_network(weights, model)
            label = _unique(network.config.name, [other.name for other in networks])
            if weights is None:
                _say(f"no --weights: {label} runs with random weights, so its labels mean nothing")
            networks.append(Network(label, network, weights is None))
        with user_errors(ValueError):
            worker = Worker(networks, device, args.dtype, limits)
        with user_errors(RequestError):
            worker.warm_up(networks[0].name)
        address = _address(args.host, listening.getsockname()[1])
        if not _is_local(args.host):
            _say(f"others on the network reach this server at {args.host}: there are no passwords and no encryption")
        print(f"hyperseg serve: {address} (Ctrl-C ends it)", flush=True)
        warnings.filterwarnings("ignore", module=r"PIL\.")  # each image is either right or refused with an error
        try:
            server(create_app(worker, args.size, args.allow_host), limits, args.proxy).run(sockets=[listening])
        except KeyboardInterrupt:
            pass
        finally:
            worker.close()
    return 0


def _check_packages() -> None:
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} must be installed: pip install 'hyperseg[serve]'")


def _sources(args: argparse.Namespace) -> list[tuple[str | None, str | None]]:
    """Return weights and network name of each network, checked before anything is loaded."""
    models = args.model or []
    if not args.weights:
        return [(None, _common.check_network(None, model)) for model in models or [None]]
    if len(models) > 1:
        raise UsageError(
            f"--model is given {len(models)} times; with --weights it names the network of files that do not, once"
        )
    model = models[0] if models else None
    return [(weights, _common.check_network(weights, model)) for weights in args.weights]


def _unique(label: str, taken: list[str]) -> str:
    number = 2
    unique = label
    while unique in taken:
        unique, number = f"{label} {number}", number + 1
    return unique


def _address(host: str, port: int) -> str:
    shown = "localhost" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _is_local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _port(value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 5 or int(value) > 65535:
        raise argparse.ArgumentTypeError(f"{value!r} is no port; give a number from 0 to 65535")
    return int(value)


def _say(message: str) -> None:
    write_line(f"hyperseg serve: {printable(message)}", sys.stderr)
