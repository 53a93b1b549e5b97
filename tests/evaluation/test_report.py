"""The HTML report: complete, escaped, self-contained, within its size, and written all at once."""

import base64
import io
import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hyperseg.evaluation import Evaluation
from hyperseg.evaluation.report import GalleryImage, charts, gallery, markup, page, read_report, write_report

try:
    import resource
except ImportError:  # not on Windows
    resource = None

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = [
    "<b>wall</b>",
    "a \"quoted\" & 'one'",
    "</script><script>alert(1)</script>",
    "🚗 car",
    "שלום",
    "a\n\x1b[31mb",
]


class Page(HTMLParser):
    """Elements with their attributes and text; checks that elements are closed in the order in which they open."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], {}
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        element = (tag, dict(attrs))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, index in self.open:
            self.texts[index] = self.texts.get(index, "") + data

    def all(self, tag, kind=None):
        """(attributes, text) of each element, in order; with `kind`, of this class."""
        return [
            (attrs, self.texts.get(index, ""))
            for index, (name, attrs) in enumerate(self.elements)
            if name == tag and (kind is None or kind in (attrs.get("class") or "").split())
        ]

    def text(self, tag="body"):
        return "".join(text for _, text in self.all(tag))


def mean(values):
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def document(confusion, names=None, others=None, **changes):
    """The document of an evaluation with this confusion matrix."""
    k = len(confusion)
    names, others = names or [f"class {i}" for i in range(k)], others or [0] * k
    labelled = [sum(row) + other for row, other in zip(confusion, others, strict=True)]
    right = [confusion[i][i] for i in range(k)]
    union = [labelled[i] + sum(row[i] for row in confusion) - right[i] for i in range(k)]
    iou = [right[i] / union[i] if union[i] else None for i in range(k)]
    accuracy = [right[i] / labelled[i] if labelled[i] else None for i in range(k)]
    pixel_accuracy = sum(right) / sum(labelled) if sum(labelled) else None

    def scores(iou, accuracy):
        return {
            "miou": mean(iou),
            "per_class": iou,
            "pixel_accuracy": pixel_accuracy,
            "class_accuracy": mean(accuracy),
            "accuracy_per_class": accuracy,
        }

    found = {
        "hyperseg": "0.1.0",
        "created": "2026-11-29T10:20:31+00:00",
        "data": {
            "name": "folder",
            "split": "val",
            "form": "images/val and masks/val",
            "root": "/data/mine",
            "images": 3,
            "manifest_hash": "ab" * 32,
        },
        "classes": [{"name": n, "color": [i % 256, 255 - i, 40]} for i, n in enumerate(names)],
        "ignore_index": 255,
        "settings": {
            "model": "hyperseg-m",
            "weights": "best.pth",
            "scales": [0.5, 1.0],
            "flip": True,
            "size": None,
        },
        "confusion": confusion,
        "other_predictions": others,
        "protocols": {
            "standard": scores(iou, accuracy),
            "official": scores([v or 0.0 for v in iou], [v or 0.0 for v in accuracy]),
        },
        "pixel_accuracy": pixel_accuracy,
        "boundary_iou": {"miou": 0.3947, "per_class": iou, "ratio": 0.02, "distances": {"360x480": 12}},
        "images": [
            {"name": "b", "miou": 0.25, "pixel_accuracy": 0.5, "labelled_pixels": 1000},
            {"name": "a", "miou": 1.0, "pixel_accuracy": 1.0, "labelled_pixels": 12345},
            {"name": "void", "miou": None, "pixel_accuracy": None, "labelled_pixels": 0},
        ],
        "errors": [],
        "skipped": [],
    }
    return found | changes


# Class 1 is absent, class 2 is predicted but not labelled, 3 pixels of class 3 are predicted as no class.
EXAMPLE = [[700, 0, 300, 0], [0, 0, 0, 0], [0, 0, 0, 0], [97, 0, 0, 900]]


def example(**changes):
    return document(EXAMPLE, others=[0, 0, 0, 3], **changes)


def picture(name="a", group="best", size=(24, 32), seed=0, classes=4):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, size, dtype=np.uint8)
    labels[:4] = 255
    predictions = generator.integers(0, classes, size, dtype=np.uint8)
    return GalleryImage(name, generator.integers(0, 256, (*size, 3), dtype=np.uint8), labels, predictions, 0.25, group)


def rows(found: Page, kind: str) -> list[list[str]]:
    """The cells of the body of the first table of this class."""
    (table,) = [i for i, (tag, attrs) in enumerate(found.elements) if tag == "table" and kind in attrs["class"].split()]
    result: list[list[str]] = []
    inside = False
    for index, (tag, _) in enumerate(found.elements[table + 1 :], table + 1):
        if tag == "table":
            break
        inside = tag == "tbody" or (inside and tag not in ("tfoot", "thead"))
        if inside and tag == "tr":
            result.append([])
        elif inside and tag in ("td", "th"):
            result[-1].append(found.texts.get(index, ""))
    return result


def test_main_numbers_name_their_protocol():
    found = Page(page.report_page(example()))
    cards = [text for _, text in found.all("div", "card")]
    iou = 700 / 1097, 900 / 1000
    assert cards[0].startswith(f"mIoU standard{100 * sum(iou) / 3:.2f}\xa0%Mean over the 3 of 4 classes")
    assert cards[1].startswith(f"mIoU official{100 * sum(iou) / 4:.2f}\xa0%Mean over all 4 classes")
    assert cards[2].startswith("Boundary IoU standard, ratio 0.0239.47\xa0%")
    assert "12 px at 360x480" in cards[2]
    assert cards[3].startswith("Pixel accuracy either protocol80.00\xa0%")


def test_table_of_classes():
    found = rows(Page(page.report_page(example())), "classes")
    assert [row[0] for row in found] == ["class 0", "class 1", "class 2", "class 3"]
    numbers = [row[1:2] + row[3:] for row in found]  # the bars have no text
    assert numbers == [
        ["50.0", "63.8", "63.8", "63.8", "70.0"],
        ["-", "-", "0.0", "-", "-"],
        ["-", "0.0", "0.0", "0.0", "-"],
        ["50.0", "90.0", "90.0", "90.0", "90.0"],
    ]


def test_confusion_matrix_has_counts_and_a_column_for_other_predictions():
    found = Page(page.report_page(example()))
    cells = rows(found, "confusion")
    assert cells[0] == ["class 0", "70", "", "30", "", ""]
    assert cells[1] == ["class 1", "", "", "", "", ""]
    assert cells[3] == ["class 3", "10", "", "", "90", "·"]
    titles = [attrs["title"] for attrs, _ in found.all("td") if "label class" in attrs.get("title", "")]
    assert titles == [
        "label class 0, predicted class 0: 700 pixels, 70.0 % of the label",
        "label class 0, predicted class 2: 300 pixels, 30.0 % of the label",
        "label class 3, predicted class 0: 97 pixels, 9.7 % of the label",
        "label class 3, predicted class 3: 900 pixels, 90.0 % of the label",
        "label class 3, predicted no class: 3 pixels, 0.3 % of the label",
    ]


def test_largest_confusions():
    assert charts.largest_confusions(example()) == [(0, 2, 300, 0.3), (3, 0, 97, 0.097), (3, 4, 3, 0.003)]
    assert "No pixel is wrong" in charts.confusion_list(document([[5, 0], [0, 5]]))


def test_counts_beyond_32_bits_stay_exact():
    many = 2**53 + 1
    found = charts.confusion_table(document([[many, 1], [0, 1]]))
    assert f"{many:,} pixels, 100.0 %" in found
    assert ">99<" in found  # not 100: one pixel is wrong


def test_histogram_and_scores_of_images():
    found = Page(page.report_page(example()))
    bars = [attrs["title"] for attrs, text in found.all("i") if attrs.get("title", "").endswith("1 image")]
    assert bars == ["25 to 30 %: 1 image", "95 to 100 %: 1 image"]
    assert "1 image without a labelled pixel left out" in found.text()
    assert rows(found, "images") == [
        ["b", "25.0", "50.0", "1,000"],
        ["a", "100.0", "100.0", "12,345"],
        ["void", "-", "-", "0"],
    ]


def test_settings_and_command():
    command = "hyperseg eval --data folder --root '/data/mine'"
    found = Page(page.report_page(example(), command=command))
    settings = {row[0]: row[1] for row in rows(found, "settings")}
    assert settings["manifest hash"] == "ab" * 32
    assert settings["scales"] == "[0.5, 1.0]"
    assert (settings["flip"], settings["size"], settings["ignore index"]) == ("yes", "-", "255")
    assert found.text("pre") == command
    assert "The command is not known" in Page(page.report_page(example())).text()


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"model": "hyperseg-m", "weights": "best.pth"}, "Networkhyperseg-m, best.pth"),
        ({"model": "hyperseg-m", "weights": None, "random_weights": True}, "hyperseg-m, random weights, so"),
        ({"predictions": "masks", "prediction_ids": "classes"}, "Predictionsmasks"),
        ({}, "Network-"),
    ],
)
def test_what_was_scored(settings, shown):
    assert shown in Page(page.report_page(example(settings=settings))).text("dl")


@pytest.mark.parametrize("many", [2, 9])
def test_errors_and_skipped_files_are_prominent(many):
    errors = [f"/data/<{i}>.png is damaged" for i in range(many)]
    given = example(errors=errors, skipped=["1 PNG belongs to no image, such as x.png"])
    given["data"]["images"] += many
    ((attrs, text),) = Page(page.report_page(given)).all("details", "problems")
    assert f"{many} errors, 1 left out. The scores are those of 3 of {3 + many} images." in text
    assert all(error in text for error in errors)
    assert "such as x.png" in text
    assert ("open" in attrs) == (many < 5)
    assert not Page(page.report_page(example())).all("details", "problems")


def test_gallery_shows_four_pictures_of_each_image():
    images = [picture("r", "random"), picture("b", "best"), picture("w", "worst")]
    found = Page(page.report_page(example(), images))
    alts = [attrs["alt"] for attrs, _ in found.all("img") if attrs.get("src")]
    assert alts == [f"{kind} of {name}" for name in "wbr" for kind in gallery.KINDS]
    assert [text for _, text in found.all("h3")][-5:-1] == ["Colours", *gallery.GROUPS.values()]


def test_small_pictures_are_enlarged_without_mixing_classes():
    text = page.report_page(example(), [picture(size=(24, 32)), picture("b", size=(300, 400))])
    assert text.count('class="zoom small"') == text.count('class="zoom"') == 4


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(";base64,")[2], validate=True)))


def test_pictures_hold_labels_and_errors():
    shown = picture()
    found = Page(page.report_page(example(), [shown]))
    pictures = [decoded(attrs["src"]) for attrs, _ in found.all("img") if attrs.get("src")]
    assert [p.format for p in pictures] == ["JPEG", "PNG", "PNG", "PNG"]
    assert np.array_equal(np.asarray(pictures[1]), shown.predictions)
    assert np.array_equal(np.asarray(pictures[2]), shown.labels)
    colors = np.asarray(pictures[3].convert("RGB"))
    assert (colors[:4] == gallery.IGNORED).all()
    wrong = (shown.labels != shown.predictions)[4:]
    assert (colors[4:][wrong] == gallery.WRONG).all()
    assert (colors[4:][~wrong] == gallery.RIGHT).all()
    assert 0 < wrong.sum() < wrong.size


def test_a_prediction_outside_the_classes_is_wrong():
    labels, predictions = np.array([[0, 0, 255, 255]], np.uint8), np.array([[200, 0, 255, 0]], np.uint8)
    assert gallery.error_map(labels, predictions, 255).tolist() == [[1, 0, 2, 2]]


def test_without_pictures():
    found = Page(page.report_page(example()))
    assert "This report has no pictures." in found.text()
    assert not [attrs for attrs, _ in found.all("img") if "src" in attrs]


def test_pictures_shrink_to_the_budget():
    images = [picture(str(i), "random", (160, 320), i) for i in range(3)]
    table = page.label_table(example())
    large = gallery.gallery(images, table, 10**9)
    small = gallery.gallery(images, table, len(large) // 2)
    assert large.count("<img") == small.count("<img") == 12
    assert 'width="320" height="160"' in large
    assert 'width="320"' not in small
    assert len(small) <= len(large) // 2 + 2000  # the legend
    few = gallery.gallery(images, table, len(small) // 2)
    assert few.count("<img") < 12
    assert "left out to keep this page small" in few


def test_the_page_stays_below_ten_megabytes():
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    labels = generator.integers(0, 60, (1024, 1024), dtype=np.uint8)  # what compresses worst
    images = [GalleryImage(str(i), noise, labels, labels[::-1], 0.1, "worst") for i in range(3)]
    confusion = generator.integers(1, 10**9, (60, 60)).tolist()
    written = page.report_page(
        document(confusion, [f"a rather long class name, number {i}" for i in range(60)]), images
    )
    assert written.count("<img") == 1 + 4 * 3
    assert 2_000_000 < len(written.encode()) < 10_000_000


def test_shrunk_keeps_labels_and_shape():
    shown = picture(size=(100, 300)).shrunk(150)
    assert shown.image.shape == (50, 150, 3)
    assert set(np.unique(shown.labels)) <= {0, 1, 2, 3, 255}
    assert picture(size=(1, 3000)).shrunk(100).labels.shape == (1, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros((24, 31), np.uint8)}, "of a must have one size; got 24x31, 24x32"),
        ({"predictions": np.zeros((24, 32), np.int64)}, "labels are uint8"),
        ({"group": "middling"}, "no group 'middling'"),
    ],
)
def test_wrong_gallery_images(change, message):
    fields = {key: getattr(picture(), key) for key in ("name", "image", "labels", "predictions", "miou", "group")}
    with pytest.raises(ValueError, match=message):
        GalleryImage(**fields | change)


def test_every_string_is_escaped():
    k = len(HOSTILE)
    confusion = (np.eye(k, dtype=int) * 90 + 1).tolist()
    hostile = "</title></script><img src=x onerror=alert(1)>\"'&"
    given = document(
        confusion,
        HOSTILE,
        created=hostile,
        hyperseg=hostile,
        errors=[hostile],
        skipped=[hostile],
        settings={hostile: hostile, "model": hostile, "weights": [hostile]},
    )
    given["data"] |= dict.fromkeys(("name", "split", "form", "root", "manifest_hash"), hostile)
    given["boundary_iou"] |= {"ratio": hostile, "distances": {hostile: hostile}}
    for image in given["images"]:
        image["name"] = hostile
    found = Page(page.report_page(given, [picture(hostile, classes=k)], command=hostile))
    assert len(found.all("script")) == 2
    assert len(found.all("title")) == 1
    assert not [attrs for _, attrs in found.elements if any(key.startswith("on") for key in attrs)]
    assert not [attrs for attrs, _ in found.all("img") if attrs.get("src") == "x"]
    named = [row[0] for row in rows(found, "classes")]
    assert named == [*HOSTILE[:-1], "a\\n\\x1b[31mb"]
    assert hostile in found.text()


def test_names_in_any_script():
    assert markup.name("می‌خواهم") == "<bdi>می‌خواهم</bdi>"  # spelled with a zero-width non-joiner
    assert markup.text("a\u202eb\udce9") == "a\\u202eb\\xe9"


def test_names_that_are_not_utf8_are_written_and_read(tmp_path):
    given = example(errors=["caf\udce9.png is damaged"])
    path = write_report(Evaluation.from_document(given), [picture("caf\udce9")], tmp_path / "r.html")
    assert "caf\\xe9.png is damaged" in path.read_text(encoding="utf-8")
    assert read_report(path).document() == given


@pytest.mark.parametrize("k", [1, 2, 13, 60])
def test_the_page_needs_nothing_else(k):
    confusion = np.random.default_rng(k).integers(0, 1000, (k, k)).tolist()
    source = page.report_page(document(confusion), [picture(classes=1)])
    found = Page(source)
    for _, attrs in found.elements:
        for key in ("src", "href", "action", "data", "srcset", "poster", "background"):
            assert re.match(r"data:|#", attrs.get(key) or "#"), attrs
        assert "url(" not in (attrs.get("style") or "")
    style = found.text("style")
    assert "url(" not in style
    assert "@import" not in style
    script = found.all("script")[1][1]
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\(", script)
    assert "default-src 'none'" in [attrs.get("content", "") for attrs, _ in found.all("meta")][1]


def test_accessibility():
    found = Page(page.report_page(example(errors=["x"]), [picture()]))
    assert [attrs["lang"] for attrs, _ in found.all("html")] == ["en"]
    assert len(found.all("h1")) == len(found.all("main")) == 1
    assert all(attrs["alt"] or attrs["id"] == "zoom-picture" for attrs, _ in found.all("img"))
    buttons = [text.strip() or attrs.get("aria-label") or attrs["class"] for attrs, text in found.all("button")]
    assert buttons == ["zoom small"] * 4 + [*gallery.KINDS, "✕"]  # the alternative text of its picture names a "zoom"
    assert all(attrs.get("scope") for attrs, _ in found.all("th"))
    ids = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"][1:] for attrs, _ in found.all("a")]
    labels = [attrs["aria-labelledby"] for _, attrs in found.elements if "aria-labelledby" in attrs]
    assert links
    assert set(links) | set(labels) <= set(ids)
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_script_finds_its_elements():
    source = Page(page.report_page(example(), [picture()]))
    script = source.all("script")[1][1]
    ids = {attrs["id"] for _, attrs in source.elements if "id" in attrs}
    assert set(re.findall(r'getElementById\("([^"]+)"\)', script)) <= ids
    assert source.all("table", "confusion")
    assert len(source.all("button", "zoom")) == 4


def test_the_document_is_read_back(tmp_path):
    given = example(skipped=["</script>", "<!--", "a & b"])
    path = write_report(Evaluation.from_document(given), [picture()], tmp_path / "new" / "report.html")
    assert read_report(path).document() == given
    embedded = [text for attrs, text in Page(path.read_text()).all("script") if attrs.get("type")]
    assert [json.loads(text) for text in embedded] == [given]


def test_a_file_that_is_no_report(tmp_path):
    path = tmp_path / "x.html"
    path.write_text("<html></html>")
    with pytest.raises(ValueError, match=r"x\.html is no report of hyperseg eval"):
        read_report(path)


def test_nothing_labelled():
    given = document([[0, 0], [0, 0]], boundary_iou=None)
    given["protocols"]["official"] |= {"miou": None, "class_accuracy": None}
    given["images"] = [{"name": "x", "miou": None, "pixel_accuracy": None, "labelled_pixels": 0}]
    found = Page(page.report_page(given))
    assert [text for _, text in found.all("strong", "none")] == ["no labelled pixel"] * 3
    assert "Boundary IoU" not in "".join(text for _, text in found.all("div", "card"))
    assert "None" not in found.text("main")
    assert "nan" not in found.text("main").lower()


def test_without_scores_of_images_or_other_predictions():
    given = example(images=[])
    del given["other_predictions"]
    assert "No image was scored." in Page(page.report_page(given)).text()


def test_many_images_list_those_with_the_lowest_scores():
    images = [{"name": f"i{k}", "miou": 1 - k / 5000, "pixel_accuracy": 1.0, "labelled_pixels": 9} for k in range(3000)]
    found = Page(page.report_page(example(images=images)))
    listed = rows(found, "images")
    assert len(listed) == page.LISTED_IMAGES
    assert listed[0][0] == "i2999"
    assert "The 1,000 of 3,000 images that score lowest" in found.text()
    assert len(read_report_text(found)["images"]) == 3000


def read_report_text(found: Page) -> dict:
    return json.loads(found.all("script")[0][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confusion": [[1, 2], [3, 4]]}, r"4 classes, but its confusion matrix is \[2, 2\]"),
        ({"boundary_iou": None, "settings": {"ratio": float("nan")}}, "JSON"),
        ({"ignore_index": 2}, "ignores index 2"),
    ],
)
def test_a_document_that_contradicts_itself(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_report(Evaluation.from_document(example() | change), [], tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(resource is None, reason="needs limits of a process")
def test_a_full_disk_leaves_the_old_report(tmp_path):
    path = tmp_path / "r.html"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # longer files fail as they do on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            write_report(Evaluation.from_document(example()), [], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("2026-11-29T10:20:31Z", "29 November 2026, 10:20 UTC"),
        ("yesterday", "yesterday"),
        ("2026-01-02", "2 January 2026"),
    ],
)
def test_times(value, shown):
    assert shown in markup.moment(value)


@pytest.mark.parametrize("color", [[0, 0], [0, 0, 256], [-1, 0, 0]])
def test_wrong_colors(color):
    with pytest.raises(ValueError, match="each 0 to 255"):
        markup.css_color(color)
