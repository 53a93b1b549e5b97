import pytest

from tests.predict.fixtures import true_network
from tests.serve.serving import build_engine, serving

__all__ = ["true_network"]

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="package")
def known_engines():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hyperseg.predict.predictor.build_engine", build_engine)
        yield


@pytest.fixture(scope="module")
def site(known_engines):
    """A running server with usual limits, but no limit of the rate."""
    with serving() as running:
        yield running
