"""Preflight: everything that stands in the way of a run is found, and reported at once, before anything is touched.

Each check is a function from what is known (`Facts`) to findings. All of them run. Codes are stable.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pglean import horizon
from pglean.engines import candidate, repair
from pglean.engines.candidate import Candidate
from pglean.errors import Finding
from pglean.horizon import Holder
from pglean.options import Options
from pglean.parameters import integer, parameters
from pglean.rewrite import rights
from pglean.server import Capabilities
from pglean.session import Connection, scalar
from pglean.sql import query
from pglean.table import Column, Table, quote_name

#: The oldest server that can read a range of blocks without reading the rest (TID range scan).
OLDEST = 140000
#: The most columns that a table can have; what is surely left of a page for the values of a row; what is left in it of
#: a value that is stored out of line, padded.
_MOST_COLUMNS, _PAGE_BYTES, _OUT_OF_LINE_BYTES = 1600, 7920, 24


@dataclass(frozen=True, slots=True)
class Facts:
    """What the checks look at."""

    server: Capabilities
    table: Table
    options: Options
    #: Owner of the schema pglean, whether he is a superuser, whether others have rights there; None without schema.
    schema_owner: tuple[str, bool, bool] | None
    #: Another session works on this table.
    busy: bool
    #: Publications FOR ALL TABLES.
    all_tables: tuple[str, ...]
    #: Who holds the vacuum horizon for long.
    horizon_holders: tuple[Holder, ...]
    #: Event triggers that fire for DDL of ours.
    event_triggers: tuple[str, ...]
    #: Who we are there; and what we may do to the table where we are no superuser and it is an ordinary one.
    session: rights.Session
    on_table: rights.OnTable | None
    #: Sessions that the run will open in all (0: not known), those of others, and how many are kept for superusers.
    sessions: int
    other_sessions: int
    reserved_sessions: int
    #: What the rows would take in full pages, by the statistics; None where there are none.
    live_bytes: int | None
    #: Whether the tablespace, the access method and the compression that the options name exist; True where none is.
    tablespace_exists: bool
    method_exists: bool
    compression_exists: bool
    #: Whether the access method that is asked for is the server's own heap.
    method_is_heap: bool
    #: Columns of a table without a key that are no part of its rows' hashes.
    unhashed: tuple[str, ...]
    #: Invalid indexes of the table.
    invalid: tuple[Candidate, ...]


def gather(
    conn: Connection,
    server: Capabilities,
    table: Table,
    options: Options,
    *,
    busy: bool,
    sessions: int = 0,
    spares: Sequence[int] = (),
) -> Facts:
    """Read what the checks need; takes no lock.

    `busy`: another session has the claim on the table. `sessions`: how many the run will open in all, those that it
    has opened already among them. `spares`: processes of sessions that are open and wait for a run.
    """
    owner = conn.execute(query("catalog.schema_owner")).fetchone()
    others = conn.execute(query("checks.connections"), {"spares": list(spares)}).fetchone()
    assert others is not None
    wanted = {
        "tablespace": options.tablespace,
        "method": options.access_method,
        "compression": options.compression and options.compression.value,
    }
    layout = conn.execute(query("checks.layout"), wanted).fetchone()
    assert layout is not None
    ordinary = table.kind == "r" and not table.is_system
    return Facts(
        server=server,
        table=table,
        options=options,
        schema_owner=None if owner is None else (owner[0], owner[1], owner[2]),
        busy=busy,
        all_tables=tuple(row[0] for row in conn.execute(query("checks.all_tables"))),
        horizon_holders=tuple(
            holder for holder in horizon.holders(conn) if not holder.catalogs_only and holder.lasts()
        ),
        event_triggers=tuple(row[0] for row in conn.execute(query("checks.event_triggers"))),
        session=rights.of_session(conn),
        on_table=rights.on_table(conn, table.oid) if ordinary and not server.is_superuser else None,
        sessions=sessions,
        other_sessions=int(others[0]),
        reserved_sessions=int(others[1]),
        live_bytes=_live_bytes(conn, server, table),
        tablespace_exists=layout[0],
        method_exists=layout[1],
        method_is_heap=layout[2],
        compression_exists=layout[3],
        unhashed=_unhashed(conn, table) if ordinary and table.key is None else (),
        invalid=tuple(index for index in candidate.candidates(conn, table.oid) if not index.valid)
        if any(not index.valid for index in table.indexes)
        else (),
    )


def _unhashed(conn: Connection, table: Table) -> tuple[str, ...]:
    ways: dict[int, str] = dict(conn.execute(query("images.hashing"), {"oid": table.oid}).fetchall())
    return tuple(column.name for column in table.stored_columns if ways.get(column.number) == "none")


def _live_bytes(conn: Connection, server: Capabilities, table: Table) -> int | None:
    # An ordinary role, which is refused anyway, must not look at the statistics.
    value = scalar(conn, query("checks.live_bytes"), {"oid": table.oid}) if server.is_superuser else None
    return None if value is None else int(value)


def run(facts: Facts) -> list[Finding]:
    """All findings of all checks; those that refuse the run have `fatal` set."""
    return [finding for check in CHECKS for finding in check(facts)]


_KINDS = {
    "v": ("a view", "Name the tables that it reads."),
    "m": ("a materialized view", "REFRESH MATERIALIZED VIEW CONCURRENTLY rewrites it."),
    "f": ("a foreign table", "Its rows are stored elsewhere; repack them there."),
    "p": ("a partitioned table", "It holds no rows itself: -I names it with all its partitions."),
    "i": ("an index", None),
    "I": ("a partitioned index", None),
    "S": ("a sequence", "It has a single row."),
    "c": ("a composite type", "It holds no rows."),
    "t": ("a TOAST table", "Name the table that it belongs to: both are rewritten together."),
}


def _server(facts: Facts) -> Iterator[Finding]:
    if facts.server.version < OLDEST:
        yield Finding(
            "version",
            f"server version {facts.server.version // 10000} is too old",
            "pglean needs PostgreSQL 14 or later: ranges of blocks can be read by themselves only since then.",
            "Upgrade the server, or use VACUUM FULL.",
        )
    if facts.server.in_recovery:
        yield Finding(
            "standby",
            "the server is a standby",
            "Nothing can be written there.",
            "Run pglean on the primary; the standby follows by itself.",
        )
    if not facts.server.has_plpgsql:
        yield Finding(
            "plpgsql",
            "the language plpgsql is missing from this database",
            "The triggers that record changed keys are written in it.",
            "CREATE EXTENSION plpgsql;",
        )


def _connections(facts: Facts) -> Iterator[Finding]:
    yield from _too_many(facts.server, facts.sessions, facts.other_sessions, facts.reserved_sessions)


def of_connections(
    conn: Connection, server: Capabilities, sessions: int, spares: Sequence[int] = ()
) -> Iterator[Finding]:
    """Whether the server has so many left, for whatever they are wanted; `spares` are open already."""
    others = conn.execute(query("checks.connections"), {"spares": list(spares)}).fetchone()
    assert others is not None
    yield from _too_many(server, sessions, int(others[0]), int(others[1]))


def _too_many(server: Capabilities, sessions: int, others: int, kept: int) -> Iterator[Finding]:
    # Reserved ones are for those who log in as superusers; who works as one only afterwards has to do without.
    reserved = 0 if server.login_is_superuser else kept
    free = max(server.max_connections - reserved - others, 0)
    if sessions > free:
        yield Finding(
            "connections",
            f"the run needs {sessions} connections, of which the server has {free} left",
            f"max_connections: {server.max_connections}, in use by other sessions: {others},"
            f" reserved for privileged roles: {kept}.",
            "Ask for fewer workers (-j) or tables at once, end idle sessions, or raise max_connections.",
        )


def _rights(facts: Facts) -> Iterator[Finding]:
    yield from rights.findings(facts.session, facts.on_table)


def _schema(facts: Facts) -> Iterator[Finding]:
    if facts.schema_owner is not None:
        owner, trusted, shared = facts.schema_owner
        if not trusted:
            yield Finding(
                "schema",
                f'there is a schema "pglean" that is not ours (owner "{owner}")',
                "It was not made by a superuser's run of pglean; what stands in it cannot be trusted.",
                "Rename or drop it: ALTER SCHEMA pglean RENAME TO something_else;",
            )
        elif shared:
            yield Finding(
                "schema",
                'the schema "pglean" has been granted to other roles',
                "Whoever may use it could call or read the helpers of a run, which work with a superuser's rights.",
                "REVOKE ALL ON SCHEMA pglean FROM the roles that \\dn+ pglean shows.",
            )


def _kind(facts: Facts) -> Iterator[Finding]:
    table = facts.table
    name = table.qualified_name
    if table.is_system and table.schema == "pglean":
        yield Finding(
            "system",
            f"{name} is a table of pglean itself",
            "A run writes to it.",
            "VACUUM FULL it while no run is in progress.",
        )
    elif table.is_system and table.kind != "t":
        yield Finding(
            "system",
            f"{name} is a system catalog",
            "The server itself depends on where its catalogs lie.",
            "VACUUM FULL or REINDEX the catalog in a quiet moment.",
        )
    if table.kind != "r":
        what, hint = _KINDS.get(table.kind, (f'a relation of kind "{table.kind}"', None))
        wanted = "an ordinary table" if what.endswith("table") else "a table"
        if table.kind in "iI":
            hint = f"Rebuild it by itself: -i {shlex.quote(name)}, or name its table."
        yield Finding("kind", f"{name} is {what}, not {wanted}", None, hint)
        return
    if table.persistence == "t":
        yield Finding(
            "temporary",
            f"{name} is a temporary table",
            "Only the session that made it can read it.",
            "VACUUM FULL it in that session.",
        )
    if table.persistence == "u":
        yield Finding(
            "unlogged",
            f"{name} is an unlogged table",
            "A crash in the middle of the run would empty one file and keep the other.",
            "Use VACUUM FULL, or ALTER TABLE … SET LOGGED first.",
        )
    if table.method is not None and not table.is_heap:
        yield Finding(
            "access-method",
            f"{name} is stored by the access method {table.method}",
            "Only heap tables are copied by ranges of blocks.",
        )


def _key(facts: Facts) -> Iterator[Finding]:
    table = facts.table
    if table.kind != "r" or table.is_system or table.key is not None:
        return
    columns = table.stored_columns
    if not columns:
        yield Finding(
            "no-column",
            f"{table.qualified_name} has no column",
            "Its rows hold nothing that could be recorded.",
            "VACUUM FULL rewrites it.",
        )
        return
    yield Finding(
        "no-key",
        f"{table.qualified_name} has no primary key",
        "Nor has it a valid unique index, without predicate or expression, over columns that are all NOT NULL. So its"
        " rows are told apart by all they hold: the copy holds one snapshot for as long as it takes, before which"
        " nothing in the database can be vacuumed away; an interrupted copy begins again; each change is recorded with"
        " the whole row, an UPDATE with both; and a temporary index is built on the copy."
        + (
            " Long values are unpacked for that, and for --verify full written to temporary files so, several times"
            " over: what that costs follows their size uncompressed."
            if table.toast and table.toast.bytes
            else ""
        ),
        "A key spares all that: before the run, CREATE UNIQUE INDEX CONCURRENTLY …, or set its columns NOT NULL.",
        fatal=False,
    )
    if facts.unhashed:
        names = ", ".join(quote_name(name) for name in facts.unhashed)
        alike = "all rows" if len(facts.unhashed) == len(columns) else "rows that differ in nothing else"
        yield Finding(
            "hash",
            f"rows of {table.qualified_name} are found without looking at {names}",
            f"Values of such a type cannot be hashed. For each row that is changed or deleted, {alike} are read in the"
            " copy: with many of both, that takes very long.",
            "Repack it while little is written to it, or add a key.",
            fatal=False,
        )
    if len(columns) >= _MOST_COLUMNS:
        yield Finding(
            "columns",
            f"{table.qualified_name} has no key, and {len(columns)} columns",
            "Its rows are recorded with one column more, which is more than a table can have.",
            "Drop a column, add a key, or use VACUUM FULL.",
        )
    elif sum(_least_width(column) for column in columns) > _PAGE_BYTES:
        yield Finding(
            "wide-rows",
            f"rows of {table.qualified_name} may take up a whole page, beside which their number is recorded",
            "A row that leaves less than eight bytes of the page could not be written while the run goes on.",
            "Look at the longest rows: pg_column_size(t.*) must be less than 8140.",
            fatal=False,
        )


def _least_width(column: Column) -> int:
    """Bytes that a value takes up in its row, out of line if it can be, with padding; if it cannot, it may take all."""
    if column.width > 0:
        return -(-column.width // 8) * 8
    return _PAGE_BYTES + 1 if column.type_storage == "p" else _OUT_OF_LINE_BYTES


#: Codes of findings that are not about the table: they refuse every one of the database.
EVERY_TABLE = frozenset({"version", "standby", "plpgsql", "connections", "rights", "schema"})


def _indexes(facts: Facts) -> Iterator[Finding]:
    for index in facts.invalid:
        yield repair.finding(index, facts.options.invalid_indexes, facts.table.qualified_name)
    yield from of_indexes(facts.table)


def of_indexes(table: Table) -> Iterator[Finding]:
    """What stands in the way of building the table's indexes anew, but that some are invalid."""
    for index in table.indexes:
        name = f"{quote_name(index.schema)}.{quote_name(index.name)}"
        if index.foreign_literals and not table.owner_is_superuser:
            several = len(index.foreign_literals) > 1
            literals = "literals of types" if several else "a literal of type"
            yield Finding(
                "index-literal",
                f"index {name} has {literals} {', '.join(index.foreign_literals)}",
                "Reading such a literal may run code of the type's owner; CREATE INDEX would run it with your rights.",
                "Write it as a cast of its parts, or let a superuser own the table.",
            )
        if index.whole_row:
            yield Finding(
                "whole-row-index",
                f"index {name} uses the row as a whole",
                "Such an expression has the table's own row type, which the shadow table has not.",
                "Write the expression with the columns it needs, or drop the index for the run.",
            )


def _busy(facts: Facts) -> Iterator[Finding]:
    if facts.busy:
        yield Finding(
            "busy",
            f"another run of pglean works on {facts.table.qualified_name}",
            "Two runs on one table exclude each other.",
            "See `pglean status`.",
        )


def _horizon(facts: Facts) -> Iterator[Finding]:
    database = facts.server.database
    for holder in facts.horizon_holders:
        # After a statement nothing follows, so that it can be taken as it stands.
        caution = "" if holder.command(database) or not holder.caution else f"; {holder.caution}"
        yield Finding(
            "horizon",
            f"the vacuum horizon is held by {holder.phrase}",
            "Dead rows are not copied, whoever can still see them. But those that are updated or deleted during the run"
            " and later stay, dead, until that ends, however often the table is vacuumed: it bloats again at once."
            " Nor can new rows be frozen before.",
            f"End it first, if you can: {holder.end(database)}{caution}",
            fatal=False,
        )


def _publications(facts: Facts) -> Iterator[Finding]:
    for name in facts.all_tables:
        yield Finding(
            "publication",
            f'publication "{name}" is FOR ALL TABLES, hence for those of the schema pglean too',
            "Running subscriptions go on: nothing of them is sent. But CREATE SUBSCRIPTION and REFRESH PUBLICATION fail"
            " where the subscriber has no such tables.",
            "Before these commands, run `pglean uninstall`.",
            fatal=False,
        )


def _event_triggers(facts: Facts) -> Iterator[Finding]:
    if facts.event_triggers:
        names = [quote_name(name) for name in facts.event_triggers]
        yield Finding(
            "event-trigger",
            f"event trigger {names[0]} runs for the helpers that are made and dropped"
            if len(names) == 1
            else f"event triggers {', '.join(names)} run for the helpers that are made and dropped",
            "A run makes and drops tables, indexes, functions and triggers. One that forbids any of this ends the run,"
            " and perhaps keeps it from being undone.",
            " ".join(f"ALTER EVENT TRIGGER {name} DISABLE;" for name in names) + " for the time of the run.",
            fatal=False,
        )


def _fillfactor(facts: Facts) -> Iterator[Finding]:
    fillfactor = facts.options.fillfactor or integer(parameters(facts.table.options), "fillfactor", 0)
    if facts.live_bytes is None or not fillfactor:
        return
    if facts.live_bytes * 100 / fillfactor > facts.table.heap_bytes:
        yield Finding(
            "fillfactor",
            f"with its fillfactor of {fillfactor}, {facts.table.qualified_name} may become larger than it is",
            "By its statistics the rows, with so much of each page left free, need more than the present pages.",
            "More disk space is needed than the present size of the table; or RESET (fillfactor) before.",
            fatal=False,
        )


def _layout(facts: Facts) -> Iterator[Finding]:
    options = facts.options
    if not facts.tablespace_exists:
        yield Finding(
            "tablespace",
            f'there is no tablespace "{options.tablespace}" that a table could be moved to',
            "pg_global is for what all databases share.",
            "\\db in psql lists those that there are.",
        )
    if not facts.method_exists:
        yield Finding(
            "method",
            f'there is no table access method "{options.access_method}"',
            None,
            "SELECT amname FROM pg_am WHERE amtype = 't' lists those that there are.",
        )
    elif not facts.method_is_heap:
        yield Finding(
            "method",
            f'the access method "{options.access_method}" is not the server\'s own heap',
            "The copy is filled, changed and vacuumed as a heap is, and the files are exchanged as VACUUM FULL does it."
            " Not every access method can do all of that.",
            "Try it on a copy of the database first, with --verify full.",
            fatal=False,
        )
    if not facts.compression_exists:
        yield Finding(
            "compression",
            f"this server cannot compress by {options.compression}",
            "It was built without that library.",
        )


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _server,
    _connections,
    _rights,
    _schema,
    _kind,
    _key,
    _indexes,
    _busy,
    _horizon,
    _publications,
    _event_triggers,
    _fillfactor,
    _layout,
)
