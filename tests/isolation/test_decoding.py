"""Logical decoding of what a run writes: others read their slots to the end, and find all of their own changes."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

import pglean
from pglean.embedded import EmbeddedServer
from tests.servers import Database, create_database
from tests.support import oracle
from tests.support.play import at

PLUGINS = {"text": "test_decoding", "binary": "pgoutput"}


class Slots:
    """One slot of each plugin, from now on; what they read of the changes made by then."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._names = {kind: f"{kind}_{db.name}" for kind in PLUGINS}
        db.execute("CREATE PUBLICATION p FOR ALL TABLES")
        for kind, plugin in PLUGINS.items():
            db.fetchall("SELECT pg_create_logical_replication_slot(%s, %s)", (self._names[kind], plugin))

    def text(self) -> list[str]:
        """Each change as ``table schema.name: ACTION``, in order."""
        rows = self._db.fetchall("SELECT data FROM pg_logical_slot_get_changes(%s, NULL, NULL)", (self._names["text"],))
        lines = [str(row[0]) for row in rows]
        return [": ".join(line.split(": ", 2)[:2]) for line in lines if line.startswith("table ")]

    def binary(self) -> tuple[list[str], set[bytes]]:
        """The kind of each message on a row, in order; schema and name of each relation that is told of."""
        rows = self._db.fetchall(
            "SELECT data FROM"
            " pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1', 'publication_names', 'p')",
            (self._names["binary"],),
        )
        messages = [bytes(row[0]) for row in rows]
        relations = {b".".join(m[5:].split(b"\0", 2)[:2]) for m in messages if m[:1] == b"R"}
        return [chr(m[0]) for m in messages if m[:1] in b"IUDT"], relations


def large_key(number: int) -> str:
    """A key that no compression makes small, of more than 2 kB: where one is recorded, it is toasted."""
    digits = (
        f"(SELECT string_agg(sha256(({number} * 1000 + g)::text::bytea), ''::bytea) FROM generate_series(1, 75) AS g)"
    )
    return f"substr({digits}, 1, 2400)"


def test_keys_so_large_that_they_are_toasted(emptied: Database) -> None:
    """What the trigger records goes to a TOAST table of its own, in transactions of the application."""
    db = emptied
    db.execute("CREATE TABLE t (k bytea PRIMARY KEY, v int); CREATE TABLE other (id int)")
    for number in range(20):
        db.execute(f"INSERT INTO t VALUES ({large_key(number)}, {number})")
    slots = Slots(db)
    writer = db.connect(autocommit=False)

    def write(number: int) -> None:
        writer.execute(f"INSERT INTO t VALUES ({large_key(number)}, {number})")
        writer.execute(f"UPDATE t SET k = {large_key(number + 1)} WHERE v = {number}")
        writer.execute("INSERT INTO other VALUES (1)")
        writer.commit()

    with (
        at("copy: before a chunk", lambda: write(100)),
        at("swap: before the lock", lambda: write(200)),
        pglean.connect(db.conninfo) as database,
    ):
        result = database.repack("t", verify="full")
    assert result.changes_applied == 6
    write(300)
    made = ["table public.t: INSERT", "table public.t: UPDATE", "table public.other: INSERT"]
    assert slots.text() == made * 3
    assert slots.binary() == (["I", "U", "I"] * 3, {b"public.t", b"public.other"})
    assert db.scalar("SELECT count(*) FROM t") == 23
    oracle.assert_nothing_left(db)


@pytest.fixture
def plain(server: EmbeddedServer) -> Iterator[str]:
    """A role without rights: its tables are read behind the guard."""
    name = "audited"
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute(f"CREATE ROLE {name}")
        yield name
        session.execute(f"DROP ROLE {name}")


@pytest.fixture
def audited(server: EmbeddedServer, plain: str) -> Iterator[Database]:
    """A database in which an event trigger keeps a record of DDL, and with it of what the guard makes; a table."""
    with create_database(server) as db:
        db.execute(
            f"""
            CREATE TABLE audit (id int GENERATED ALWAYS AS IDENTITY, tag name);
            CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS
                'BEGIN INSERT INTO public.audit (tag) VALUES (tg_tag); END';
            CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION note();
            CREATE TABLE t (id int PRIMARY KEY, v text);
            ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
            INSERT INTO t SELECT g, repeat(md5(g::text), 200) FROM generate_series(1, 50) AS g;
            ALTER TABLE t OWNER TO {plain}
            """
        )
        yield db


def test_rows_of_an_event_trigger_beside_toasted_rows(audited: Database) -> None:
    """One transaction of ours, with toasted rows that are passed over and rows of somebody else's that are not.

    His table has no TOAST table, for which a decoder would look that has kept values of the rows passed over.
    """
    db = audited
    assert db.scalar("SELECT reltoastrelid FROM pg_class WHERE oid = 'audit'::regclass") == 0
    slots = Slots(db)
    change = "UPDATE t SET v = v || 'a' WHERE id < 10"
    with (
        at("copy: before a chunk", lambda: db.execute(change)),
        at("swap: before the lock", lambda: db.execute(change)),
        pglean.connect(db.conninfo) as database,
    ):
        database.repack("t", verify="full")
    text = slots.text()
    assert text.count("table public.t: UPDATE") == 18
    assert set(text) == {"table public.t: UPDATE", "table public.audit: INSERT"}
    # Those of the slot's beginning are not among them.
    assert text.count("table public.audit: INSERT") > 20
    kinds, relations = slots.binary()
    assert (kinds.count("U"), set(kinds)) == (18, {"U", "I"})
    assert relations == {b"public.t", b"public.audit"}
    oracle.assert_nothing_left(db)


def test_subscription_made_after_a_run(emptied: Database, server: EmbeddedServer) -> None:
    """FOR ALL TABLES counts the tables of our schema in. Preflight tells so, and what to do about it helps."""
    db = emptied
    db.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)")
    db.execute("CREATE PUBLICATION of_one FOR TABLE t")
    with pglean.connect(db.conninfo) as database, create_database(server) as subscriber:
        assert database.plan("t").warnings == ()
        db.execute("CREATE PUBLICATION p FOR ALL TABLES")
        (warning,) = database.plan("t").warnings
        assert (warning.code, warning.fatal) == ("publication", False)
        assert '"p"' in warning.message
        assert warning.hint is not None
        assert "pglean uninstall" in warning.hint
        told: list[str] = []
        database.repack("t", on_progress=lambda progress: told.append(progress.message))
        assert [message for message in told if 'publication "p"' in message]

        subscriber.execute("CREATE TABLE t (id int PRIMARY KEY)")
        subscribe = (
            f"CREATE SUBSCRIPTION s CONNECTION '{db.conninfo}' PUBLICATION p"
            " WITH (create_slot = false, slot_name = NONE, enabled = false)"
        )
        with pytest.raises(psycopg.ProgrammingError, match="pglean"):
            subscriber.execute(subscribe)
        assert database.uninstall()
        subscriber.execute(subscribe)
        try:
            tables = "SELECT srrelid::regclass::text FROM pg_subscription_rel"
            assert subscriber.fetchall(tables) == [("t",)]
        finally:
            subscriber.execute("DROP SUBSCRIPTION s")
