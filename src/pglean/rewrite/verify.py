"""Verification: rows are facts about a snapshot, so both tables are compared in the snapshot of a refresh.

Where the copy was read by an index, rows are counted without one: a damaged index would hide the same rows twice.
Runs inside the refresh's transaction; locks nothing more. `count` compares numbers of rows; `full` joins both tables by
the key and compares the rows' images (``*<>`` compares values byte by byte after detoasting, needs no equality
operator, and runs no code of a type's owner). Without a key images are counted, and compared in number (`images`).
"""

from __future__ import annotations

from psycopg import sql

from pglean import guard
from pglean.errors import VerificationFailed
from pglean.options import Verify
from pglean.rewrite import images, order
from pglean.rewrite.run import Run
from pglean.rewrite.shadow import columns
from pglean.session import Connection, scalar
from pglean.sql import fragment

_HINT = "Check the table with pg_amcheck --heapallindexed; if it is sound, this is a bug of pglean: report it."


def compare(run: Run) -> None:
    """Raise `VerificationFailed` where shadow and table differ.

    On entry: the control session's transaction, in which the refresh has just been done and is not committed yet.
    """
    if run.job.options.verify is Verify.NONE:
        return
    # Both through the guard: planning a query on the shadow reads the expressions of its indexes, as on the table.
    expected, found = _counts(run)
    run.rows = found
    if expected != found:
        raise VerificationFailed(
            f"verification of {run.table.qualified_name} failed: {expected} rows in the table, {found} in its copy",
            detail="Nothing was swapped; the table is as it was.",
            hint=_HINT,
        )
    if run.job.options.verify is Verify.FULL and (different := _different(run)):
        raise VerificationFailed(
            f"verification of {run.table.qualified_name} failed: {different} rows are missing in its copy or differ",
            detail="Nothing was swapped; the table is as it was.",
            hint=_HINT,
        )


def _counts(run: Run) -> tuple[int, int]:
    """Rows of the table and of the shadow in this snapshot, counted at the same time.

    Only the control session sees what its refresh has written; the table, any session that has its snapshot.
    """
    snapshot = scalar(run.control, "SELECT pg_catalog.pg_export_snapshot()")
    counts: dict[str, int] = {}

    def count(conn: Connection, worker: str, what: str) -> None:
        if what == "copy":
            counts[what] = guard.execute(run.control, run.table, "c", lambda _: _count(run.job.shadow))
            return
        run.purpose(conn, "verify")
        with run.step(conn, snapshot=snapshot):
            run.no_helpers(conn)
            if run.job.order is not None and run.job.order.ranges is not None:
                order.prepare_count(conn)
            counts[what] = guard.execute(conn, run.table, worker, lambda source: _count(source.relation))

    run.purpose(run.control, "verify")
    run.no_helpers(run.control)
    take = run.workers.in_turn if run.crowded else run.workers.each
    take(["table", "copy"], count)
    return counts["table"], counts["copy"]


def _count(relation: sql.Composable) -> sql.Composed:
    return sql.SQL("SELECT pg_catalog.count(*) FROM {} AS t").format(relation)


def _different(run: Run) -> int:
    key = run.table.key
    if key is None:
        return images.different(run)
    _, left = columns(run.table, "t")
    _, right = columns(run.table, "s")
    same_key = sql.SQL(" AND ").join(
        sql.SQL("t.{name} {equals} s.{name}{collate}").format(
            name=sql.Identifier(column.name),
            equals=fragment(column.equality_sql),
            collate=fragment(f" COLLATE {column.collation_sql}" if column.collation_sql else ""),
        )
        for column in key.columns
    )
    return guard.execute(
        run.control,
        run.table,
        "c",
        lambda source: sql.SQL(
            # Where no s matches, its key is NULL and so its image differs from t's, whose key never is.
            "SELECT pg_catalog.count(*) FROM {table} AS t LEFT JOIN {shadow} AS s ON {same_key}"
            " WHERE ROW({left})::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW({right})::pg_catalog.record"
        ).format(table=source.relation, shadow=run.job.shadow, same_key=same_key, left=left, right=right),
    )
