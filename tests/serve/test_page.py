"""The page in headless Chromium: a photo is dropped, classes are read, networks switched, errors read, the camera used.

Skipped where there is no Chromium (`apt-get install chromium`, or its path in CHROMIUM) or no package playwright.
"""

import base64
import io
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from hyperseg.data import CAMVID
from hyperseg.serve import Limits
from tests.serve import serving as parts
from tests.serve.serving import as_file, labels_in, painted, serving

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

IMAGE, LABELS = painted(180, 240)

# A drop as a user makes it, which Playwright itself has no call for.
DROP = """([encoded, name, type]) => {
    const transfer = new DataTransfer();
    if (encoded === null) transfer.setData("text/plain", "https://example.org/photo.jpg");
    else transfer.items.add(new File([Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0))], name, { type }));
    dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def browser():
    fake = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *fake])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, site):
    """Open the page of a server; the test fails if it logs an error."""
    opened, errors = [], []

    def open_page(url=site.url, **options):
        context = browser.new_context(viewport={"width": 1200, "height": 800}, **options)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda entry: errors.append(entry.text) if "Security Policy" in entry.text else None)
        page.goto(url)
        page.wait_for_selector("#network option", state="attached")
        page.select_option("#size", "native")
        opened.append(context)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert errors == []


def drop(page, data: bytes | None, name: str = "street.png", kind: str = "image/png") -> None:
    page.evaluate(DROP, [None if data is None else base64.b64encode(data).decode(), name, kind])


def wait_for_result(page) -> None:
    page.wait_for_selector("#legend button")
    page.wait_for_selector("#busy", state="hidden")


def pixels(page) -> np.ndarray:
    """The canvas at its own size."""

    encoded = page.evaluate("document.getElementById('canvas').toDataURL('image/png').split(',')[1]")
    return np.array(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


def point_at(page, row: int, column: int) -> None:
    box = page.locator("#canvas").bounding_box()
    height, width = LABELS.shape
    x, y = box["x"] + (column + 0.5) * box["width"] / width, box["y"] + (row + 0.5) * box["height"] / height
    page.mouse.move(x, y)


def test_a_photo_is_dropped(open_page):
    page = open_page()
    drop(page, as_file(IMAGE))
    wait_for_result(page)
    # The image has the colours of its classes, so the overlay leaves it as it is.
    assert np.abs(pixels(page).astype(int) - IMAGE).max() <= 1
    for row, column in ((5, 5), (5, 230), (170, 5), (100, 100), (20, 131)):
        point_at(page, row, column)
        assert page.inner_text("#tip") == CAMVID.classes[LABELS[row, column]]
    entry = page.locator("#legend button", has_text="Car").inner_text().split()
    assert entry == ["Car", f"{100 * (LABELS == 8).mean():.1f}", "%"]
    assert "180×240 pixels" in page.inner_text("#facts")
    assert {"sending", "network", "drawing"} <= set(page.inner_text("#stages").split("\n"))


@pytest.mark.slow
def test_classes_are_hidden_and_shown(open_page):
    page = open_page()
    grey = np.full_like(IMAGE, 90)
    drop(page, as_file(grey))
    wait_for_result(page)
    name = page.locator("#legend .name").first.inner_text()
    covered = pixels(page)
    assert np.abs(covered.astype(int) - 90).max() > 5
    page.locator("#legend button").first.click()
    page.mouse.move(0, 0)
    assert np.abs(pixels(page).astype(int) - 90).max() <= 1
    assert page.get_attribute("#legend button", "aria-pressed") == "false"
    page.click("#all")
    assert np.array_equal(pixels(page), covered)
    page.locator("#opacity").fill("0")
    assert np.abs(pixels(page).astype(int) - 90).max() <= 1
    assert name in CAMVID.classes


@pytest.mark.slow
def test_arrow_keys_read_classes(open_page):
    page = open_page()
    drop(page, as_file(IMAGE))
    wait_for_result(page)
    page.focus("#canvas")
    page.keyboard.press("ArrowRight")
    assert page.text_content("#spoken") == CAMVID.classes[LABELS[90, 120]]
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
    assert page.text_content("#spoken") == CAMVID.classes[LABELS[90, 120 - 9 * 5]]
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")


def test_network_and_backend_are_switched(open_page):
    page = open_page()
    drop(page, as_file(IMAGE))
    wait_for_result(page)
    assert page.is_hidden("#warning")
    with page.expect_response(re.compile("network=voc")):
        page.select_option("#network", "voc")
    page.wait_for_selector("#busy", state="hidden")
    assert "voc has random weights: its labels mean nothing" in page.inner_text("#warning")
    with page.expect_response(re.compile("network=camvid")):
        page.select_option("#network", "camvid")
    parts.BACKENDS_SEEN.clear()
    with page.expect_response(re.compile("backend=reference")):
        page.select_option("#backend", "reference")
    assert parts.BACKENDS_SEEN[-1] == "reference"
    with page.expect_response(re.compile("size=48x64")) as reply:
        page.select_option("#size", "48x64")
    assert reply.value.status == 422
    page.wait_for_selector("#error:not([hidden])")
    assert "each side may have 64 to 4096 pixels" in page.inner_text("#error")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "name", "kind", "message"),
    [
        (b"hello", "notes.txt", "text/plain", "This file is not a photo that can be shown (it is text/plain)"),
        (as_file(IMAGE, "JPEG")[:50], "cut.jpg", "image/jpeg", "it is damaged, or of a kind that browsers do not"),
        (None, "", "", "That was a link or a text; drop the file of a photo"),
    ],
    ids=["text", "damaged", "link"],
)
def test_errors_are_shown_in_words(open_page, data, name, kind, message):
    page = open_page()
    drop(page, data, name, kind)
    page.wait_for_selector("#error:not([hidden])")
    assert message in page.inner_text("#error")
    page.click("#error button")
    assert page.is_hidden("#error")
    drop(page, as_file(IMAGE))
    wait_for_result(page)


@pytest.mark.slow
def test_the_mask_is_saved(open_page):
    page = open_page()
    drop(page, as_file(IMAGE))
    wait_for_result(page)
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "street_labels.png"
    with open(download.value.path(), "rb") as file:
        assert np.array_equal(labels_in(file.read()), LABELS)


@pytest.mark.slow
def test_large_photos_are_shrunk_before_they_are_sent(open_page, known_engines):
    with serving(Limits(rate=1e6, pixels=20_000)) as small:
        page = open_page(small.url)
        drop(page, as_file(IMAGE))
        wait_for_result(page)
        assert "122×163 pixels" in page.inner_text("#facts")


@pytest.mark.slow
def test_the_camera(open_page):
    page = open_page(permissions=["camera"])
    page.click("#camera")
    page.wait_for_selector('#total:has-text("fps")')
    assert page.inner_text("#camera") == "Stop the camera"
    page.locator("#legend button").first.click()  # while frames come
    page.wait_for_selector('#legend button[aria-pressed="false"]')
    page.keyboard.press("Escape")
    assert page.inner_text("#camera") == "Open the camera"
    assert page.inner_text("#facts").startswith("camera:")
    drop(page, as_file(IMAGE))
    page.wait_for_selector('#facts:has-text("street.png")')


@pytest.mark.slow
def test_a_phone(open_page):
    """Nothing is wider than the screen."""
    page = open_page(is_mobile=True, has_touch=True, color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 740})
    drop(page, as_file(IMAGE))
    wait_for_result(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.locator("#canvas").bounding_box()
    page.touchscreen.tap(box["x"] + 3, box["y"] + 3)
    assert page.inner_text("#tip") == CAMVID.classes[LABELS[0, 0]]


@pytest.mark.slow
def test_a_server_that_has_gone(open_page, known_engines):
    with serving(Limits(rate=1e6)) as gone:
        page = open_page(gone.url)
    drop(page, as_file(IMAGE))
    page.wait_for_selector("#error:not([hidden])")
    assert "The server cannot be reached" in page.inner_text("#error")
