"""Twins: an index of the shadow for each index of the table, which will give it its file.

*Every* index needs one. An index that kept its old file would point at rows of the old heap.
Constraints are not needed on the shadow: the original's catalog entries go on enforcing them, and their indexes
(exclusion, temporal) are built as plain indexes of the same method.

Invariant: shadow content is that of a refresh in one snapshot, in which the original's constraints hold; a unique
twin can be built. Locks: SHARE on the shadow alone. CREATE INDEX runs expressions as the shadow's owner, who is the
table's. Killed: a twin is there with its checkpoint, or not at all.
"""

from __future__ import annotations

from psycopg import sql

from pglean.errors import PgleanError
from pglean.rewrite import job as jobs
from pglean.rewrite.job import SCHEMA
from pglean.rewrite.run import Run
from pglean.server import Connection, scalar, transaction
from pglean.sql import fragment, query
from pglean.table import Index


def run(run: Run) -> None:
    """Build all twins, as many at once as there are workers.

    The one with most work comes first: begun last, it would be built alone while the other workers have nothing to do.
    """
    efforts: dict[int, float] = dict(run.control.execute(query("indexes.effort"), {"oid": run.table.oid}).fetchall())
    indexes = sorted(run.table.indexes, key=lambda index: -float(efforts.get(index.oid, 0)))
    run.reporter.total(len(indexes), "indexes")
    run.workers.each(indexes, lambda conn, _, index: _build(run, conn, index, len(indexes)))
    run.twins = jobs.twins(run.control, run.job.id)


def _build(run: Run, conn: Connection, index: Index, count: int) -> None:
    if index.definition_sql is None:
        raise PgleanError(f"the definition of index {index.name} could not be understood")
    run.reach("index: before a build")
    run.purpose(conn, f"index {index.name}")
    twin = run.job.twin_name(index.oid)
    # Only a B-tree can be UNIQUE in SQL; a temporal key is a unique GiST in the catalog only.
    unique = sql.SQL("UNIQUE " if index.unique and index.method == "btree" else "")
    with transaction(conn):
        conn.execute(sql.SQL("SET LOCAL default_tablespace = {}").format(sql.Literal(index.tablespace or "")))
        if run.workers.count > 1 and count > 1:
            # Several builds at once use the processors already; each would fetch helpers of its own.
            conn.execute("SET LOCAL max_parallel_maintenance_workers = 0")
        conn.execute(
            sql.SQL("CREATE {}INDEX {} ON {} USING {}").format(
                unique, sql.Identifier(twin), run.job.shadow, fragment(index.definition_sql)
            )
        )
        oid = scalar(conn, "SELECT %s::pg_catalog.regclass::pg_catalog.oid", (f"{SCHEMA}.{twin}",))
        jobs.record_twin(conn, run.job.id, index.oid, int(oid))
        run.reach("index: after a build")
    run.reporter.advance(1)
