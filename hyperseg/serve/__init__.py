"""Segmentation over HTTP: a page for the browser and a JSON endpoint, one process, local by default.

    from hyperseg.serve import Limits, Network, Worker, create_app

    worker = Worker([Network("m", hyperseg.load("my-network"))], device="auto")
    app = create_app(worker)          # an ASGI application, for uvicorn or a test

A request carries the bytes of an image and names, nothing else: no path or address in it is ever opened. One thread
does the work, one image at a time; `Limits` bounds what waits for it. `guard.py` is about who may ask, `requests.py`
about what, `worker.py` does it. It needs the packages starlette and uvicorn: ``pip install 'hyperseg[serve]'``.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from hyperseg.serve.limits import Limits
from hyperseg.serve.worker import Network, Worker

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["Limits", "Network", "Worker", "create_app"]


def create_app(worker: Worker, size: str = "fit", hosts: Collection[str] = ()) -> "Starlette":
    """Return the ASGI application, see :func:`hyperseg.serve.app.create_app`."""
    from hyperseg.serve.app import create_app  # imports starlette

    return create_app(worker, size, hosts)
