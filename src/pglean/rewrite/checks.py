"""Preflight: everything that stands in the way of a run is found, and reported at once, before anything is touched.

Each check is a function from what is known (`Facts`) to findings. All of them run. Codes are stable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pglean.errors import Finding
from pglean.server import Capabilities, Connection
from pglean.sql import query
from pglean.table import Table, quote_name

#: The oldest server that can read a range of blocks without reading the rest (TID range scan).
OLDEST = 140000


@dataclass(frozen=True, slots=True)
class Facts:
    """What the checks look at."""

    server: Capabilities
    table: Table
    #: Owner of the schema pglean, whether he is a superuser, whether others have rights there; None without schema.
    schema_owner: tuple[str, bool, bool] | None
    #: Another session works on this table.
    busy: bool
    #: Publications FOR ALL TABLES.
    all_tables: tuple[str, ...]
    #: Who holds the vacuum horizon for more than five minutes: one phrase each.
    horizon_holders: tuple[str, ...]


def gather(conn: Connection, server: Capabilities, table: Table, *, busy: bool) -> Facts:
    """Read what the checks need; takes no lock. `busy`: another session has the claim on the table."""
    owner = conn.execute(query("catalog.schema_owner")).fetchone()
    return Facts(
        server=server,
        table=table,
        schema_owner=None if owner is None else (owner[0], owner[1], owner[2]),
        busy=busy,
        all_tables=tuple(row[0] for row in conn.execute(query("checks.all_tables"))),
        horizon_holders=tuple(row[0] for row in conn.execute(query("checks.horizon"))),
    )


def run(facts: Facts) -> list[Finding]:
    """All findings of all checks; those that refuse the run have `fatal` set."""
    return [finding for check in CHECKS for finding in check(facts)]


_KINDS = {
    "v": ("view", "Name the tables that it reads."),
    "m": ("materialized view", "REFRESH MATERIALIZED VIEW CONCURRENTLY rewrites it."),
    "f": ("foreign table", "Its rows are stored elsewhere; repack them there."),
    "p": ("partitioned table", "It holds no rows itself: name its partitions with -t."),
    "i": ("index", "REINDEX INDEX CONCURRENTLY rebuilds it."),
    "I": ("partitioned index", "REINDEX INDEX CONCURRENTLY rebuilds it."),
    "S": ("sequence", "It has a single row."),
    "c": ("composite type", "It holds no rows."),
    "t": ("TOAST table", "Name the table that it belongs to: both are rewritten together."),
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


def _rights(facts: Facts) -> Iterator[Finding]:
    if not facts.server.is_superuser:
        yield Finding(
            "rights",
            f'role "{facts.server.role}" is not a superuser',
            "Exchanging the files of a table under its OID writes to pg_class, which only a superuser may.",
            "Connect as a superuser (-U), e.g. the role that initdb created.",
        )
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
    if table.is_system:
        yield Finding(
            "system",
            f"{name} is a system catalog",
            "The server itself depends on where its catalogs lie.",
            "VACUUM FULL or REINDEX the catalog in a quiet moment.",
        )
    if table.kind != "r":
        what, hint = _KINDS.get(table.kind, (f'relation of kind "{table.kind}"', None))
        yield Finding("kind", f"{name} is a {what}, not a table", None, hint)
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
    if table.method not in (None, "heap"):
        yield Finding(
            "access-method",
            f"{name} is stored by the access method {table.method}",
            "Only heap tables are copied by ranges of blocks.",
        )


def _key(facts: Facts) -> Iterator[Finding]:
    table = facts.table
    if table.kind == "r" and not table.is_system and table.key is None:
        yield Finding(
            "no-key",
            f"{table.qualified_name} has no primary key",
            "Nor has it a valid unique index, without predicate or expression, over columns that are all NOT NULL:"
            " nothing tells one changed row from another.",
            "Add one: CREATE UNIQUE INDEX CONCURRENTLY …, or set its columns NOT NULL.",
        )


def _indexes(facts: Facts) -> Iterator[Finding]:
    for index in facts.table.indexes:
        name = f"{quote_name(index.schema)}.{quote_name(index.name)}"
        if not index.valid:
            yield Finding(
                "invalid-index",
                f"index {name} is invalid",
                "It was left by a failed CREATE INDEX CONCURRENTLY or REINDEX CONCURRENTLY, or one is running.",
                f"DROP INDEX CONCURRENTLY or REINDEX INDEX CONCURRENTLY {name};",
            )
        if index.foreign_literals and not facts.table.owner_is_superuser:
            yield Finding(
                "index-literal",
                f"index {index.schema}.{index.name} has a literal of type {', '.join(index.foreign_literals)}",
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
    for holder in facts.horizon_holders:
        yield Finding(
            "horizon",
            f"the vacuum horizon is held by {holder}",
            "Dead rows newer than that cannot be removed, and new rows not be frozen, before it ends."
            " A repacked table will bloat again for the same reason.",
            "End it first, if you can.",
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


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _server,
    _rights,
    _kind,
    _key,
    _indexes,
    _busy,
    _horizon,
    _publications,
)
