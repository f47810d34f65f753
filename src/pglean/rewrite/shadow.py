"""The shadow: the table that is filled and whose file the original gets.

The original's own pg_attribute will read the shadow's tuples, so both must agree in the number, order, types and
storage of attributes. Nothing else of the original is needed: defaults, constraints, generation expressions, identity,
triggers and policies live in catalog entries of the original, which stay.
"""

from __future__ import annotations

from dataclasses import asdict

from psycopg import sql

from pglean import horizon
from pglean.errors import TableChanged
from pglean.rewrite import job as jobs
from pglean.rewrite.job import SCHEMA, Job
from pglean.rewrite.layout import Layout
from pglean.rewrite.run import Run
from pglean.session import Connection, scalar, transaction
from pglean.sql import fragment, query
from pglean.table import Column, Table

#: Of a VACUUM beside a busy application: a millisecond after a hundred pages that were written.
_REST_MS, _REST_AFTER = 1, 2000
#: Who holds a snapshot for longer is told, so many at the most.
_MOMENT_S, _TOLD_HOLDERS = 1.0, 5
#: Among so many pages lie those that nobody came to use: a table is extended by 512 of 8 kB at once, at most.
_LAST_PAGES = 1024


def create(conn: Connection, job: Job) -> None:
    """Make the empty shadow. On entry: an open transaction. Locks nothing but what it makes.

    It belongs to the table's owner from the start: index builds and VACUUM then run his code as himself. He has no
    USAGE on the schema, so he cannot reach it.
    """
    table, layout = job.table, job.layout
    conn.execute(
        sql.SQL("CREATE TABLE {} ({}) USING {} WITH ({}){}").format(
            job.shadow,
            sql.SQL(", ").join(_definition(layout, column) for column in table.columns),
            sql.Identifier(layout.method),
            sql.SQL(", ").join(_options(layout)),
            # Said explicitly: default_tablespace may be set for the role.
            sql.SQL(" TABLESPACE {}").format(sql.Identifier(layout.tablespace or default_tablespace(conn))),
        )
    )
    for column in table.columns:
        if column.dropped:
            conn.execute(
                sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(job.shadow, sql.Identifier(_dropped_name(column)))
            )
        elif column.stored and (storage := layout.storage(column)):
            conn.execute(
                sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET STORAGE {}").format(
                    job.shadow, sql.Identifier(column.name), fragment(storage)
                )
            )
    _check_columns(conn, job)
    owner = sql.Identifier(table.owner)
    # A publication FOR ALL TABLES would otherwise have the server refuse the refresh's DELETE.
    conn.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(job.shadow))
    conn.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(job.shadow, owner))
    conn.execute(sql.SQL("GRANT ALL ON {} TO {}").format(job.shadow, owner))
    conn.execute("SELECT pglean.conceal_1(%s::pg_catalog.regclass, %s)", (f"{SCHEMA}.{job.shadow_name}", table.oid))


def _check_columns(conn: Connection, job: Job) -> None:
    """The shadow was made from type *names*; they may have come to mean others since they were read.

    From now on both name their types by OID, and a change of the table's columns is noticed by its fingerprint.
    """
    different = [
        row[0]
        for row in conn.execute(
            query("shadow.differences"), {"table": job.table.oid, "shadow": f"{SCHEMA}.{job.shadow_name}"}
        )
    ]
    if different:
        raise TableChanged(
            f"columns of {job.table.qualified_name} or their types were changed by another session",
            detail=f"Columns: {', '.join(different)}.",
        )


def default_tablespace(conn: Connection) -> str:
    """Of the database."""
    return str(scalar(conn, query("report.default_tablespace")))


def _dropped_name(column: Column) -> str:
    return f"........pglean.dropped.{column.number}........"


def _definition(layout: Layout, column: Column) -> sql.Composed:
    if not column.stored:
        # Its place must be taken, its type is of no matter, since new tuples hold NULL there. Where the original has a
        # TOAST table, perhaps only because of this column, the shadow gets one too: options are kept there. Where it
        # has none, a virtual column of a long type must not bring one.
        return sql.SQL("{} {}").format(
            sql.Identifier(_dropped_name(column) if column.dropped else column.name),
            fragment("text" if layout.table.toast else "smallint"),
        )
    parts = [sql.Identifier(column.name), fragment(column.type_sql)]
    if compression := layout.compression(column):
        parts.append(fragment(f"COMPRESSION {compression}"))
    if column.collation_sql:
        parts.append(fragment(f"COLLATE {column.collation_sql}"))
    return sql.SQL(" ").join(parts)


def _options(layout: Layout) -> list[sql.Composable]:
    return [
        *(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
            for name, value in layout.parameters.items()
        ),
        # Our own VACUUM comes when it pays; the server's would compete with the copy.
        sql.SQL("autovacuum_enabled = off"),
        sql.SQL("toast.autovacuum_enabled = off"),
    ]


def columns(table: Table, alias: str = "t") -> tuple[sql.Composed, sql.Composed]:
    """The stored columns as a list of names, and as a list of columns of `alias`."""
    names = [sql.Identifier(column.name) for column in table.columns if column.stored]
    return (
        sql.SQL(", ").join(names),
        sql.SQL(", ").join(sql.SQL("{}.{}").format(sql.Identifier(alias), name) for name in names),
    )


def vacuum(run: Run, conn: Connection, *, patient: bool = True) -> None:
    """Freeze what can be frozen; pages that are frozen already are passed over.

    Locks the shadow alone (SHARE UPDATE EXCLUSIVE), which keeps no writer away. Unless `patient`, it is left alone
    where somebody else vacuums it.
    """
    run.purpose(conn, "freeze")
    # Our commits are asynchronous. As long as a commit is not on disk its rows bear no hint that it was one,
    # and VACUUM takes no such page for all-visible: a single synchronous commit brings all before it to the disk.
    with transaction(conn):
        conn.execute("SET LOCAL synchronous_commit = local")
        jobs.beat(conn, run.job, asdict(run.reporter.state))
    # Where others want the processors: without helpers, and with rests of the server's own.
    more = sql.SQL((", PARALLEL 0" if run.crowded else "") + ("" if patient else ", SKIP_LOCKED"))
    conn.execute(sql.SQL("SET vacuum_cost_delay = {}").format(sql.Literal(_REST_MS if run.crowded else 0)))
    conn.execute(sql.SQL("SET vacuum_cost_limit = {}").format(sql.Literal(_REST_AFTER)))
    conn.execute(sql.SQL("VACUUM (FREEZE, TRUNCATE false{}) {}").format(more, run.job.shadow))
    run.replaced = 0


def clear_dead(run: Run, conn: Connection) -> None:
    """Give back the space of rows whose transaction was rolled back; those are dead to everybody at once.

    Locks the shadow alone. On entry and exit: no transaction.
    """
    if scalar(conn, query("shadow.bytes"), {"shadow": f"{SCHEMA}.{run.job.shadow_name}"}):
        conn.execute(sql.SQL("VACUUM (TRUNCATE true) {}").format(run.job.shadow))


def _unused(run: Run, pages: int) -> int:
    """How many of the shadow's last pages have no row.

    Sessions that fill a table side by side extend it by several pages at once. Those that nobody came to use are left
    near its end; VACUUM passes over them, so that they are never all-visible.
    """
    first = max(pages - _LAST_PAGES, 0)
    used = sql.SQL("SELECT count(DISTINCT (ctid::text::point)[0]) FROM {} WHERE ctid >= {}::tid")
    return pages - first - int(scalar(run.control, used.format(run.job.shadow, sql.Literal(f"({first},0)"))))


def freeze(run: Run) -> None:
    """Vacuum and freeze the shadow, and note whether all of it is now visible to everybody.

    Only what every open snapshot sees can be frozen. Where an older one is open, its holder is told, and `run.frozen`
    stays False; it is tried again before the swap.
    """
    conn = run.control
    run.give_way(conn)
    run.workers.one(lambda worker, _: vacuum(run, worker))
    row = conn.execute(query("shadow.visible"), {"shadow": f"{SCHEMA}.{run.job.shadow_name}"}).fetchone()
    assert row is not None
    pages, visible = row
    run.shadow_pages = pages
    run.frozen = visible >= pages or (pages - visible <= _LAST_PAGES and visible + _unused(run, pages) >= pages)
    if not run.frozen and visible < pages // 2 and (holders := older_snapshots(conn, _MOMENT_S)):
        told = ", ".join(holders[:_TOLD_HOLDERS])
        run.reporter.message(f"the copy cannot be frozen yet: older snapshots are held by {told}")


def older_snapshots(conn: Connection, seconds: float) -> list[str]:
    """Who has held a snapshot for longer than that: what was written since cannot be frozen.

    Sessions of ours that hold one do so for as long as a statement lasts.
    """
    return [
        holder.phrase
        for holder in horizon.holders(conn)
        if not holder.catalogs_only
        and not holder.application_name.startswith("pglean ")
        and (holder.open_s is None or holder.open_s > seconds)
    ]
