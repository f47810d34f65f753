"""The fill of a table along its file, drawn in the terminal: one cell per range of pages."""

from __future__ import annotations

from rich.color import Color
from rich.console import Group, RenderableType
from rich.style import Style
from rich.text import Text

from pglean.bloat.density import Density
from pglean.disk import bytes_text

#: From empty to full.
_SHADES = "·░▒▓█"
#: The same where the terminal has no such characters.
_PLAIN = ".:+*#"
_UNKNOWN = "?"
#: Colours from empty to full: the emptier, the more there is to be gained.
_COLOURS = ((215, 70, 60), (225, 150, 60), (205, 195, 80), (120, 180, 90), (60, 150, 90))


def density_map(density: Density, width: int, *, encoding: str) -> RenderableType:
    """The map of a table in lines of `width` cells, with what a cell stands for."""
    title = Text(density.qualified_name, style="bold")
    if density.why:
        return Group(title, Text(f"no map: {density.why}"))
    if not density.fill:
        return Group(title, Text("it is empty"))
    shades = _SHADES if _encodable(_SHADES, encoding) else _PLAIN
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


def _encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _style(step: int | None) -> Style:
    return Style() if step is None else Style(color=Color.from_rgb(*_COLOURS[step]))
