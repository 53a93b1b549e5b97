"""The file `classes.yaml` of a data set of your own: its classes, and what the values of its label files mean.

    classes: [road, car, person]      # or a mapping of the values in the files: {7: road, 26: car, 24: person}
    ignore_index: 254                 # optional: a value, or several, that is ignored; 255 always is
    label_map: {0: ignore, 1: road}   # optional: value in the files -> name or index of a class, or `ignore`
    colors: {road: [128, 64, 128]}    # optional: colour of each class, for RGB masks; `ignore` may have colours too
    unknown: refuse                   # or ignore: values and colours that are none of these
    background: road                  # optional: the class that overlays leave uncoloured

With `label_map` only the values that it lists are classes. `colors` can also be a list in the order of the classes, and
a colour "#804080". Classes are numbered in the order of the file; in a mapping by the order of the values.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hyperseg._files import printable
from hyperseg._text import brief
from hyperseg.data.errors import DataError
from hyperseg.data.labels import Color, LabelSet, bit_shuffle_color
from hyperseg.data.masks import IGNORED, ColorDecoder, IndexDecoder, MaskDecoder

KEYS = ("classes", "ignore_index", "label_map", "colors", "unknown", "background")
_IGNORE = "ignore"


@dataclass(frozen=True)
class ClassesFile:
    """The contents of a `classes.yaml`, as the label set and the decoder that it means."""

    label_set: LabelSet
    decoder: MaskDecoder


class _Wrong(Exception):
    """A key has a value without a meaning. The message goes on after the path."""


def read_classes(path: Path) -> ClassesFile:
    """Read a `classes.yaml`. Raises DataError, which names the file and the key."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = yaml.load(text, Loader=_Loader)
        return _parse(document)
    except FileNotFoundError:
        raise DataError(
            f"there is no {printable(path)}; write one, such as `classes: [road, car]` for masks of 0 and 1"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{printable(path)} cannot be read ({brief(error)})") from None
    except RecursionError:
        raise DataError(f"{printable(path)} is nested too deeply; write `classes: [road, car]`") from None
    except yaml.YAMLError as error:
        raise DataError(f"{printable(path)} is not YAML: {_yaml_message(error)}") from None
    except _Wrong as error:
        raise DataError(f"{printable(path)}: {error}") from None


class _Loader(yaml.SafeLoader):
    """Reads YAML in which only whole numbers are not text, and no key occurs twice.

    The usual loader makes a class called `on` or `no` a boolean, `010` the number 8 and `1:30` the number 90.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _Wrong(f"{key!r} occurs twice in one mapping (line {key_node.start_mark.line + 1}); remove one")
            seen.append(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"$"), [""])


def _parse(document: Any) -> ClassesFile:
    if not isinstance(document, dict):
        raise _Wrong("it has no keys; give at least `classes: [road, car]`")
    if unknown := [key for key in document if key not in KEYS]:
        raise _Wrong(f"the key {unknown[0]!r} is not known; known are {', '.join(KEYS)}")
    if document.get("classes") is None:
        raise _Wrong("the key classes is missing; give at least `classes: [road, car]`")
    names, values = _classes(document["classes"])
    colors, ignored_colors = _colors(document.get("colors"), names)
    ignored = _ignored(document.get("ignore_index"))
    other = _choice(document.get("unknown"))
    index = IndexDecoder(_values(names, values, ignored, document.get("label_map")), other)
    color = None
    if colors:
        table = {**dict.fromkeys(ignored_colors, IGNORED), **{color: number for number, color in enumerate(colors)}}
        color = ColorDecoder(table, other)
    background = document.get("background")
    try:
        label_set = LabelSet(
            "custom",
            names,
            colors or tuple(bit_shuffle_color(number) for number in range(len(names))),
            background=None if background is None else _class(background, names, "background"),
        )
    except ValueError as error:
        raise _Wrong(str(error)) from None
    return ClassesFile(label_set, MaskDecoder(index, color))


def _classes(given: Any) -> tuple[tuple[str, ...], list[int] | None]:
    """Return the names, and the values in the files if the file states them."""
    values = None
    if isinstance(given, dict):
        for value in given:
            if not _is_whole(value):
                raise _Wrong(
                    f"classes has the key {value!r}; keys are the values in the label files: {{0: road, 1: car}}"
                )
        values = sorted(given)
        given = [given[value] for value in values]
    if not isinstance(given, list) or not given:
        raise _Wrong("classes is no list of names; write `classes: [road, car]` or `classes: {0: road, 1: car}`")
    names = tuple(_name(name) for name in given)
    for name in names:
        if names.count(name) > 1:
            raise _Wrong(f"classes has {name!r} {names.count(name)} times; give each class its own name")
    if len(names) > 255:
        raise _Wrong(f"classes has {len(names)} names; there can be 1 to 255")
    return names, values


def _name(given: Any) -> str:
    """Return a class name; a number is one too."""
    if isinstance(given, (str, int)) and str(given).strip():
        return str(given).strip()
    raise _Wrong(f"classes has {given!r}, which is no name; write text, in quotes if need be")


def _colors(given: Any, names: tuple[str, ...]) -> tuple[tuple[Color, ...], list[Color]]:
    """Return the colour of each class, none if there are none, and the colours that are ignored."""
    if given is None:
        return (), []
    ignored: list[Color] = []
    if isinstance(given, dict):
        given = {_name(name): color for name, color in given.items()}
        if _IGNORE in given and _IGNORE not in names:
            listed = given.pop(_IGNORE)
            several = isinstance(listed, list) and listed and isinstance(listed[0], (list, str))
            ignored = [_color(color, _IGNORE) for color in (listed if several else [listed])]
        if unknown := [name for name in given if name not in names]:
            raise _Wrong(f"colors has {unknown[0]!r}, which is not in classes")
        if missing := [name for name in names if name not in given]:
            raise _Wrong(f"colors has no colour of {missing[0]!r}; give one for each class")
        given = [given[name] for name in names]
    if not isinstance(given, list) or len(given) != len(names):
        raise _Wrong(
            f"colors must be a list of {len(names)} colours, one for each class, or a mapping of names to them"
        )
    colors = tuple(_color(color, name) for color, name in zip(given, names, strict=True))
    every = [*colors, *ignored]
    for color in every:
        if every.count(color) > 1:
            raise _Wrong(f"colors has {list(color)} {every.count(color)} times; each class needs its own colour")
    return colors, ignored


def _color(given: Any, name: str) -> Color:
    if isinstance(given, str) and given.startswith("#") and len(given) == 7:
        try:
            return int(given[1:3], 16), int(given[3:5], 16), int(given[5:7], 16)
        except ValueError:
            pass
    if isinstance(given, list) and len(given) == 3 and all(_is_whole(value) and 0 <= value <= 255 for value in given):
        return given[0], given[1], given[2]
    raise _Wrong(f'colors has {given!r} for {name}; give [R, G, B], each 0 to 255, or "#RRGGBB" in quotes')


def _ignored(given: Any) -> list[int]:
    listed = given if isinstance(given, list) else [] if given is None else [given]
    for value in listed:
        if not _is_whole(value):
            raise _Wrong(f"ignore_index is {given!r}; give a whole number such as 254, 0 or -1, or a list of them")
    return listed


def _values(names: tuple[str, ...], values: list[int] | None, ignored: list[int], label_map: Any) -> dict[int, int]:
    """Return the class, or 255, of each value in the label files."""
    table = {IGNORED: IGNORED}
    if label_map is not None:
        table.update(dict.fromkeys(ignored, IGNORED))
        stated = _label_map(label_map, names, ignored)
        for value in ignored:
            if stated.get(value, IGNORED) != IGNORED:
                raise _Wrong(f"label_map makes {value} a class, and ignore_index ignores it; remove one")
        return {**table, **stated}
    classes = {value: number for number, value in enumerate(range(len(names)) if values is None else values)}
    for value in ignored:
        if value in classes:
            name = names[classes[value]]
            starts = ", ".join(f"{number}: {other}" for number, other in enumerate(names[:2], 1))
            raise _Wrong(
                f"ignore_index {value} is also the class {name!r}; if the values start at 1, write "
                f"`classes: {{{starts}, ...}}`; if {name!r} is no class, leave it out and write the others so"
            )
    return {**table, **dict.fromkeys(ignored, IGNORED), **classes}


def _label_map(given: Any, names: tuple[str, ...], ignored: list[int]) -> dict[int, int]:
    if not isinstance(given, dict):
        raise _Wrong("label_map must be a mapping such as {0: ignore, 1: road}")
    table = {}
    for value, meaning in given.items():
        if not _is_whole(value):
            raise _Wrong(f"label_map has the key {value!r}; keys are the values in the label files, whole numbers")
        if (meaning == _IGNORE and _IGNORE not in names) or (
            _is_whole(meaning) and not 0 <= meaning < len(names) and meaning in (IGNORED, -1, *ignored)
        ):
            table[value] = IGNORED
        else:
            table[value] = _class(meaning, names, "label_map")
    return table


def _class(given: Any, names: tuple[str, ...], key: str) -> int:
    """Return the index of a class that is given by name or index."""
    if _is_whole(given) and str(given) not in names:
        if 0 <= given < len(names):
            return given
        raise _Wrong(f"{key} has the class {given}; there are classes 0 to {len(names) - 1}")
    if isinstance(given, (str, int)) and str(given) in names:
        return names.index(str(given))
    raise _Wrong(f"{key} has {given!r}, which is no class; the classes are {', '.join(names[:8])}")


def _choice(given: Any) -> int | None:
    if given in (None, "refuse"):
        return None
    if given == _IGNORE:
        return IGNORED
    raise _Wrong(f"unknown is {given!r}; give refuse or ignore")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _yaml_message(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = printable(getattr(error, "problem", None) or "it cannot be parsed")
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}" if mark is not None else problem
