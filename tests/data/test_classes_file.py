"""classes.yaml: what its keys mean, and messages that name the file and the key."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hyperseg.data import DataError
from hyperseg.data.classes_file import ClassesFile, read_classes


def read(folder: Path, text: str) -> ClassesFile:
    (folder / "classes.yaml").write_text(text)
    return read_classes(folder / "classes.yaml")


def decode(classes: ClassesFile, values: list[int], dtype: type = np.uint8) -> list[int]:
    buffer = io.BytesIO()
    Image.fromarray(np.array([values], dtype)).save(buffer, "PNG" if dtype != np.int32 else "TIFF")
    return classes.decoder(buffer.getvalue(), "mask").tolist()[0]


def test_a_list_of_names(tmp_path):
    classes = read(tmp_path, "classes: [road, car]\n")
    assert classes.label_set.classes == ("road", "car")
    assert classes.label_set.ignore_index == 255
    assert decode(classes, [0, 1, 255]) == [0, 1, 255]
    with pytest.raises(DataError, match="mask contains 2 "):
        decode(classes, [0, 1, 2])


def test_names_that_yaml_would_change(tmp_path):
    text = "classes: [on, no, yes, 010, 1:30, 1.50, 2024-01-01, null, 7, 'a b']"
    names = ("on", "no", "yes", "010", "1:30", "1.50", "2024-01-01", "null", "7", "a b")
    assert read(tmp_path, text).label_set.classes == names


@pytest.mark.parametrize(
    ("settings", "dtype", "values", "labels"),
    [
        ("ignore_index: 254", np.uint8, [0, 1, 254, 255], [0, 1, 255, 255]),
        ("ignore_index: -1", np.int32, [0, 1, -1], [0, 1, 255]),
        ("ignore_index: 65535", np.uint16, [0, 1, 65535], [0, 1, 255]),
        ("ignore_index: [7, 9]", np.uint8, [0, 1, 7, 9], [0, 1, 255, 255]),
        ("label_map: {0: ignore, 1: 0, 2: 1}", np.uint8, [0, 1, 2, 255], [255, 0, 1, 255]),
        ("label_map: {0: 255, 1: road, 2: car}", np.uint8, [0, 1, 2, 255], [255, 0, 1, 255]),
        ("label_map: {1: road, 2: car}\nignore_index: 0", np.uint8, [0, 1, 2], [255, 0, 1]),
        ("label_map: {0: road, 255: car}", np.uint8, [0, 255], [0, 1]),
        ("label_map: {7: road, 8: road, 26: car}", np.uint8, [7, 8, 26], [0, 0, 1]),
        ("label_map: {-5: road, 70000: car}", np.int32, [-5, 70000], [0, 1]),
        ("unknown: ignore", np.uint8, [0, 1, 9], [0, 1, 255]),
        ("unknown: refuse", np.uint8, [0, 1], [0, 1]),
        ("ignore_index:\ncolors:\nlabel_map:", np.uint8, [0, 1], [0, 1]),
    ],
)
def test_what_values_mean(tmp_path, settings, dtype, values, labels):
    assert decode(read(tmp_path, f"classes: [road, car]\n{settings}\n"), values, dtype) == labels


def test_a_mapping_states_the_values(tmp_path):
    classes = read(tmp_path, "classes: {2: car, 1: road}\nignore_index: 0\n")
    assert classes.label_set.classes == ("road", "car")
    assert decode(classes, [0, 1, 2, 255]) == [255, 0, 1, 255]
    binary = read(tmp_path, "classes: {0: ground, 255: object}\n")
    assert decode(binary, [0, 255]) == [0, 1]


def test_a_class_called_ignore_is_a_class(tmp_path):
    classes = read(tmp_path, "classes: [road, ignore]\nlabel_map: {3: ignore, 4: road}\n")
    assert decode(classes, [3, 4]) == [1, 0]


@pytest.mark.parametrize(
    "colors",
    [
        "[[0, 0, 0], [255, 128, 1]]",
        '["#000000", "#FF8001"]',
        "{car: [255, 128, 1], road: [0, 0, 0], ignore: [9, 9, 9]}",
        "{car: [255, 128, 1], road: [0, 0, 0], ignore: [[9, 9, 9], '#070707']}",
    ],
)
def test_colours(tmp_path, colors):
    classes = read(tmp_path, f"classes: [road, car]\ncolors: {colors}\nbackground: road\n")
    assert classes.label_set.colors == ((0, 0, 0), (255, 128, 1))
    assert classes.label_set.background == 0
    buffer = io.BytesIO()
    pixels = [[(255, 128, 1), (0, 0, 0)] + [(9, 9, 9)] * ("ignore" in colors)]
    Image.fromarray(np.array(pixels, np.uint8)).save(buffer, "PNG")
    assert classes.decoder(buffer.getvalue(), "mask").tolist() == [[1, 0] + [255] * ("ignore" in colors)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no keys"),
        ("- road", "has no keys"),
        ("classes: [road", "not YAML: .*line "),
        ("classes: [road]\n---\nclasses: [car]", "not YAML"),
        ("classes: [road]\nclass: 3", "key 'class' is not known; known are classes, "),
        ("colors: [[0, 0, 0]]", "key classes is missing"),
        ("classes: road", "classes is no list"),
        ("classes: []", "classes is no list"),
        ("classes: [road, car, road]", "classes has 'road' 2 times"),
        ("classes: [road, [car]]", "classes has .*no name"),
        ("classes: [road, ]\ncolors: [[0, 0, 256]]", "colors has .*256.* for road"),
        ("classes: [a, b]\ncolors: [[0, 0, 0], [0, 0, 0]]", "colors has .*2 times"),
        ("classes: [a, b]\ncolors: {a: [0, 0, 0]}", "colors has no colour of 'b'"),
        ("classes: [a]\ncolors: {a: [0, 0, 0], b: [1, 1, 1]}", "colors has 'b', which is not in classes"),
        ("classes: [a, b]\ncolors: [[0, 0, 0]]", "colors must be a list of 2"),
        ("classes: [a]\ncolors: ['#12345G']", "colors has '#12345G' for a"),
        ("classes: {road: 0}", "classes has the key 'road'; keys are the values"),
        ("classes: {0: road, 0: car}", "0 occurs twice .*line 1"),
        ("classes: [a]\nclasses: [b]", "'classes' occurs twice .*line 2"),
        ("classes: [a, b]\nlabel_map: {0: c}", "label_map has 'c', which is no class; the classes are a, b"),
        ("classes: [a, b]\nlabel_map: {0: 2}", "label_map has the class 2; there are classes 0 to 1"),
        ("classes: [a, b]\nlabel_map: {x: a}", "label_map has the key 'x'"),
        ("classes: [a, b]\nlabel_map: [a, b]", "label_map must be a mapping"),
        ("classes: [a, b]\nlabel_map: {0: a}\nignore_index: 0", "label_map makes 0 a class, and ignore_index ignores"),
        ("classes: [a, b]\nignore_index: 0", "ignore_index 0 is also the class 'a'.*`classes: {1: a, 2: b, ...}`"),
        ("classes: [a, b]\nignore_index: none", "ignore_index is 'none'"),
        ("classes: [a, b]\nunknown: maybe", "unknown is 'maybe'; give refuse or ignore"),
        ("classes: [a, b]\nbackground: c", "background has 'c'"),
        ("classes: " + str(list(range(256))), "classes has 256 names"),
        ("classes: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)
def test_mistakes(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'classes.yaml'}")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"there is no .*missing\.yaml; write one"):
        read_classes(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"classes: [stra\xdfe]")
    with pytest.raises(DataError, match=r"latin\.yaml cannot be read"):
        read_classes(tmp_path / "latin.yaml")
