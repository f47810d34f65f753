"""Storage parameters as pg_class.reloptions has them: text as it was given, read as the server reads it.

The server keeps what somebody wrote: ``70``, ``70.0``, ``7e1``, ``0x46`` and ``0106`` are all one fillfactor. Casts in
SQL know less of these spellings, or take them for other numbers, so the text is fetched and read here, by the rules of
the server's parse_int, parse_real and parse_bool. What the server itself would not take is as if it were not there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

_SPACE = " \t\n\v\f\r"
#: What strtol takes of a text with base 0: octal after a zero, hexadecimal after 0x.
_LONG = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))", re.ASCII)
#: What strtod takes of a text, infinity left out: no parameter may be that.
_DOUBLE = re.compile(
    r"[+-]?(?:(0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)(?:[pP][+-]?[0-9]+)?)"
    r"|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)",
    re.ASCII,
)
_INT_MIN, _INT_MAX = -(1 << 31), (1 << 31) - 1
_LONG_MIN, _LONG_MAX = -(1 << 63), (1 << 63) - 1


def parameters(options: Iterable[str] | None) -> dict[str, str]:
    """By name, each as it was written."""
    pairs = (option.partition("=") for option in options or ())
    return {name: value for name, _, value in pairs}


def integer(given: Mapping[str, str], name: str, default: int) -> int:
    """As parse_int reads it: 0x46, 0106, 70.4 and 7e1 are all 70."""
    text = given.get(name, "").lstrip(_SPACE)
    match = _LONG.match(text)
    end = match.end() if match else 0
    value = _long(match) if match else 0
    number: float = value
    if text[end : end + 1] in (".", "e", "E") or not _LONG_MIN <= value <= _LONG_MAX:
        number, end = _double(text)
    if end == 0 or text[end:].strip(_SPACE) or not math.isfinite(number):
        return default
    # To the even one of both neighbours, as rint does it.
    rounded = round(number)
    return rounded if _INT_MIN <= rounded <= _INT_MAX else default


def real(given: Mapping[str, str], name: str, default: float) -> float:
    """As parse_real reads it: 0x32 is 50, and 050 as well."""
    text = given.get(name, "").lstrip(_SPACE)
    number, end = _double(text)
    return default if end == 0 or text[end:].strip(_SPACE) or not math.isfinite(number) else number


def boolean(given: Mapping[str, str], name: str, *, default: bool) -> bool:
    """As parse_bool reads it: the beginnings of true, false, yes and no will do, ``of`` is off."""
    text = given.get(name, "").lower()
    if not text or text == "o":
        return default
    if text == "1" or any(word.startswith(text) for word in ("true", "yes", "on")):
        return True
    if text == "0" or any(word.startswith(text) for word in ("false", "no", "off")):
        return False
    return default


def _long(match: re.Match[str]) -> int:
    sign, hexadecimal, octal, decimal = match.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    return -value if sign == "-" else value


def _double(text: str) -> tuple[float, int]:
    """The number a text begins with, and where it ends; 0 where it begins with none."""
    match = _DOUBLE.match(text)
    if match is None:
        return 0.0, 0
    try:
        return float.fromhex(match[0]) if match[1] else float(match[0]), match.end()
    except OverflowError:
        return math.inf, match.end()
