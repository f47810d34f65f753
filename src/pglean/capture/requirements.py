"""What capture from the WAL takes: of the server, of our role, and of the table. Takes no lock."""

from __future__ import annotations

from collections.abc import Iterator

from pglean.errors import Finding
from pglean.server import Server
from pglean.session import Connection
from pglean.sql import query
from pglean.table import Key, Table, quote_name

#: Code of the findings.
CODE = "capture"
#: Since when logical decoding is switched on by the first slot, and stored generated columns can be published.
_ON_DEMAND, _GENERATED = 190000, 180000


def findings(server: Server, conn: Connection, table: Table) -> list[Finding]:
    """What is missing for the changes of the table to be captured from the WAL."""
    found = [*_of_server(server, conn)]
    if table.kind != "r":
        return found
    if table.key is None:
        return [*found, *_of_whole_rows(server, conn, table)]
    return [*found, *_of_table(server, conn, table, table.key)]


def no_limit() -> Finding:
    """A run is to be kept, but nobody has said how much WAL may be retained meanwhile."""
    return Finding(
        CODE, "--keep needs a replication slot that outlives the process, hence --max-slot-wal", None, "Give both."
    )


def large_transaction() -> Finding:
    """The copy is one transaction, which the slot reads as well, and keeps on the disk until it ends."""
    return Finding(
        CODE,
        "the rows are sorted in one statement, which a replication slot would keep on the disk as well",
        "It takes two to three times the size of the copy in pg_replslot.",
        "--capture wal does so all the same.",
    )


def _of_server(server: Server, conn: Connection) -> Iterator[Finding]:
    row = conn.execute(query("capture.server")).fetchone()
    assert row is not None
    level, slots, used_slots, senders, used_senders, synchronous, replicates = row
    on_demand = server.capabilities.version >= _ON_DEMAND
    if level != "logical" and not (on_demand and level == "replica"):
        wanted = "replica" if on_demand else "logical"
        yield Finding(
            CODE,
            f"wal_level is {level}",
            "The WAL does not tell which rows were changed.",
            f"ALTER SYSTEM SET wal_level = {wanted}; and restart the server, or let triggers capture the changes"
            " (--capture trigger).",
        )
    if used_slots >= slots:
        yield Finding(
            CODE,
            f"all {slots} replication slots are in use",
            "Capture from the WAL needs one.",
            "Drop one that nobody needs (pg_replication_slots), or raise max_replication_slots and restart the server.",
        )
    if used_senders >= senders:
        yield Finding(
            CODE,
            f"all {senders} WAL senders are in use",
            "Capture from the WAL needs one.",
            "Raise max_wal_senders and restart the server.",
        )
    # Who is no superuser is refused anyway, and gains nothing by it.
    if not replicates and server.capabilities.is_superuser:
        yield Finding(
            CODE,
            f"role {quote_name(server.capabilities.login_role)} may not use the replication protocol",
            "It is what a replication slot is read by.",
            f"ALTER ROLE {quote_name(server.capabilities.login_role)} REPLICATION;",
        )
    if "*" in synchronous:
        yield Finding(
            CODE,
            "synchronous_standby_names names every standby",
            "Commits would wait for the session that reads the slot, as if it were a standby.",
            "Name the standbys, or let triggers capture the changes (--capture trigger).",
        )


def _of_table(server: Server, conn: Connection, table: Table, key: Key) -> Iterator[Finding]:
    letter, index = conn.execute(query("capture.replica_identity"), {"oid": table.oid}).fetchone() or ("n", None)
    if letter != "f" and index != key.index_oid:
        yield Finding(
            CODE,
            f"the replica identity of {table.qualified_name} is not its key ({key.index_name})",
            "Without it, UPDATE and DELETE would fail on a table that is published, or old keys be missing in the WAL.",
            f"ALTER TABLE {table.qualified_name} REPLICA IDENTITY {_fit(table, key, letter)}; or let triggers capture"
            " the changes (--capture trigger).",
        )
    parameters = {
        "types": [column.base_oid for column in key.columns],
        "trusted": table.owner_is_superuser,
    }
    for name, why in conn.execute(query("capture.unfit_types"), parameters).fetchall():
        yield Finding(
            CODE,
            f"a key column of {table.qualified_name} has the type {name}, which cannot be captured from the WAL",
            "Its values may mean something else when they are read."
            if why == "names"
            else "Reading its values as text may run code of the type's owner with your rights.",
            "Let triggers capture the changes (--capture trigger).",
        )
    generated = {column.number for column in table.columns if column.generated}
    published = server.capabilities.version >= _GENERATED and letter != "f"
    for column in key.columns:
        if column.number in generated and not published:
            yield Finding(
                CODE,
                f"the key of {table.qualified_name} has a generated column ({column.name})",
                "Such a column is not published here.",
                "Let triggers capture the changes (--capture trigger).",
            )


def _of_whole_rows(server: Server, conn: Connection, table: Table) -> Iterator[Finding]:
    letter, _ = conn.execute(query("capture.replica_identity"), {"oid": table.oid}).fetchone() or ("n", None)
    if letter != "f":
        yield Finding(
            CODE,
            f"{table.qualified_name} has no key, and its replica identity is not FULL",
            "What a row was before it was changed would not be in the WAL.",
            f"ALTER TABLE {table.qualified_name} REPLICA IDENTITY FULL; or let triggers capture the changes"
            " (--capture trigger).",
        )
    parameters = {"oid": table.oid, "trusted": table.owner_is_superuser}
    for column, name, why in conn.execute(query("capture.unfit_columns"), parameters).fetchall():
        yield Finding(
            CODE,
            f"column {quote_name(column)} of {table.qualified_name} has the type {name}, which cannot be captured from"
            " the WAL",
            {
                "names": "Its values may mean something else when they are read.",
                "code": "Reading its values as text may run code of the type's owner with your rights.",
                "text": "What is sent of its values is not all that is stored.",
            }[why],
            "Let triggers capture the changes (--capture trigger).",
        )
    generated = [column.name for column in table.stored_columns if column.generated]
    if generated and server.capabilities.version < _GENERATED:
        yield Finding(
            CODE,
            f"{table.qualified_name} has no key, and a generated column ({quote_name(generated[0])})",
            "Such a column is not published before PostgreSQL 18.",
            "Let triggers capture the changes (--capture trigger).",
        )


def _fit(table: Table, key: Key, letter: str) -> str:
    """The replica identity that would do."""
    primary = any(index.primary and index.oid == key.index_oid for index in table.indexes)
    if not primary:
        return f"USING INDEX {quote_name(key.index_name)}"
    # One that is deferrable is none.
    return "FULL" if letter == "d" else "DEFAULT"


def identifies(conn: Connection, table: Table) -> bool:
    """Whether updates of the table go on once its key is published. To be asked with the table locked against DDL."""
    letter, index = conn.execute(query("capture.replica_identity"), {"oid": table.oid}).fetchone() or ("n", None)
    return letter == "f" or (table.key is not None and index == table.key.index_oid)
