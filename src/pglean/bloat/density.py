"""How full a table is along its file: the fill of ranges of pages, from the free-space map or from some blocks.

The free-space map is read by the extension pg_freespacemap, under the same conditions as pgstattuple is called (see
`measure`). It is as old as the last VACUUM, and counts dead rows as used. Where it is not to be had, blocks are
sampled, as `sample` does it: each range is as full as those of its blocks that were read.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pglean.bloat import sample
from pglean.bloat.figures import Table
from pglean.errors import TableChanged
from pglean.server import Server
from pglean.session import Connection, transaction
from pglean.sql import query
from pglean.table import quote_name

_LOCK_TIMEOUT_MS = 200
_TIMEOUT_S = 60
_PAGE_HEADER = 24
#: Of a row, with its line pointer, before its first value.
_ROW_BYTES = 28
#: The map is asked for so many blocks at the most.
_MAP_BLOCKS = 200_000


@dataclass(frozen=True, slots=True)
class Density:
    """The fill of a table along its file."""

    schema: str
    name: str
    #: Size of the heap.
    bytes: int
    #: Of ranges of equally many pages, from the first to the last: share that is used; None where nothing is known.
    fill: tuple[float | None, ...] = ()
    #: ``free-space map`` or ``sample``; empty where `why` says what was in the way.
    source: str = ""
    why: str = ""

    @property
    def qualified_name(self) -> str:
        """Quoted where psql would."""
        return f"{quote_name(self.schema)}.{quote_name(self.name)}"


def look(server: Server, conn: Connection, figures: Table, cells: int) -> Density:
    """The fill of a table in at most so many ranges.

    Locks: ACCESS SHARE while the free-space map is read; those of `sample.hold` while blocks are. Each is waited for at
    most 200 ms, and kept for a minute at the most.
    """
    server.check()
    block_bytes = server.capabilities.block_bytes
    pages = figures.bytes // block_bytes
    found = Density(figures.schema, figures.name, figures.bytes)
    if not figures.is_heap:
        return replace(found, why="its access method is not heap")
    if pages == 0:
        return found
    try:
        with transaction(conn):
            conn.execute("SELECT set_config('statement_timeout', %s, true)", (f"{_TIMEOUT_S}s",))
            conn.execute("SELECT set_config('lock_timeout', %s, true)", (f"{_LOCK_TIMEOUT_MS}ms",))
            return _fill(server, conn, figures, found, min(cells, pages))
    except (psycopg.OperationalError, psycopg.InternalError, psycopg.ProgrammingError) as error:
        if conn.broken:
            raise
        server.check()
        locked = isinstance(error, pg.LockNotAvailable)
        return replace(found, why="somebody has it locked" if locked else sample.message(error))
    except TableChanged:
        return replace(found, why="it was renamed or dropped meanwhile")


def _fill(server: Server, conn: Connection, figures: Table, found: Density, cells: int) -> Density:
    block_bytes = server.capabilities.block_bytes
    pages = figures.bytes // block_bytes
    if (fill := _by_map(conn, figures, pages, cells, block_bytes)) is not None:
        return replace(found, fill=fill, source="free-space map")
    if (why := sample.hold(server, conn, figures)) is not None:
        return replace(found, why=why)
    return replace(found, fill=_by_sample(conn, figures, pages, cells, block_bytes), source="sample")


def _by_map(
    conn: Connection, figures: Table, pages: int, cells: int, block_bytes: int
) -> tuple[float | None, ...] | None:
    """By the free-space map; None where it is not to be had, or nobody has written it yet."""
    row = conn.execute(query("bloat.free_space"), {"oid": figures.oid}).fetchone()
    if row is None:
        return None
    rows = conn.execute(
        sql.SQL(
            "SELECT (block * {cells} / {pages})::int AS cell, avg({function}({oid}::oid::regclass, block))::float8"
            " FROM generate_series(0::bigint, {pages} - 1, {step}) AS block GROUP BY cell"
        ).format(
            cells=sql.Literal(cells),
            pages=sql.Literal(pages),
            function=sql.Identifier(*row),
            oid=sql.Literal(figures.oid),
            step=sql.Literal(max(pages // max(_MAP_BLOCKS, cells), 1)),
        )
    )
    free: dict[int, float] = dict(rows.fetchall())
    return tuple(1 - free[cell] / block_bytes if cell in free else None for cell in range(cells))


def _by_sample(conn: Connection, figures: Table, pages: int, cells: int, block_bytes: int) -> tuple[float | None, ...]:
    """By some blocks. One that holds no row is not seen: where fewer are than was to be expected, the rest is empty."""
    share = min(sample.BLOCKS / pages, 1.0)
    sizes: list[sql.Composable] = [sample.size_in_row(column, block_bytes) for column in figures.columns]
    rows = conn.execute(
        sql.SQL(
            "SELECT (block * {cells} / {pages})::int AS cell, sum(bytes)::float8, count(*)::float8"
            " FROM (SELECT (ctid::text::point)[0]::bigint AS block, sum({sizes}) AS bytes"
            " FROM ONLY {table} AS t TABLESAMPLE SYSTEM ({percent}) REPEATABLE ({seed}) GROUP BY 1) AS blocks"
            " GROUP BY cell"
        ).format(
            sizes=sql.SQL(" + ").join([*sizes, sql.Literal(_ROW_BYTES)]),
            table=sql.Identifier(figures.schema, figures.name),
            cells=sql.Literal(cells),
            pages=sql.Literal(pages),
            percent=sql.Literal(share * 100),
            seed=sql.Literal(random.SystemRandom().randrange(1 << 30)),
        )
    )
    found = {cell: (size, blocks) for cell, size, blocks in rows}
    fill: list[float | None] = []
    for cell in range(cells):
        # Pages of this range, and of these in the sample.
        expected = share * ((cell + 1) * pages // cells - cell * pages // cells)
        size, seen = found.get(cell, (0.0, 0.0))
        scatter = 2 * math.sqrt(expected * (1 - share))
        if seen == 0:
            fill.append(0.0 if expected > scatter else None)
        else:
            full = size / seen / (block_bytes - _PAGE_HEADER)
            fill.append(min(full if seen >= expected - scatter else full * seen / expected, 1.0))
    return tuple(fill)
