"""What was found of bloat as a page: a treemap of the database, a map of each table along its file, and the figures.

The page stands alone: no script, nothing is fetched. Areas are sizes, colours are the share that a repack would give
back; texts and colours follow the reader's choice of light or dark. Names go through `html.escape`: a table may be
called ``<script>``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from pglean.bloat.density import Density
from pglean.bloat.finding import Bloat, TableBloat
from pglean.disk import bytes_text
from pglean.report import counted

_WIDTH, _HEIGHT = 1000.0, 460.0
#: Tables with less than this share of all are drawn as one.
_SMALLEST = 0.0015
#: So many tables are listed with their figures.
_LISTED = 300
#: Width of a character of the labels, and their height.
_CHARACTER, _LINE = 7.0, 16.0


@dataclass(frozen=True, slots=True)
class _Box:
    """A rectangle of the treemap."""

    x: float
    y: float
    width: float
    height: float

    @property
    def ratio(self) -> float:
        """Of its longer side to its shorter."""
        short, long = sorted((self.width, self.height))
        return long / short if short > 0 else float("inf")


def bloat_page(found: Bloat, densities: Sequence[Density], database: str, made: str) -> str:
    """The whole page; `made` says when."""
    size, gain = (sum(getattr(table, name) for table in found.tables) for name in ("bytes", "gain_bytes"))
    maps = "".join(map(_map, densities))
    title = f"Bloat in {database}"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_style()}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{counted(len(found.tables), 'table')}, {bytes_text(size)}; a repack of all would give back"
            f" <strong>{bytes_text(gain)}</strong>. {escape(made)}.</p>",
            "<h2>Sizes, and what could be given back</h2>",
            _legend(),
            _treemap(found),
            *(["<h2>Along the files</h2>", _map_legend(), maps] if maps else []),
            "<h2>Figures</h2>",
            _table(found),
            _notes(found),
            "</body></html>\n",
        ]
    )


def _style() -> str:
    return (files("pglean.cli") / "bloat_page.css").read_text(encoding="utf-8")


def _level(share: float | None) -> str:
    """The class of a share: in tenths, or unknown."""
    return "unknown" if share is None else f"s{min(int(share * 10), 9)}"


# ---- treemap


def _treemap(found: Bloat) -> str:
    total = sum(table.bytes for table in found.tables)
    if not total:
        return "<p>There is nothing to be drawn.</p>"
    ordered = sorted(found.tables, key=lambda table: -table.bytes)
    large = [table for table in ordered if table.bytes >= _SMALLEST * total]
    rest = ordered[len(large) :]
    sizes = [float(table.bytes) for table in large]
    if rest_bytes := sum(table.bytes for table in rest):
        sizes.append(float(rest_bytes))
    boxes = squarified(sizes, _WIDTH, _HEIGHT)
    cells = [_cell(table, box) for table, box in zip(large, boxes, strict=False)]
    if rest_bytes:
        gain = sum(table.gain_bytes for table in rest)
        name = f"{counted(len(rest), 'smaller table')}"
        cells.append(_rectangle(name, rest_bytes, gain, gain / rest_bytes, boxes[-1]))
    label = f"Treemap of {counted(len(found.tables), 'table')} by size and reclaimable share"
    return (
        f'<svg class="treemap" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(label)}">'
        + "".join(cells)
        + "</svg>"
    )


def squarified(sizes: Sequence[float], width: float, height: float) -> list[_Box]:
    """Rectangles of these sizes, largest first, that fill the area and are as square as it can be done row by row."""
    boxes: list[_Box] = []
    scale = width * height / sum(sizes)
    left, top = 0.0, 0.0
    areas = [size * scale for size in sizes]
    while areas:
        side = min(width, height)
        row = 1
        while row < len(areas) and _worst(areas[: row + 1], side) <= _worst(areas[:row], side):
            row += 1
        thick = sum(areas[:row]) / side
        along = 0.0
        for area in areas[:row]:
            length = area / thick
            boxes.append(
                _Box(left, top + along, thick, length) if width >= height else _Box(left + along, top, length, thick)
            )
            along += length
        if width >= height:
            left, width = left + thick, max(width - thick, 1e-9)
        else:
            top, height = top + thick, max(height - thick, 1e-9)
        areas = areas[row:]
    return boxes


def _worst(areas: Sequence[float], side: float) -> float:
    thick = sum(areas) / side
    return max(_Box(0, 0, thick, area / thick).ratio for area in areas)


def _cell(table: TableBloat, box: _Box) -> str:
    gain = table.gain_bytes if table.heap.known else None
    return _rectangle(table.qualified_name, table.bytes, gain, table.bloat, box)


def _rectangle(name: str, size: int, gain: int | None, share: float | None, box: _Box) -> str:
    told = "nothing is known" if gain is None or share is None else f"{bytes_text(gain)} ({share:.0%}) could be gained"
    text = (
        f'<g class="{_level(share)}"><title>{escape(f"{name}: {bytes_text(size)}, {told}")}</title>'
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"/>'
    )
    shown = int((box.width - 10) / _CHARACTER)
    if box.height >= 1.5 * _LINE and shown >= 6:
        label = name if len(name) <= shown else f"{name[: shown - 1]}…"
        text += f'<text x="{box.x + 6:.1f}" y="{box.y + _LINE:.1f}">{escape(label)}</text>'
        figures = bytes_text(size) if share is None else f"{bytes_text(size)}, {share:.0%}"
        if box.height >= 2.6 * _LINE and len(figures) <= shown:
            text += f'<text x="{box.x + 6:.1f}" y="{box.y + 2 * _LINE:.1f}" class="small">{escape(figures)}</text>'
    return text + "</g>"


def _legend() -> str:
    steps = "".join(f'<span class="{_level(step / 10)}">{step * 10}%</span>' for step in range(10))
    return f'<p class="legend">Share that a repack would give back: {steps}<span class="unknown">unknown</span></p>'


# ---- maps


def _map(density: Density) -> str:
    name = escape(density.qualified_name)
    if not density.fill:
        why = escape(density.why or "it is empty")
        return f'<figure><figcaption>{name}</figcaption><p class="small">No map: {why}.</p></figure>'
    cells = len(density.fill)
    marks = []
    for number, fill in enumerate(density.fill):
        level = "unknown" if fill is None else f"s{min(int((1 - fill) * 10), 9)}"
        # A little wider than its share, so that no seam is seen.
        marks.append(f'<rect class="{level}" x="{number}" y="0" width="1.05" height="10"/>')
    known = [fill for fill in density.fill if fill is not None]
    mean = f"{sum(known) / len(known):.0%} full" if known else "nothing is known"
    caption = f"{name} <span>{bytes_text(density.bytes)}, {mean}, from the {density.source}</span>"
    label = escape(f"Fill of {density.qualified_name} along its file: {mean}")
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<svg class="map" viewBox="0 0 {cells} 10" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f"{''.join(marks)}</svg></figure>"
    )


def _map_legend() -> str:
    return (
        '<p class="legend">From the first page to the last: <span class="s0">full</span><span class="s5">half'
        ' full</span><span class="s9">empty</span></p>'
    )


# ---- figures


def _table(found: Bloat) -> str:
    heads = ("table", "size", "live", "dead", "free", "after a repack", "gain", "bloat", "method")
    rows = []
    for table in found.tables[:_LISTED]:
        rows.append(
            f"<tbody><tr><th>{escape(table.qualified_name)}</th><td>{bytes_text(table.bytes)}</td><td></td><td></td>"
            f"<td></td><td>{_size(table.after_bytes)}</td><td>{_size(table.gain_bytes if table.heap.known else None)}"
            f"</td><td>{'?' if table.bloat is None else f'{table.bloat:.0%}'}</td><td>{escape(table.method)}</td></tr>"
        )
        for part in table.relations:
            share = part.gain_bytes / part.bytes if part.known and part.bytes else None
            cells = [bytes_text(part.bytes), _size(part.live_bytes), _size(part.dead_bytes), _size(part.free_bytes)]
            after = _size(part.after_bytes) + (f" ±{bytes_text(part.error_bytes)}" if part.error_bytes else "")
            cells += [after, _size(part.gain_bytes if part.known else None)]
            cells += ["?" if share is None else f"{share:.0%}", str(part.method or "none")]
            name = escape(f"{part.kind} {part.name}".strip())
            rows.append(f'<tr class="part"><th>{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
        rows.append("</tbody>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    more = len(found.tables) - _LISTED
    rest = f'<p class="small">{more:,} more are not listed.</p>' if more > 0 else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>{rest}'


def _size(size: int | None) -> str:
    return "?" if size is None else bytes_text(size)


def _notes(found: Bloat) -> str:
    notes = [f"{table.qualified_name}: {note}" for table in found.tables[:_LISTED] for note in table.notes]
    notes += [warning.message for warning in found.warnings]
    return f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""
