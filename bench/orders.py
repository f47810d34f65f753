"""The table ``orders``: half of its rows are deleted, and every run gets a fresh copy of its database.

Of each pair of neighbouring ids one row is left.  Which one is decided by a bit of a
multiplicative hash of the pair's number, which both SQL and pgbench can compute, so that the load
hits an existing row with every statement and needs no list of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg
from psycopg import sql

from pglean.embedded import EmbeddedServer

DATABASE: Final = "bench"
TABLE: Final = "orders"

# In pgbench's syntax, which in this is SQL's as well.
SURVIVOR: Final = "2 * {pair} + 1 + ((({pair} * 2654435761) >> 31) & 1)"

_FILL: Final = """
CREATE TABLE orders (
    id bigint NOT NULL,
    customer_id bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    status text NOT NULL,
    amount numeric(12, 2) NOT NULL,
    note text NOT NULL
) WITH (autovacuum_enabled = off);
SELECT setseed(0.42);
INSERT INTO orders
    SELECT id,
           1 + floor(random() * {rows} / 20),
           timestamptz '2024-01-01 00:00+00' + id * interval '7 seconds',
           timestamptz '2024-01-01 00:00+00' + id * interval '7 seconds',
           'new',
           round((random() * 1000)::numeric, 2),
           substr(md5(random()::text) || md5(id::text), 1, 32 + (id % 21)::int)
    FROM generate_series(1, {rows}) AS id;
ALTER TABLE orders ADD PRIMARY KEY (id);
CREATE INDEX orders_customer_id_idx ON orders (customer_id);
CREATE INDEX orders_created_at_idx ON orders (created_at);
"""
_ALL: Final = sql.SQL("")
_CHECKSUM: Final = "SELECT count(*), sum(id), sum(hashtextextended(orders::text, 0)) FROM orders"
# Nothing reads the table after this: readers would set hint bits and prune pages.
_BLOAT: Final = """
DELETE FROM orders WHERE id <> {survivor};
ANALYZE orders;
CREATE EXTENSION pg_prewarm;
"""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a rewrite must not change."""

    rows: int
    #: Of the ids, which the load leaves alone.
    id_sum: int
    #: Of all columns, which it does not.
    checksum: int


class Orders:
    """The table at one size: a template with it, and the fresh copies."""

    def __init__(self, server: EmbeddedServer, rows: int, *, pg_repack: bool, vacuumed: bool) -> None:
        """Build the template; ``rows`` before half of them are deleted.

        Without a vacuum, whoever reads a page first cleans it up, and writes WAL for that.
        """
        self._server = server
        self.rows = rows
        self._template = f"template_{rows}"
        _execute(server, "postgres", sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self._template)))
        survivor = sql.SQL(SURVIVOR.format(pair="((id - 1) / 2)"))
        with psycopg.connect(server.conninfo(self._template)) as conn:
            conn.execute(sql.SQL(_FILL).format(rows=sql.Literal(rows)))
            self.contents = _contents(conn, sql.SQL("WHERE id = {}").format(survivor))
            conn.execute(sql.SQL(_BLOAT).format(survivor=survivor))
            if pg_repack:
                conn.execute("CREATE EXTENSION pg_repack")
        if vacuumed:
            _execute(server, self._template, "VACUUM orders")
        _execute(server, "postgres", "CHECKPOINT")
        self.total_bytes = self._total_bytes(self._template)

    @property
    def pairs(self) -> int:
        """How many rows are left."""
        return self.rows // 2

    def refresh(self) -> None:
        """Replace the database by a copy of the template, in memory and on disk as it was for every run before.

        The copy takes files and not their rows, so that dead rows come along.
        """
        self.drop()
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        _execute(self._server, "postgres", copy.format(sql.Identifier(DATABASE), sql.Identifier(self._template)))
        _execute(self._server, DATABASE, "ALTER TABLE orders RESET (autovacuum_enabled)")
        _execute(
            self._server,
            DATABASE,
            "SELECT pg_prewarm(oid) FROM pg_class WHERE oid = 'orders'::regclass"
            " UNION ALL SELECT pg_prewarm(indexrelid) FROM pg_index WHERE indrelid = 'orders'::regclass",
        )
        _execute(self._server, "postgres", "CHECKPOINT")

    def drop(self) -> None:
        """Remove the copy."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(DATABASE))
        _execute(self._server, "postgres", statement)

    def damage(self, filenode: int, *, loaded: bool) -> str:
        """What is wrong with the copy after a run, or nothing; ``loaded`` says that rows were updated meanwhile."""
        with psycopg.connect(self._server.conninfo(DATABASE)) as conn:
            found = _contents(conn)
        if self.filenode() == filenode:
            return "the table was not rewritten"
        if loaded:
            found = replace(found, checksum=self.contents.checksum)
        return "" if found == self.contents else f"the table's contents differ: {found}, not {self.contents}"

    def filenode(self) -> int:
        """What every rewrite changes."""
        return int(_value(self._server, DATABASE, "SELECT pg_relation_filenode('orders')"))

    def copy_bytes(self) -> int:
        """Size of the copy's table with its indexes."""
        return self._total_bytes(DATABASE)

    def discard(self) -> None:
        """Remove the copy and the template."""
        self.drop()
        _execute(self._server, "postgres", sql.SQL("DROP DATABASE {}").format(sql.Identifier(self._template)))

    def _total_bytes(self, dbname: str) -> int:
        return int(_value(self._server, dbname, "SELECT pg_total_relation_size('orders')"))


def _contents(conn: psycopg.Connection, where: sql.Composable = _ALL) -> Contents:
    row = conn.execute(sql.SQL(_CHECKSUM) + sql.SQL(" ") + where).fetchone()
    assert row is not None
    return Contents(*map(int, row))


def wal_position(server: EmbeddedServer) -> int:
    """How many bytes of WAL were ever written."""
    return int(_value(server, "postgres", "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def _execute(server: EmbeddedServer, dbname: str, statement: str | sql.Composed) -> None:
    with psycopg.connect(server.conninfo(dbname), autocommit=True) as conn:
        conn.execute(statement)


def _value(server: EmbeddedServer, dbname: str, query: str) -> Any:
    with psycopg.connect(server.conninfo(dbname), autocommit=True) as conn:
        row = conn.execute(query).fetchone()
    assert row is not None
    return row[0]
