"""The font of texts in pictures: one that has the letters."""

import pytest

from hyperseg.data import fonts


def pixels(font, text):
    return bytes(font.getmask(text))


def test_ascii_looks_alike_everywhere(monkeypatch):
    monkeypatch.setattr(fonts, "_of_system", pytest.fail)
    assert fonts.font_for("road 3%", 14).getname() == ("Aileron", "Regular")


def test_letters_that_the_default_font_lacks():
    if not any(fonts._of_system(name, 14) for name in fonts._OF_SYSTEMS[:3]):
        pytest.skip("needs a font of the system")
    font = fonts.font_for("Fußgänger", 14)
    assert pixels(font, "ä") != pixels(font, "\uffff")
    assert pixels(font, "ä") != pixels(font, "ß")


def test_no_font_of_the_system(monkeypatch):
    monkeypatch.setattr(fonts, "_OF_SYSTEMS", ("there is no such font.ttf",))
    assert fonts.font_for("Fußgänger", 14).getname() == ("Aileron", "Regular")
