"""Text and numbers for HTML. Every string that the page did not write itself passes through here."""

import html
import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from hyperseg._files import printable

ABSENT = "-"


def text(value: object) -> str:
    """Return a value as HTML text, also fit for an attribute in quotes: escaped, without control characters.

    Zero-width joiners stay: names in several scripts, and emoji, are spelled with them.
    """
    parts = re.split("([\u200c\u200d])", str(value))
    shown = "".join(part if index % 2 else printable(part) for index, part in enumerate(parts))
    return html.escape(shown, quote=True)


def name(value: object) -> str:
    """Return the name of a class or a file as HTML. Its writing direction does not affect the text around it."""
    return f"<bdi>{text(value)}</bdi>"


def percent(value: float | None, digits: int = 1) -> str:
    """Format a score without its unit: 0.7142 -> "71.4", None -> "-"."""
    return ABSENT if value is None else f"{100 * value:.{digits}f}"


def percent_unit(value: float | None, digits: int = 1) -> str:
    """Format a score: 0.7142 -> "71.4&nbsp;%", None -> "-"."""
    return ABSENT if value is None else f"{percent(value, digits)}&nbsp;%"


def setting(value: Any) -> str:
    """Return the value of a setting as HTML: lists and dictionaries as JSON, None as "-"."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (dict, list, tuple)):
        return f"<code>{text(json.dumps(value, ensure_ascii=False))}</code>"
    return name(value)


def moment(iso: str) -> str:
    """Return an ISO 8601 time as HTML: "29 November 2026, 10:20 UTC"; another text as it is."""
    try:
        parsed = datetime.fromisoformat(iso.replace("Z", "+00:00"))
    except ValueError:
        return text(iso)
    zone = f" {parsed.tzname()}" if parsed.tzinfo else ""
    return f'<time datetime="{text(iso)}">{parsed.day} {parsed:%B %Y, %H:%M}{zone}</time>'


def swatch(color: Iterable[int]) -> str:
    """Return a small square in the colour of a class."""
    return f'<i class="swatch" style="--c:{css_color(color)}"></i>'


def css_color(color: Iterable[int]) -> str:
    """Return an RGB colour for CSS. Raises ValueError unless it is three integers from 0 to 255."""
    values = [int(value) for value in color]
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise ValueError(f"a class has the colour {values}; give [R, G, B], each 0 to 255")
    return "#" + "".join(f"{value:02x}" for value in values)


def embedded_json(document: Any) -> str:
    """Return JSON for a script element: ASCII, without "<", so that no text in it can end the element.

    Raises ValueError for NaN and infinity, which JSON does not have.
    """
    written = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
