"""Tables without a key: rows that nothing tells apart are counted, and so are those of the copy.

The change table holds images of whole rows, +1 for each that came, -1 for each that went (`capture.images`). A table is
the multiset of its rows' images, so

    the table as of S = the table as of C + the sum of the records that S sees and C does not.

The copy is the table as of C (`baseline`), which drops the records that C sees. A refresh in snapshot S then takes the
sum over the records that S sees, and consumes them: not to be done twice, unlike the refresh by keys, so it is one
transaction of one session. Order is of no matter, nor is how often a row was changed: what came and went cancels out.

Records are summed by *class*: those of exactly the same image. Which are is decided by ``*=``, after sorting by a hash
and, within it, by ``*<``: both work on images, call no code of a type's owner, and there is no type that has them not.
The hash is only to find rows of the copy, by an index on it; it has to be a function of the image, no more. What cannot
be sent in binary is left out of it; if nothing is left of a row, each one is a candidate: slow, and right.

A refresh is one statement, so that classes are made out once. It takes away before it adds: unique values (in indexes
over columns that may be NULL, or over a part of the rows) may wander between rows as they like. Rows that were to be
taken away must be there, in full number: else the run ends.

Everything here that reads the table or the copy is done under the guard; the index on the copy, which belongs to the
table's owner, is built and kept up with his rights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg import sql

from pglean import guard
from pglean.capture.images import place
from pglean.errors import RowsMissing
from pglean.rewrite import job as jobs
from pglean.rewrite.job import SCHEMA
from pglean.rewrite.run import Run
from pglean.rewrite.shadow import columns, default_tablespace
from pglean.session import Connection, scalar, transaction
from pglean.sql import query
from pglean.table import Column

#: From rows with their number ``n``, hash ``h``, ``image`` and ``place``: the classes whose sum is not 0.
_CLASSES: Final = sql.SQL(
    "marked AS (SELECT place, n, h, image,"
    " CASE WHEN lag(h) OVER w = h AND lag(image) OVER w OPERATOR(pg_catalog.*=) image THEN 0 ELSE 1 END AS first"
    " FROM counted WINDOW w AS (ORDER BY h, image USING OPERATOR(pg_catalog.*<))),"
    " numbered AS (SELECT place, n, h, sum(first)"
    " OVER (ORDER BY h, image USING OPERATOR(pg_catalog.*<) ROWS UNBOUNDED PRECEDING) AS class FROM marked),"
    " classes AS (SELECT h, min(place) AS place, sum(n) AS number FROM numbered GROUP BY class, h HAVING sum(n) <> 0)"
)


#: So many columns are hashed: before PostgreSQL 18 the definition of an index must fit into a page of pg_index.
_MOST_HASHED: Final = 200
_HASHED: Final[dict[str, LiteralString]] = {
    "enum": "pg_catalog.hashenumextended({}, 0)",
    "enums": "pg_catalog.hash_array_extended({}, 0)",
}


@dataclass(frozen=True, slots=True)
class Hash:
    """How the rows of a table are hashed."""

    #: Of the stored columns, in their order: a value is hashed as it is sent (``send``), as an ``enum``, as an array of
    #: ``enums``, or not at all (``none``).
    ways: tuple[str, ...]

    @property
    def tells(self) -> bool:
        """Whether it tells any row from another."""
        return any(way != "none" for way in self.ways)

    def of(self, values: Sequence[sql.Composable]) -> sql.Composable:
        """The hash of a row of these values."""
        if not self.tells:
            return sql.SQL("0::bigint")
        parts = [
            sql.SQL(_HASHED[way]).format(value) if way in _HASHED else value
            for value, way in zip(values, self.ways, strict=True)
            if way != "none"
        ][:_MOST_HASHED]
        return sql.SQL("pglean.hash_1(pglean.image_1(ROW({})), 0)").format(sql.SQL(", ").join(parts))


def _hash(run: Run, conn: Connection) -> Hash:
    ways: dict[int, str] = dict(conn.execute(query("images.hashing"), {"oid": run.table.oid}).fetchall())
    return Hash(tuple(ways.get(column.number, "none") for column in run.table.stored_columns))


def _of_columns(alias: str, table_columns: Sequence[Column]) -> list[sql.Composable]:
    return [sql.Identifier(alias, column.name) for column in table_columns]


def _of_records(alias: str, table_columns: Sequence[Column]) -> list[sql.Composable]:
    return [sql.SQL(".").join([sql.Identifier(alias), place(position)]) for position, _ in enumerate(table_columns, 1)]


def _image(values: Sequence[sql.Composable]) -> sql.Composed:
    return sql.SQL("ROW({})::pg_catalog.record").format(sql.SQL(", ").join(values))


# ---- the index


def index(run: Run) -> None:
    """Build the index by which rows of the copy are found. Nothing to do where it is there.

    On entry and exit: no transaction. Locks the copy alone. Killed: it is there or not.
    """
    hashed = _hash(run, run.control)
    if not hashed.tells:
        return

    def build(conn: Connection, _: str) -> None:
        run.purpose(conn, "index of images")
        with transaction(conn):
            jobs.check_current(conn, run.job)
            if run.crowded:
                conn.execute("SET LOCAL max_parallel_maintenance_workers = 0")
            conn.execute(
                sql.SQL("CREATE INDEX {} ON {} (({})) TABLESPACE {}").format(
                    sql.Identifier(_index_name(run)),
                    run.job.shadow,
                    hashed.of([sql.Identifier(column.name) for column in run.table.stored_columns]),
                    sql.Identifier(run.job.layout.tablespace or default_tablespace(conn)),
                )
            )

    if scalar(run.control, "SELECT pg_catalog.to_regclass(%s)", (f"{SCHEMA}.{_index_name(run)}",)) is None:
        run.workers.one(build)


def _index_name(run: Run) -> str:
    return f"images_{run.job.id}"


# ---- refresh


def take_over(run: Run, conn: Connection, worker: str) -> None:
    """Take the rows from the copy that there are fewer of now, and add those that there are more of.

    On entry: the transaction of a refresh. Raises `RowsMissing` where the copy has not got what is to be taken from it.
    """
    hashed = _hash(run, conn)
    table_columns = run.table.stored_columns
    recorded, copied = _of_records("r", table_columns), _of_columns("s", table_columns)
    names, _ = columns(run.table)
    named = sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(value, sql.Identifier(column.name))
        for value, column in zip(recorded, table_columns, strict=True)
    )
    statement = sql.SQL(
        "WITH {recorded}, {classes}, net AS (SELECT h, place, n AS number FROM told WHERE many = 1"
        " UNION ALL SELECT h, place, number FROM classes),"
        " doomed AS (SELECT found.place FROM net AS k JOIN {changes} AS r ON r.ctid = k.place CROSS JOIN LATERAL"
        " (SELECT s.ctid AS place FROM {shadow} AS s"
        " WHERE {hash} = k.h AND {image} OPERATOR(pg_catalog.*=) {gone} LIMIT greatest(-k.number, 0)) AS found"
        " WHERE k.number < 0),"
        " removed AS (DELETE FROM {shadow} AS s USING doomed WHERE s.ctid = doomed.place RETURNING 1),"
        # To know how many were removed, all must have been: none is added before.
        " added AS (INSERT INTO {shadow} ({names}) SELECT {values}"
        " FROM (SELECT {named} FROM net AS k JOIN {changes} AS r ON r.ctid = k.place"
        " CROSS JOIN generate_series(1, k.number) WHERE k.number > 0) AS t"
        " WHERE (SELECT count(*) FROM removed) >= 0)"
        " SELECT coalesce((SELECT sum(-number) FROM net WHERE number < 0), 0)::bigint - (SELECT count(*) FROM removed)"
    ).format(
        recorded=_recorded(run, hashed),
        classes=_CLASSES,
        changes=run.job.changes,
        shadow=run.job.shadow,
        hash=hashed.of(copied),
        image=_image(copied),
        gone=_image(recorded),
        names=names,
        values=run.job.layout.values(),
        named=named,
    )
    conn.execute(query("images.settings"))
    missing = guard.execute(conn, run.table, worker, lambda _: statement)
    conn.execute(query("images.settings_back"))
    if missing:
        raise RowsMissing(
            f"{missing} rows that were changed or deleted in {run.table.qualified_name} are not in its copy",
            detail="Nothing was swapped.",
            hint="A value was not read from the WAL as it is stored, perhaps: let triggers capture (--capture trigger)."
            if run.capture.lags
            else "Check the table with pg_amcheck; if it is sound, this is a bug of pglean: report it.",
        )


def _recorded(run: Run, hashed: Hash) -> sql.Composed:
    """The records that the transaction's snapshot sees, as `told` by their hash; with images where that is of several.

    So what is sorted has long values in it only where the same row, or one of the same hash, was recorded again.
    """
    values = _of_records("r", run.table.stored_columns)
    return sql.SQL(
        "hashed AS MATERIALIZED (SELECT r.ctid AS place, r.n, {hash} AS h FROM {changes} AS r),"
        " told AS (SELECT place, n, h, count(*) OVER (PARTITION BY h) AS many FROM hashed),"
        " counted AS (SELECT k.place, k.n, k.h, {image} AS image FROM told AS k"
        " JOIN {changes} AS r ON r.ctid = k.place WHERE k.many > 1)"
    ).format(hash=hashed.of(values), image=_image(values), changes=run.job.changes)


# ---- verification


def different(run: Run) -> int:
    """How many classes of rows the table and the copy have not in the same number.

    On entry: the control session's transaction, in which the refresh has just been done.
    """
    hashed = _hash(run, run.control)
    original, copied = (_of_columns(alias, run.table.stored_columns) for alias in "ts")
    return guard.execute(
        run.control,
        run.table,
        "c",
        lambda source: sql.SQL(
            "WITH counted AS"
            " (SELECT t.{tid} AS place, 1 AS n, {table_hash} AS h, {table_image} AS image FROM {table} AS t"
            " UNION ALL SELECT s.ctid, -1, {copy_hash}, {copy_image} FROM {shadow} AS s),"
            " {classes} SELECT count(*) FROM classes"
        ).format(
            tid=source.tid,
            table=source.relation,
            shadow=run.job.shadow,
            table_hash=hashed.of(original),
            table_image=_image(original),
            copy_hash=hashed.of(copied),
            copy_image=_image(copied),
            classes=_CLASSES,
        ),
    )
