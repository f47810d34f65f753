"""What was found of bloat, as a table for people, and as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import fields

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from pglean.bloat.finding import Bloat, RelationBloat, TableBloat
from pglean.cli.streams import printable
from pglean.disk import bytes_text
from pglean.report import counted

#: From which share on a table is marked.
_BAD, _VERY_BAD = 0.3, 0.5


def bloat_table(found: Bloat, top: int, *, relations: bool) -> RenderableType:
    """The first `top` tables, on demand with their relations; what is to be said of them; what all add up to."""
    if not found.tables:
        none = "no table is so large and so bloated" if found.looked_at else "there is no table to be looked at"
        return Text(none)
    shown = found.tables[:top]
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("table", overflow="fold")
    for heading in ("size", "live", "dead", "free", "reusable", "after repack", "gain", "bloat"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("method", no_wrap=True)
    for table in shown:
        name = table.qualified_name + (f" ({counted(table.partitions, 'partition')})" if table.partitions else "")
        grid.add_row(
            Text(printable(name), style="bold" if relations else ""),
            bytes_text(table.bytes),
            *(_total(table, column) for column in ("live_bytes", "dead_bytes", "free_bytes", "reusable_bytes")),
            _size(table.after_bytes) + _error(table.relations),
            _size(table.gain_bytes if table.heap.known else None),
            _share(table.bloat),
            table.method,
        )
        for part in table.relations if relations else ():
            grid.add_row(Text(printable(f"  {part.kind} {part.name}".rstrip())), *_relation(part))
    return Group(grid, *_notes(shown), Text(_summary(found, len(shown))))


def _relation(part: RelationBloat) -> list[str | Text]:
    return [
        bytes_text(part.bytes),
        *map(_size, (part.live_bytes, part.dead_bytes, part.free_bytes, part.reusable_bytes)),
        _size(part.after_bytes) + _error((part,)),
        _size(part.gain_bytes if part.known else None),
        _share(part.gain_bytes / part.bytes if part.known and part.bytes else None),
        str(part.method or "none"),
    ]


def _total(table: TableBloat, column: str) -> str:
    """What is known of its parts, added up, where it is known of the heap."""
    if getattr(table.heap, column) is None:
        return "?"
    return bytes_text(sum(getattr(part, column) or 0 for part in table.relations))


def _size(size: int | None) -> str:
    return "?" if size is None else bytes_text(size)


def _error(parts: tuple[RelationBloat, ...]) -> str:
    error = sum(part.error_bytes or 0 for part in parts)
    return f" ±{bytes_text(error)}" if error else ""


def _share(share: float | None) -> Text:
    if share is None:
        return Text("?")
    return Text(f"{share:.0%}", style="red" if share >= _VERY_BAD else "yellow" if share >= _BAD else "")


def _notes(tables: tuple[TableBloat, ...]) -> list[Text]:
    return [Text(printable(f"{table.qualified_name}: {note}")) for table in tables for note in table.notes]


def _summary(found: Bloat, shown: int) -> str:
    size, gain = (sum(getattr(table, name) for table in found.tables) for name in ("bytes", "gain_bytes"))
    text = f"{counted(len(found.tables), 'table')}, {bytes_text(size)}: a repack would give back {bytes_text(gain)}"
    if unknown := sum(table.bloat is None for table in found.tables):
        text += f"; of {unknown:,} nothing is known"
    if len(found.tables) > shown:
        text += f"; {len(found.tables) - shown:,} are not listed here, --top N lists more"
    return text


_COLUMNS = [field.name for field in fields(RelationBloat) if field.name != "notes"]


def bloat_csv(found: Bloat) -> str:
    """A line per relation; empty is what is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["schema", "table", "partitions", *_COLUMNS, "gain_bytes", "notes"])
    for table in found:
        for part in table.relations:
            values = [getattr(part, name) for name in _COLUMNS]
            gain = part.gain_bytes if part.known else None
            row = [table.schema, table.name, table.partitions, *values, gain, "; ".join(part.notes)]
            writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()
