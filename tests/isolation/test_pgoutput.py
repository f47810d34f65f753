"""What subscribers are sent of a table that is repacked, byte for byte what they are sent of one that is not.

Every statement is made on the table ``t`` and, in the same transaction, on its model ``m``, which no run ever touches.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql

import pglean
from tests.servers import Database
from tests.support import oracle
from tests.support.pgoutput import UNCHANGED, Change, Decoded
from tests.support.play import at

pytestmark = pytest.mark.in_turn

#: Where the application writes while a run is under way.
POINTS = (
    "phase: copying",
    "copy: in a chunk",
    "index: before a build",
    "refresh: between the halves",
    "phase: verifying",
    "swap: before the lock",
    "swap: after the commit",
)

DEFINITION = """
CREATE TABLE {t} (id int NOT NULL, u int NOT NULL, v text, big text);
ALTER TABLE {t} ALTER big SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX {t}_u ON {t} (u);
INSERT INTO {t} SELECT g, 10000 + g, 'v' || g, CASE WHEN g % 50 = 0 THEN repeat(md5(g::text), 200) END
  FROM generate_series(1, 2000) AS g;
"""

#: What the application does in each stage, whose number is `n`: one transaction each. The last but one is large enough
#: to be streamed before it is committed, with a part that is undone; the last is undone as a whole. What is committed
#: changes a row a statement, since several are changed in the order in which they lie.
STATEMENTS = (
    "INSERT INTO {t} VALUES (5000 + {n}, 50000 + {n}, 'new', repeat(md5('new' || {n}), 200));"
    "UPDATE {t} SET v = v || '!' WHERE id = 100 * {n} + 1; UPDATE {t} SET v = NULL WHERE id = 100 * {n} + 2;"
    # A long value that stays as it is, with and without a change of either key; and one that is changed.
    "UPDATE {t} SET v = 'beside a long value' WHERE id = 100 * {n} + 50;"
    "UPDATE {t} SET v = 'beside a new one' WHERE id = 5000 + {n};"
    "DELETE FROM {t} WHERE id = 100 * {n} + 5",
    "UPDATE {t} SET id = -id WHERE id = 100 * {n} + 6; UPDATE {t} SET u = -u WHERE id = 100 * {n} + 7",
    "UPDATE {t} SET id = -id, v = 'other key' WHERE id = 100 * {n} + 50;"
    "UPDATE {t} SET u = -u WHERE id = -100 * {n} - 50;"
    "UPDATE {t} SET big = repeat(md5(big), 200) WHERE id = -100 * {n} - 50;"
    "DELETE FROM {t} WHERE id = 100 * {n} + 100",
    "INSERT INTO {t} SELECT 10000 + {n} * 1000 + g, 100000 + {n} * 1000 + g, repeat('x', 500)"
    " FROM generate_series(1, 150) AS g;"
    "SAVEPOINT s; UPDATE {t} SET v = repeat('y', 500) WHERE id > 10000 + {n} * 1000; DELETE FROM {t} WHERE id < 100;"
    "ROLLBACK TO s;"
    "UPDATE {t} SET v = 'z' WHERE id = 100 * {n} + 11",
    "DELETE FROM {t} WHERE id % 7 = 1; INSERT INTO {t} VALUES (1000000, 1000000)",
)


@dataclass(frozen=True, slots=True)
class Identity:
    """How the rows of a table are told apart in what is published."""

    ddl: str
    letter: str
    #: What is published of a part of the table: columns and rows; None where the server refuses that.
    part: str | None = None
    publish: str = "insert, update, delete, truncate"
    #: By which its rows are told apart: positions of columns; the letter of the old row.
    columns: tuple[int, ...] = ()
    old_kind: str = "K"


IDENTITIES = {
    "default": Identity("ALTER TABLE {t} ADD PRIMARY KEY (id)", "d", "(id, v, big) WHERE (id > 10)", columns=(0,)),
    "index": Identity(
        "ALTER TABLE {t} ADD PRIMARY KEY (id), REPLICA IDENTITY USING INDEX {t}_u",
        "i",
        "(v, u) WHERE (u > 10000)",
        columns=(1,),
    ),
    "index alone": Identity("ALTER TABLE {t} REPLICA IDENTITY USING INDEX {t}_u", "i", "(u)", columns=(1,)),
    "index with primary key": Identity(
        "ALTER TABLE {t} ADD PRIMARY KEY (id), REPLICA IDENTITY USING INDEX {t}_pkey", "i", "(id, big)", columns=(0,)
    ),
    "full": Identity(
        "ALTER TABLE {t} ADD PRIMARY KEY (id), REPLICA IDENTITY FULL",
        "f",
        "WHERE (id > 10 AND v <> 'z')",
        columns=(0, 1, 2, 3),
        old_kind="O",
    ),
    "nothing": Identity(
        "ALTER TABLE {t} ADD PRIMARY KEY (id), REPLICA IDENTITY NOTHING",
        "n",
        "(v, id)",
        publish="insert, truncate",
    ),
}


class Application:
    """Writes to table and model, one stage after the other."""

    def __init__(self, db: Database) -> None:
        self._writer = db.connect(autocommit=False)
        self.stages = 0

    def write(self) -> None:
        for number, statement in enumerate(STATEMENTS, 1):
            for table in ("t", "m"):
                self._writer.execute(_sql(statement, table, n=str(self.stages)))
            if number < len(STATEMENTS):
                self._writer.commit()
            else:
                self._writer.rollback()
        self.stages += 1


def _sql(text: str, table: str, **parts: str) -> sql.Composed:
    given = {key: sql.SQL(part) for key, part in parts.items()}
    return sql.SQL(text).format(t=sql.SQL(table), **given)


def publish(db: Database, identity: Identity) -> list[str]:
    """Publications of all tables, of a schema, and of a part of the table, where the server has such."""
    publish = f"WITH (publish = '{identity.publish}')"
    db.execute(f"CREATE PUBLICATION everything FOR ALL TABLES {publish}")
    if db.server.version < 150000:
        db.execute(f"CREATE PUBLICATION two FOR TABLE t, m {publish}")
        return ["everything", "two"]
    db.execute(f"CREATE PUBLICATION public FOR TABLES IN SCHEMA public {publish}")
    db.execute(f"CREATE PUBLICATION part FOR TABLE t {identity.part}, m {identity.part} {publish}")
    return ["everything", "public", "part"]


def identities(db: Database) -> object:
    """relreplident, and the indexes that are marked as the identity."""
    return db.fetchall("SELECT relreplident FROM pg_class WHERE oid = 't'::regclass") + db.fetchall(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 't'::regclass AND indisreplident"
    )


def peek(db: Database, slot: str, publication: str, version: int) -> Decoded:
    """All that the slot has for that publication; it is not consumed."""
    options = ["proto_version", str(version), "publication_names", publication]
    streaming = {1: None, 4: "parallel"}.get(version, "on")
    if streaming is not None:
        options += ["streaming", streaming]
    rows = db.fetchall(
        "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, VARIADIC %s)", (slot, options)
    )
    return Decoded((bytes(row[0]) for row in rows), parallel=streaming == "parallel")


def alike(changes: list[Change]) -> list[tuple[str, str, object, object]]:
    """Without the table's OID; what is unchanged compares equal to itself only."""
    return [(change.kind, change.old_kind, change.old, change.new) for change in changes]


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(identity, id=what, marks=[pytest.mark.slow] if what == "index with primary key" else [])
        for what, identity in IDENTITIES.items()
    ],
)
def test_messages(emptied: Database, identity: Identity) -> None:
    db = emptied
    for table in ("t", "m"):
        db.execute(_sql(DEFINITION, table))
        db.execute(_sql(identity.ddl, table))
    publications = publish(db, identity)
    slot = f"slot_of_{db.name}"
    db.fetchall("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    oids = {table: int(db.scalar(f"SELECT '{table}'::regclass::oid::int")) for table in ("t", "m")}
    before = identities(db)
    application = Application(db)

    application.write()
    with contextlib.ExitStack() as stack:
        for point in POINTS:
            stack.enter_context(at(point, application.write))
        with pglean.connect(db.conninfo) as database:
            database.repack("t", verify="full", jobs=2)
    application.write()
    with pglean.connect(db.conninfo) as database:
        database.repack("t", verify="full", jobs=2)
    application.write()
    assert application.stages == len(POINTS) + 3
    assert oracle.rows(db, "t") == oracle.rows(db, "m")
    assert oids["t"] == db.scalar("SELECT 't'::regclass::oid::int")
    assert identities(db) == before
    db.execute("TRUNCATE t, m")

    db.execute("SET logical_decoding_work_mem = '64kB'")
    newest = min(db.server.version // 10000 - 12, 4)
    peeks = [(publications[0], version) for version in range(1, newest)] + [(name, newest) for name in publications]
    for publication, version in peeks:
        decoded = peek(db, slot, publication, version)
        check(decoded, oids, identity, application.stages, whole=publication != "part")
        assert bool(decoded.streamed) == (version > 1)
        if db.server.version >= 150000:
            # Of a transaction in which nothing is published, nothing is sent.
            assert 0 not in decoded.transactions
    oracle.assert_nothing_left(db)


def check(decoded: Decoded, oids: dict[str, int], identity: Identity, stages: int, *, whole: bool) -> None:
    """Table and model are told of, and sent, alike, nothing else is, and old rows are what the identity says."""
    assert set(decoded.relations) == set(oids.values())
    told = {(r.schema, r.name, r.identity) for relations in decoded.relations.values() for r in relations}
    assert told == {("public", "t", identity.letter), ("public", "m", identity.letter)}
    columns = [{r.columns for r in decoded.relations[oid]} for oid in oids.values()]
    assert len(columns[0]) == 1
    assert columns[0] == columns[1]
    changes = decoded.of(oids["t"])
    assert alike(changes) == alike(decoded.of(oids["m"]))
    kinds = [change.kind for change in changes]
    assert kinds[-1] == "T"
    assert kinds.count("T") == 1
    if whole:
        check_whole(changes, identity, stages)


def check_whole(changes: list[Change], identity: Identity, stages: int) -> None:
    """What is sent where all columns and rows are published."""
    kinds = [change.kind for change in changes]
    assert kinds.count("I") == stages * 151
    if identity.letter == "n":
        assert set(kinds) == {"I", "T"}
        return
    assert kinds.count("D") == stages * 2
    for change in changes:
        if change.old_kind:
            assert change.old_kind == identity.old_kind
            assert UNCHANGED not in change.old
            others = [value for number, value in enumerate(change.old) if number not in identity.columns]
            assert set(others) <= {None}
            assert None not in [change.old[number] for number in identity.columns if number < 2]
    updates = [change for change in changes if change.kind == "U"]
    # Sent of an update only where a part of the identity is changed, or all of the row is its identity.
    moved = [change for change in updates if change.old_kind]
    if identity.letter == "f":
        assert moved == updates
        assert {len(str(change.old[3])) for change in changes if change.kind == "D"} == {4, 6400}
    else:
        assert len(moved) == stages * 2
    # Long values that were not changed are not sent: the subscriber has them.
    assert sum(change.new[3] is UNCHANGED for change in updates) >= stages * 4
    assert {type(change.new[3]) for change in updates} >= {str, type(UNCHANGED)}


@pytest.mark.parametrize("letter", ["d", "f", "i"])
def test_a_publication_that_forbids_writes_goes_on_to(emptied: Database, letter: str) -> None:
    """Without an identity the server refuses updates of what is published; a run changes nothing about that."""
    db = emptied
    db.execute("CREATE TABLE t (id int NOT NULL UNIQUE, v text); INSERT INTO t VALUES (1), (2)")
    ddl = {"d": "DEFAULT", "f": "FULL", "i": "USING INDEX t_id_key"}
    db.execute(_sql(f"ALTER TABLE {{t}} REPLICA IDENTITY {ddl[letter]}", "t"))
    db.execute("CREATE PUBLICATION p FOR ALL TABLES")
    refused = letter == "d"

    def update() -> None:
        with pytest.raises(psycopg.Error) if refused else contextlib.nullcontext():
            db.execute("UPDATE t SET v = 'written' WHERE id = 1")

    update()
    db.execute("INSERT INTO t VALUES (3)")
    with (
        at("copy: before a chunk", lambda: db.execute("INSERT INTO t VALUES (4)")),
        at("swap: before the lock", update),
        pglean.connect(db.conninfo) as database,
    ):
        database.repack("t", verify="full")
    update()
    assert db.fetchall("SELECT id, v FROM t ORDER BY id") == [
        (1, None if refused else "written"),
        (2, None),
        (3, None),
        (4, None),
    ]
    oracle.assert_nothing_left(db)
