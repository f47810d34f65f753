"""Records what pgoutput sends: `python -m tests.support.record` writes a file for each server that is at hand.

The files of `tests/unit/pgoutput` were made by it, from the versions that they are named after.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, Final

from pglean.embedded import EmbeddedServer
from tests.servers import SETTINGS, Database, create_database, discover

PLACE: Final = Path(__file__).parents[1] / "unit" / "pgoutput"

_TABLE = """
CREATE TABLE {t} (v text, a int NOT NULL, l label, b text NOT NULL, big text, PRIMARY KEY (b, a));
ALTER TABLE {t} ALTER b SET STORAGE EXTERNAL, ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY {identity};
CREATE PUBLICATION {t} FOR TABLE {t} {columns};
"""
_CHANGES = (
    "INSERT INTO {t} VALUES ('v', 1, 'x', 'one', repeat('b', 3000)), (NULL, 2, NULL, E'tab\\t back\\\\ line\\n', NULL)",
    "UPDATE {t} SET v = 'w'; UPDATE {t} SET a = -a WHERE a = 1; UPDATE {t} SET v = 'u' WHERE a = -1",
    "INSERT INTO {t} VALUES ('long', 3, 'y', repeat('k', 2200), 'big')",
    "UPDATE {t} SET v = 'beside a long key' WHERE a = 3; UPDATE {t} SET a = 4 WHERE a = 3",
    "SELECT pg_logical_emit_message(true, 'pglean', 'token')",
    "SELECT pg_logical_emit_message(true, 'other', 'token')",
    "ALTER TABLE {t} ADD more int; INSERT INTO {t} VALUES ('after', 5, 'x', 'five')",
    "SELECT pg_replication_origin_xact_setup('0/1234', now()); UPDATE {t} SET v = 'from elsewhere'",
    "BEGIN; SAVEPOINT s; DELETE FROM {t}; ROLLBACK TO s; DELETE FROM {t} WHERE a = 5; COMMIT",
    "DELETE FROM {t}; TRUNCATE {t}",
)


def record(db: Database) -> list[dict[str, Any]]:
    """Cases: table, identity, key, messages in hexadecimal."""
    cases = []
    lists = db.server.version >= 150000
    db.execute("CREATE TYPE label AS ENUM ('x', 'y')")
    origin = f"origin_{db.name}"
    db.execute(f"SELECT pg_replication_origin_create('{origin}')")
    db.execute(f"SELECT pg_replication_origin_session_setup('{origin}')")
    for table, identity, columns in (
        ("whole", "DEFAULT", ""),
        ("listed", "DEFAULT", "(a, b)"),
        ("every", "FULL", ""),
    ):
        if columns and not lists:
            continue
        db.execute(_TABLE.format(t=table, identity=identity, columns=columns))
        slot = f"{table}_{db.name}"
        db.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
        for change in _CHANGES:
            db.execute(change.format(t=table))
        rows = db.fetchall(
            "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
            " 'publication_names', %s, 'messages', 'true')",
            (slot, table),
        )
        oid = db.scalar(f"SELECT '{table}'::regclass::oid::bigint")
        case = {"table": oid, "identity": "f" if identity == "FULL" else "d", "key": [["b", 25], ["a", 23]]}
        cases.append({**case, "messages": [bytes(row[0]).hex() for row in rows]})
    db.execute("SELECT pg_replication_origin_session_reset()")
    db.execute(f"SELECT pg_replication_origin_drop('{origin}')")
    return cases


def main() -> None:
    """Record from each server."""
    PLACE.mkdir(exist_ok=True)
    for major, bindir in discover().items():
        server = EmbeddedServer(bindir, settings=SETTINGS)
        server.start()
        try:
            with create_database(server) as db:
                text = json.dumps(record(db), indent=1)
                # No time in it: the same bytes each time.
                (PLACE / f"{major}.json.gz").write_bytes(gzip.compress(text.encode("ascii"), mtime=0))
        finally:
            server.close(mode="immediate")


if __name__ == "__main__":
    main()
