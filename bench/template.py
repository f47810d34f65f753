"""A bloated table in a database of its own, and the fresh copy of it that every run gets."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg
from psycopg import sql

from ground import DATABASE, TEMPLATE, Ground
from workload import SURVIVOR, Workload

_ALL: Final = sql.SQL("")
_CHECKSUM: Final = (
    "SELECT count(*), coalesce(sum(id), 0), coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {table} t"
)
_FILENODES: Final = "SELECT string_agg(pg_relation_filenode(oid::regclass)::text, ' ' ORDER BY oid)"
_WARMED: Final = "SELECT sum(pg_prewarm(oid)) FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 't', 'i')"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a rewrite must not change."""

    rows: int
    #: Of the ids, which updates leave alone.
    id_sum: int
    #: Of all columns, which they do not.
    checksum: int


class Template:
    """The table of a workload at one size, and its copies."""

    def __init__(
        self, ground: Ground, workload: Workload, rows: int, *, extensions: tuple[str, ...] = (), vacuumed: bool = False
    ) -> None:
        """Build it; ``rows`` before half of them are deleted.

        Without a vacuum, whoever reads a page first cleans it up, and writes WAL for that.
        """
        self.ground, self.workload, self.rows = ground, workload, rows
        ground.create(TEMPLATE, "template0")
        survivor = sql.SQL(SURVIVOR.format(pair="((id - 1) / 2)"))
        with psycopg.connect(ground.conninfo(TEMPLATE)) as conn:
            for statement in (*workload.create, workload.fill(rows), *workload.indexes):
                conn.execute(sql.SQL(statement))
            conn.execute(sql.SQL(f"CREATE SEQUENCE {workload.table}_new START {rows + 1} CACHE 100"))
            self.contents = self._contents(conn, sql.SQL("WHERE id = {}").format(survivor))
            # Nothing reads the table after this: readers would set hint bits and prune pages.
            conn.execute(sql.SQL(f"DELETE FROM {workload.table} WHERE id <> ") + survivor)
            conn.execute(sql.SQL(f"ANALYZE {workload.table}"))
            for extension in ("pg_prewarm", *extensions):
                conn.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(extension)))
        if vacuumed:
            ground.execute(f"VACUUM {workload.table}", TEMPLATE)
        ground.execute("CHECKPOINT", None)
        self.total_bytes = self._total_bytes(TEMPLATE)

    @property
    def pairs(self) -> int:
        """How many rows are left."""
        return self.rows // 2

    def refresh(self) -> None:
        """Replace the copy, in memory and on disk as it was for every run before."""
        self.ground.create(DATABASE, TEMPLATE)
        with self.ground.connect() as conn:
            for leaf in self.workload.leaves:
                conn.execute(sql.SQL(f"ALTER TABLE {leaf} RESET (autovacuum_enabled, toast.autovacuum_enabled)"))
            conn.execute(_WARMED)
            conn.execute("CHECKPOINT")

    def oids(self) -> list[int]:
        """Of the copy's table, its partitions if it has any."""
        leaves = ", ".join(f"'{leaf}'::regclass::oid" for leaf in self.workload.leaves)
        return list(self.ground.value(f"SELECT ARRAY[{leaves}]"))

    def damage(self, filenodes: str, *, updated: bool, inserted: int | None) -> str:
        """What is wrong with the copy after a run, or nothing.

        `updated`: whether rows were, meanwhile. `inserted`: how many rows were; None where that is not known.
        """
        with psycopg.connect(self.ground.conninfo()) as conn:
            found = self._contents(conn, sql.SQL("WHERE id <= {}").format(self.rows))
            new = self._contents(conn, sql.SQL("WHERE id > {}").format(self.rows))
        before, after = filenodes.split(), self.filenodes().split()
        if kept := sum(old == new for old, new in zip(before, after, strict=True)):
            return f"{kept} of {len(before)} tables were not rewritten"
        if inserted is not None and new.rows != inserted:
            return f"the table holds {new.rows} of the {inserted} rows that were inserted meanwhile"
        if updated:
            found = replace(found, checksum=self.contents.checksum)
        return "" if found == self.contents else f"the table's contents differ: {found}, not {self.contents}"

    def filenodes(self) -> str:
        """What every rewrite changes, of each table."""
        return str(self.ground.value(f"{_FILENODES} FROM unnest(ARRAY{self.oids()}) AS oid"))

    def heap_fetches(self) -> int:
        """How often an index-only scan of all keys must look into the table, since a page may hold dead rows.

        Raises `RuntimeError` where the server scans the table otherwise.
        """
        with self.ground.connect() as conn:
            for name in ("enable_seqscan", "enable_bitmapscan", "enable_sort", "jit"):
                conn.execute(sql.SQL("SET {} = off").format(sql.Identifier(name)))
            conn.execute("SET max_parallel_workers_per_gather = 0")
            query = (
                f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) SELECT count(id) FROM {self.workload.table} WHERE id > 0"
            )
            row = conn.execute(sql.SQL(query)).fetchone()
        assert row is not None
        plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
        fetches = list(_heap_fetches(plan[0]["Plan"]))
        if len(fetches) != len(self.workload.leaves):
            raise RuntimeError(f"no index-only scan of {self.workload.table}: {plan}")
        return sum(fetches)

    def copy_bytes(self) -> int:
        """Size of the copy's table with its indexes."""
        return self._total_bytes(DATABASE)

    def discard(self) -> None:
        """Remove the copy and the template."""
        self.ground.drop(DATABASE)
        self.ground.drop(TEMPLATE)

    def _total_bytes(self, dbname: str) -> int:
        sizes = " + ".join(f"pg_total_relation_size('{leaf}')" for leaf in self.workload.leaves)
        return int(self.ground.value(f"SELECT {sizes}", dbname))

    def _contents(self, conn: psycopg.Connection, where: sql.Composable = _ALL) -> Contents:
        query = sql.SQL(_CHECKSUM).format(table=sql.Identifier(self.workload.table))
        row = conn.execute(query + sql.SQL(" ") + where).fetchone()
        assert row is not None
        return Contents(*map(int, row))


def _heap_fetches(node: dict[str, Any]) -> list[int]:
    own = [int(node["Heap Fetches"])] if "Heap Fetches" in node else []
    return [*own, *(fetches for child in node.get("Plans", []) for fetches in _heap_fetches(child))]
