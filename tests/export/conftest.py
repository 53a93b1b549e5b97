"""A small network that tests of all formats export."""

import pytest

import hyperseg
from hyperseg.models import synthesize_weights


@pytest.fixture(scope="package")
def small():
    return synthesize_weights(hyperseg.create_model("hyperseg-s-camvid", encoder="test_efficientnet").eval())
