"""Twins: an index of the shadow for each index of the table, which will give it its file.

*Every* index needs one. An index that kept its old file would point at rows of the old heap.
Constraints are not needed on the shadow: the original's catalog entries go on enforcing them, and their indexes
(exclusion, temporal) are made as plain indexes of the same method.

A definition is carried over as text, and text is names: a function, an operator, a type could be exchanged under its
name between reading and building, and the index would hold something else than its catalog entry says. So twins are
*made* at the very start, while the shadow is empty, in one short transaction, which then compares what both
definitions mean now; from then on a twin names everything by OID. Until it is *built* it is marked as not ready:
the copy does not maintain it. Building is a REINDEX, which parses nothing, and runs expressions as the table's owner.

Locks: those on the shadow alone; where a literal of a user's type has to be parsed for somebody who is no
superuser, SHARE on pg_type for the moment of that parsing. Killed: twins are there or not, built or not, as their rows
in pglean.twin say.
"""

from __future__ import annotations

from psycopg import errors as pg
from psycopg import sql

from pglean.errors import IndexesChanged, PgleanError, TableChanged
from pglean.locks import lock_types
from pglean.rewrite import job as jobs
from pglean.rewrite.job import SCHEMA, Job
from pglean.rewrite.run import Run
from pglean.session import Connection, scalar, transaction
from pglean.sql import fragment, query
from pglean.table import Index

#: Text of a definition, what else makes the index what it is, whether it has literals of a user's type.
_Definition = tuple[str | None, list[object], bool]

#: How often definitions are read while indexes are dropped in the middle of that.
_READINGS = 5


def create(conn: Connection, job: Job) -> None:
    """Make all twins, empty and not ready. On entry: an open transaction, in which the empty shadow was made.

    Raises `TableChanged` where a twin would not be what its index is, `IndexesChanged` where there are others by now,
    psycopg's LockNotAvailable after 200 ms.
    """
    indexes = {index.oid: index for index in job.table.indexes}
    definitions = _definitions(conn, list(indexes))
    if not job.table.owner_is_superuser and any(literals for _, _, literals in definitions.values()):
        # CREATE INDEX reads literals with our rights. Which types they are of was looked at by preflight; under this
        # lock their names cannot come to mean others. So the text is read again.
        lock_types(conn)
        definitions = _definitions(conn, list(indexes))
    if definitions.keys() != indexes.keys():
        raise IndexesChanged(f"indexes of {job.table.qualified_name} were changed by another session")
    twins = {oid: _create(conn, job, indexes[oid], text) for oid, (text, _, _) in definitions.items()}
    now = _definitions(conn, [*twins.keys(), *twins.values()])
    for oid, twin in twins.items():
        if oid not in now:
            raise _dropped(indexes[oid])
        if now[twin][:2] != now[oid][:2]:
            raise TableChanged(f"index {indexes[oid].name}, or what it uses, was changed by another session")
        jobs.record_twin(conn, job.id, oid, twin)


def _definitions(conn: Connection, oids: list[int]) -> dict[int, _Definition]:
    """Of those of the indexes that are there. On entry: an open transaction.

    They are not locked. The server puts a definition together from several catalogs, as they are at that moment, and
    where somebody drops the index meanwhile it ends in an internal error. Read again, the index is gone.
    """
    for left in reversed(range(_READINGS)):
        try:
            with conn.transaction():
                rows = conn.execute(query("indexes.definitions"), {"oids": oids}).fetchall()
        except pg.InternalError_:
            if not left:
                raise
        else:
            return {oid: (text, rest, literals) for oid, text, rest, literals in rows}
    raise AssertionError("unreachable")


def _create(conn: Connection, job: Job, index: Index, text: str | None, *, postpone: bool = True) -> int:
    if text is None:
        raise PgleanError(f"the definition of index {index.name} could not be understood")
    twin = job.twin_name(index.oid)
    # Only a B-tree can be UNIQUE in SQL; a temporal key is a unique GiST in the catalog only.
    unique = sql.SQL("UNIQUE " if index.unique and index.method == "btree" else "")
    conn.execute(
        sql.SQL("SET LOCAL default_tablespace = {}").format(sql.Literal(job.layout.index_tablespace(index) or ""))
    )
    conn.execute(
        sql.SQL("CREATE {}INDEX {} ON {} USING {}").format(unique, sql.Identifier(twin), job.shadow, fragment(text))
    )
    name = f"{SCHEMA}.{twin}"
    if postpone:
        conn.execute("SELECT pglean.postpone_1(%s::pg_catalog.regclass)", (name,))
    return int(scalar(conn, "SELECT %s::pg_catalog.regclass::pg_catalog.oid", (name,)))


def run(run: Run) -> None:
    """Build all twins that are not built, as many at once as there are workers to spare.

    The shadow holds what the table held in one snapshot, in which the constraints were true: unique twins can be built.
    The one with most work comes first: begun last, it would be built alone while the other workers have nothing to do.
    """
    # Where all begin at once, or none beside another, their order is no matter.
    efforts: dict[int, float] = {}
    if 1 < run.workers.count < len(run.table.indexes):
        found = {"oid": run.table.oid, "schema": run.table.schema, "name": run.table.name}
        efforts = dict(run.control.execute(query("indexes.effort"), found).fetchall())
    built = jobs.twins(run.control, run.job.id)
    empty = jobs.unbuilt(run.control, run.job.id)
    indexes = sorted(
        # One that somebody is building just now comes later (`swap`).
        (index for index in run.table.indexes if index.oid not in built and index.valid),
        key=lambda index: -float(efforts.get(index.oid, 0)),
    )
    run.reporter.total(len(indexes), "indexes")

    def build(conn: Connection, _: str, index: Index) -> None:
        run.pass_gate()
        run.give_way(conn)
        act = _build if index.oid in empty else _make
        act(run, conn, index, len(indexes))

    take = run.workers.each if run.workers_to_spare(run.control) else run.workers.in_turn
    take(indexes, build)
    run.twins = jobs.twins(run.control, run.job.id)


def _build(run: Run, conn: Connection, index: Index, count: int) -> None:
    run.reach("index: before a build")
    run.purpose(conn, f"index {index.name}")
    twin = sql.Identifier(SCHEMA, run.job.twin_name(index.oid))
    with transaction(conn):
        jobs.check_current(conn, run.job)
        _no_helpers(run, conn, count)
        conn.execute(sql.SQL("REINDEX INDEX {}").format(twin))
        jobs.record_built(conn, run.job.id, index.oid)
        run.reach("index: after a build")
    run.reporter.advance(1)


def _make(run: Run, conn: Connection, index: Index, count: int) -> None:
    """Make and build the twin of an index that somebody has made since the run began.

    On entry: the shadow is what the table was in a snapshot taken since the index became valid: it can be built.
    """
    run.purpose(conn, f"index {index.name}")
    with transaction(conn):
        jobs.check_current(conn, run.job)
        _no_helpers(run, conn, count)
        found = _definitions(conn, [index.oid])
        if index.oid not in found:
            raise _dropped(index)
        text, _, literals = found[index.oid]
        if literals and not run.table.owner_is_superuser:
            # Parsing them safely would lock pg_type for as long as the build takes.
            raise TableChanged(f"index {index.name}, made by another session, has a literal of a user's type")
        twin = _create(conn, run.job, index, text, postpone=False)
        # Both name what they use by OID; whatever it is called after a build of hours, they agree on it.
        now = _definitions(conn, [index.oid, twin])
        if index.oid not in now:
            raise _dropped(index)
        if now[index.oid][:2] != now[twin][:2]:
            raise TableChanged(f"index {index.name}, or what it uses, was changed by another session")
        jobs.record_twin(conn, run.job.id, index.oid, twin)
        jobs.record_built(conn, run.job.id, index.oid)
    run.reporter.advance(1)


def _dropped(index: Index) -> IndexesChanged:
    return IndexesChanged(f"index {index.name} was dropped by another session")


def forget(run: Run, conn: Connection, oid: int) -> None:
    """Drop the twin of an index that is gone, or has become another. On entry: no transaction.

    Raises psycopg's LockNotAvailable where somebody has locked the shadow.
    """
    twin = sql.Identifier(SCHEMA, run.job.twin_name(oid))
    with transaction(conn):
        conn.execute("SET LOCAL lock_timeout = '1s'")
        conn.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(twin))
        jobs.forget_twin(conn, run.job.id, oid)


def _no_helpers(run: Run, conn: Connection, count: int) -> None:
    if run.crowded or (run.workers.count > 1 and count > 1):
        # Several builds at once use the processors already; each would fetch helpers of its own.
        conn.execute("SET LOCAL max_parallel_maintenance_workers = 0")
