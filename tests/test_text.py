"""Text for the whole project."""

import pytest

from hyperseg._text import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "image", "0 images"), (1, "class", "1 class"), (2, "class", "2 classes"), (1200, "pixel", "1,200 pixels")],
)
def test_counted(number, noun, text):
    assert counted(number, noun) == text
