"""YAML to dataclasses, strictly: a key or value that is not expected is an error that names the file and the key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A training configuration cannot be used. The message names the file or option, the key and what was expected."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which PyYAML would take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key {key!r} is not a text; quote it")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key {key} occurs twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the mapping in a YAML document.

    Raises:
        ConfigError: it is not YAML, or not a mapping; the message begins with ``source``.
    """
    try:
        values = yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{source}, {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source} contains {_kind(values)}; expected lines such as 'batch: 16'")
    return values


def read_value(text: str) -> Any:
    """Return what YAML reads from the value of an option; ``1e-4`` counts as a number here."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ConfigError):
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def build(kind: type[T], values: Mapping[str, Any], source: str, path: str = "") -> T:
    """Return a dataclass with these values; fields that are not among them keep their defaults.

    Args:
        kind: a dataclass; its fields may be dataclasses.
        values: by field name.
        source: the file or option, for messages.
        path: dotted name of the dataclass in the configuration.

    Raises:
        ConfigError: an unknown key, a value of another type, or one that the dataclass refuses.
    """
    hints = typing.get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            similar = difflib.get_close_matches(key, fields, n=1)
            meant = f"; is {_join(path, similar[0])} meant?" if similar else ""
            where = f" in {path}" if path else ""
            raise ConfigError(
                f"{source}: there is no key {_join(path, key)}{meant or '.'} The keys{where} are {', '.join(fields)}"
            )
    converted = {key: _convert(hints[key], value, source, _join(path, key)) for key, value in values.items()}
    try:
        return kind(**converted)
    except ConfigError as error:
        raise ConfigError(f"{source}: {_join(path, str(error))}") from None


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _convert(hint: Any, value: Any, source: str, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{source}: {path} is {_kind(value)}; expected keys such as {_example(hint)}")
        return build(hint, value, source, path)
    ok, result = _fits(hint, value)
    if not ok:
        raise ConfigError(f"{source}: {path} is {_kind(value)}; expected {_expected(hint)}{_advice(hint, value)}")
    return result


def _fits(hint: Any, value: Any) -> tuple[bool, Any]:
    """Return whether a value is of a type, and the value in that type: an int as a float, a list as a tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for each in arguments:
            ok, result = _fits(each, value)
            if ok:
                return True, result
        return False, None
    if origin is Literal:
        return type(value) is str and value in arguments, value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False, None
        each = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(each) != len(value):
            return False, None
        results = [_fits(one, item) for one, item in zip(each, value, strict=True)]
        return all(ok for ok, _ in results), tuple(result for _, result in results)
    if origin is dict:
        return isinstance(value, dict), value
    if hint is float:
        return type(value) in (int, float), float(value) if type(value) is int else value
    return type(value) is hint, value


def _kind(value: Any) -> str:
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, int | float):
        return f"the number {value}"
    return f"the list {value}" if isinstance(value, list | tuple) else f"{value!r:.60}"


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def _expected(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_expected(each) for each in arguments)
    if origin is Literal:
        return ", ".join(arguments[:-1]) + f" or {arguments[-1]}"
    if origin is tuple:
        one = _NAMES.get(arguments[0], "a value").removeprefix("a ")
        return f"a list of {one}s" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} {one}s"
    return "keys and values" if origin is dict else _NAMES.get(hint, str(hint))


def _advice(hint: Any, value: Any) -> str:
    """Return what to write where YAML reads something else than most people expect."""
    hints = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, str) and {int, float} & set(hints):
        try:
            number = float(value)
        except ValueError:
            return ""
        return f" (YAML reads {value} as a text: write {number!r} or {number:.1e})"
    choices = [choice for each in hints if typing.get_origin(each) is Literal for choice in typing.get_args(each)]
    if isinstance(value, bool) and (choices or str in hints):
        instead = "none" if "none" in choices else "the word in quotes"
        return f" (YAML reads off and no as false, on and yes as true: write {instead})"
    return ""


def _example(kind: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(kind)[:3])
