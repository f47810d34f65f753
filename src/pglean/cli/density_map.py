"""The fill of a table along its file, drawn in the terminal: one cell per range of pages."""

from __future__ import annotations

from typing import Any

from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.text import Text

from pglean.bloat.density import Density
from pglean.cli.streams import printable
from pglean.disk import bytes_text

#: Cells of a map, and how many of them are in a line.
CELLS, _WIDTH = 400, 100
#: From empty to full.
_SHADES = "·░▒▓█"
#: The same where the terminal has no such characters.
_PLAIN = ".:+*#"
_UNKNOWN = "?"
#: Colours from empty to full: the emptier, the more there is to be gained.
_COLOURS = ((215, 70, 60), (225, 150, 60), (205, 195, 80), (120, 180, 90), (60, 150, 90))


def density_map(density: Density, out: Console, when: str = "") -> RenderableType:
    """The map of a table, to be shown on `out`, with what a cell stands for."""
    width = min(out.width - 4, _WIDTH)
    title = Text(printable(f"{density.qualified_name}{when}"), style="bold")
    if density.why:
        return Group(title, Text(printable(f"no map: {density.why}")))
    if not density.fill:
        return Group(title, Text("it is empty"))
    shades = _SHADES if _encodable(_SHADES, out.encoding) else _PLAIN
    lines = []
    for begin in range(0, len(density.fill), width):
        line = Text("  ")
        for fill in density.fill[begin : begin + width]:
            step = None if fill is None else min(int(fill * len(shades)), len(shades) - 1)
            line.append(_UNKNOWN if step is None else shades[step], style=_style(step))
        lines.append(line)
    known = [fill for fill in density.fill if fill is not None]
    mean = f"{sum(known) / len(known):.0%} full, " if known else ""
    legend = " ".join(shades)
    facts = (
        f"{mean}{bytes_text(density.bytes)}, a cell for {bytes_text(density.bytes / len(density.fill))}"
        f" (from the {density.source}); from empty to full: {legend}"
    )
    return Group(title, *lines, Text(facts))


def density_json(density: Density) -> dict[str, Any]:
    """The same for machines."""
    return {
        "bytes": density.bytes,
        "source": density.source,
        "fill": [None if fill is None else round(fill, 3) for fill in density.fill],
        "why": density.why,
    }


def _encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _style(step: int | None) -> Style:
    return Style() if step is None else Style(color=Color.from_rgb(*_COLOURS[step]))
