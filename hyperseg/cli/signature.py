"""A verb's command line from its signature: types and defaults from the parameters, help texts from the docstring."""

import argparse
import inspect
import re
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps paragraphs, and names a default only where there is one to type."""

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.option_strings and action.nargs != 0 and action.default is not None
        return f"{action.help} (default: %(default)s)" if shown else action.help or ""


def add_signature(parser: ArgumentParser, function: Callable[..., int]) -> None:
    """Adds one argument a parameter of `function`; `parser.parse_args` then gives its keyword arguments.

    A parameter without a default is positional, a list takes one or more words. `flag: bool = False` is `--flag`,
    `flag: bool = True` is `--no-flag`, and a Literal becomes choices; other types are jsonargparse's to read.
    The docstring is a summary, then paragraphs, then "Args:" with "name: text" entries, indented more to continue.
    """
    text, helps = _docstring(function)
    parser.description = text
    parser.formatter_class = HelpFormatter
    hints = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        hint, default, option = hints[name], parameter.default, name.replace("_", "-")
        options: dict[str, Any] = {"help": helps.get(name, "")}
        if default is inspect.Parameter.empty:
            if get_origin(hint) is list:
                options |= {"nargs": "+", "metavar": name.upper().removesuffix("S")}
                hint = get_args(hint)[0]
            parser.add_argument(name, type=hint, **options)
        elif hint is bool:
            action = "store_false" if default else "store_true"
            parser.add_argument(f"--no-{option}" if default else f"--{option}", dest=name, action=action, **options)
        elif get_origin(hint) is Literal:
            parser.add_argument(f"--{option}", dest=name, choices=get_args(hint), default=default, **options)
        else:
            parser.add_argument(f"--{option}", dest=name, type=hint, default=default, metavar=name.upper(), **options)


def summary(function: Callable[..., int]) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(function) or "").partition("\n")[0]


def one_line(error: BaseException) -> str:
    """The message of an error on one line, in words for people: jsonargparse speaks of keys and classes."""
    text = re.sub(r'Parser key "([^"]*)":\s*Expected a', r"\1: expected a", str(error))
    text = re.sub(r"<class '([^']*)'>\. Got value:", r"\1, got", text)
    return " ".join(text.split())


def _docstring(function: Callable[..., int]) -> tuple[str, dict[str, str]]:
    """The text before "Args:", and the help of each argument."""
    text, _, arguments = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    helps: dict[str, str] = {}
    for entry in re.split(r"^ {4}(?=\w)", arguments, flags=re.MULTILINE)[1:]:
        name, _, words = entry.partition(":")
        helps[name] = " ".join(words.split()).replace("%", "%%")
    return text.strip(), helps
