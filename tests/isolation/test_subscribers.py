"""Subscribers of what is published go on without a word of error, and hold the same rows, whatever is repacked.

Publisher and subscriber are two databases of one server. The slot is made beforehand: CREATE SUBSCRIPTION would wait
for its own transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from psycopg import sql

import pglean
from pglean.embedded import EmbeddedServer
from tests.isolation.conftest import empty
from tests.servers import Database, create_database
from tests.support import oracle
from tests.support.play import at

pytestmark = pytest.mark.in_turn

#: How the rows of each table are told apart in what is published.
TABLES = {
    "by_key": "",
    "by_index": "REPLICA IDENTITY USING INDEX by_index_u_key",
    "by_all": "REPLICA IDENTITY FULL",
    "Added To": "REPLICA IDENTITY NOTHING",
}
DEFINITION = """
CREATE TABLE {t} (id int PRIMARY KEY, u int NOT NULL UNIQUE, v text, big text);
ALTER TABLE {t} ALTER big SET STORAGE EXTERNAL;
"""
CONTENT = """
INSERT INTO {t} SELECT g, 10000 + g, 'v' || g, CASE WHEN g % 50 = 0 THEN repeat(md5(g::text), 200) END
  FROM generate_series(1, 1500) AS g
"""
INSERTS = """
INSERT INTO {t} SELECT 10000 + {n} * 1000 + g, 100000 + {n} * 1000 + g, 'new', repeat(md5(g::text), 200)
  FROM generate_series(1, 40) AS g
"""
#: Long values stay as they are, with and without a change of the key, and are changed; rows go and move.
CHANGES = """
UPDATE {t} SET v = v || '!' WHERE id % 10 = {n};
UPDATE {t} SET id = -id WHERE id = 100 * ({n} + 1);
UPDATE {t} SET u = -u, v = NULL WHERE id = 100 * ({n} + 1) - 50;
UPDATE {t} SET big = repeat(v, 2000) WHERE id = 10001 + {n} * 1000;
DELETE FROM {t} WHERE id % 100 = {n} + 10;
"""
POINTS = (
    "phase: copying",
    "copy: in a chunk",
    "index: before a build",
    "refresh: between the halves",
    "swap: before the lock",
    "swap: after the commit",
)


def identifier(table: str) -> sql.Identifier:
    return sql.Identifier(table)


def formatted(text: str, table: str, n: int = 0) -> sql.Composed:
    return sql.SQL(text).format(t=identifier(table), n=sql.Literal(n))


class Publisher:
    """The tables, and what the application does to them: the same to each, but that one is only added to."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._writer = db.connect(autocommit=False)
        self._stage = 0
        for table in TABLES:
            define(db, table)
            db.execute(formatted(CONTENT, table))

    def write(self) -> None:
        for table in TABLES:
            self._writer.execute(formatted(INSERTS, table, self._stage))
            if table != "Added To":
                self._writer.execute(formatted(CHANGES, table, self._stage))
            self._writer.commit()
        self._stage += 1

    def repack(self, table: str, *points: str) -> None:
        """With writes at these points, and afterwards."""
        with contextlib.ExitStack() as stack:
            for point in points:
                stack.enter_context(at(point, self.write))
            with pglean.connect(self.db.conninfo) as database:
                database.repack(identifier(table).as_string(None), verify="full", jobs=2)
        self.write()


def define(db: Database, table: str) -> None:
    """The same on both sides."""
    db.execute(formatted(DEFINITION, table))
    if TABLES[table]:
        db.execute(formatted(f"ALTER TABLE {{t}} {TABLES[table]}", table))


class Subscriber:
    """A database with the same tables, and its subscription."""

    def __init__(self, db: Database, publisher: Database) -> None:
        self.db, self._publisher = db, publisher
        self._name = f"sub_{db.name}"
        self._worker: int | None = None

    def subscribe(self, publications: str, options: str = "") -> None:
        """Begin with a copy of what is there."""
        slot = f"SELECT pg_create_logical_replication_slot('{self._name}', 'pgoutput')"
        self._publisher.fetchall(oracle.name(slot))
        self.db.execute(
            oracle.name(
                f"CREATE SUBSCRIPTION {self._name} CONNECTION '{self._publisher.conninfo}' PUBLICATION {publications}"
                f" WITH (create_slot = false{options})"
            )
        )

    def synchronized(self) -> None:
        """Wait until all that was there has been copied."""
        waiting = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'"
        oracle.until(lambda: self.db.scalar(waiting) == 0, "all tables have been copied", 60)
        self._worker = self._pid()

    def caught_up(self) -> None:
        """Wait until all that was written by now has been applied; it never stumbled, and nothing else arrived."""
        written = self._publisher.scalar("SELECT pg_current_wal_lsn()")
        confirmed = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
        oracle.until(
            lambda: bool(self._publisher.scalar(confirmed, (written, self._name))), "the subscriber has caught up", 60
        )
        # After an error there would be another.
        assert self._pid() == self._worker
        if self.db.server.version >= 150000:
            errors = "SELECT apply_error_count FROM pg_stat_subscription_stats WHERE subname = %s"
            assert self.db.fetchall(errors, (self._name,)) == [(0,)]
        assert self.db.scalar("SELECT to_regnamespace('pglean')") is None

    def _pid(self) -> int | None:
        pids = self.db.fetchall(
            "SELECT pid FROM pg_stat_subscription WHERE subname = %s AND relid IS NULL AND pid IS NOT NULL",
            (self._name,),
        )
        return pids[0][0] if pids else None

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """In the block nothing is applied."""
        self.db.execute(oracle.name(f"ALTER SUBSCRIPTION {self._name} DISABLE"))
        oracle.until(lambda: self._pid() is None, "the subscriber has gone")
        yield
        self.db.execute(oracle.name(f"ALTER SUBSCRIPTION {self._name} ENABLE"))
        oracle.until(lambda: self._pid() is not None, "the subscriber is back")
        self._worker = self._pid()

    def close(self) -> None:
        if self.db.fetchall("SELECT FROM pg_subscription WHERE subname = %s", (self._name,)):
            self.db.execute(oracle.name(f"DROP SUBSCRIPTION {self._name}"))


@pytest.fixture(scope="module")
def other(server: EmbeddedServer) -> Iterator[Database]:
    """The subscriber's database."""
    with create_database(server) as database:
        yield database


@pytest.fixture
def publisher(emptied: Database) -> Publisher:
    return Publisher(emptied)


@pytest.fixture
def subscriber(other: Database, publisher: Publisher) -> Iterator[Subscriber]:
    """With the tables, not yet subscribed to anything."""
    empty(other)
    for table in TABLES:
        define(other, table)
    made = Subscriber(other, publisher.db)
    yield made
    made.close()
    other.close()


def assert_equal(publisher: Publisher, subscriber: Subscriber, **parts: str) -> None:
    """Each table has the same rows on both sides; of those named, what the query selects."""
    for table in TABLES:
        query = parts.get(table, "SELECT * FROM {t}")
        text = formatted(f"SELECT r::text FROM ({query}) AS r ORDER BY 1", table)
        rows = publisher.db.fetchall(text)
        assert subscriber.db.fetchall(text) == rows
        assert len(rows) > 500


PUBLICATIONS = {
    "all tables": "CREATE PUBLICATION p FOR ALL TABLES",
    "schema": "CREATE PUBLICATION p FOR TABLES IN SCHEMA public",
    "tables": 'CREATE PUBLICATION p FOR TABLE by_key, by_index, by_all, "Added To"',
}
MARKS = {"schema": [pytest.mark.min_version(15)], "tables": [pytest.mark.slow]}


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize(
    "ddl",
    [pytest.param(ddl, id=what, marks=MARKS.get(what, [])) for what, ddl in PUBLICATIONS.items()],
)
def test_subscriber(publisher: Publisher, subscriber: Subscriber, ddl: str) -> None:
    """Each table is repacked, with writes to all of them before, meanwhile and afterwards; and once more."""
    publisher.db.execute(oracle.name(ddl))
    subscriber.subscribe("p", ", streaming = on" if publisher.db.server.version >= 140000 else "")
    subscriber.synchronized()
    publisher.write()
    for number, table in enumerate(TABLES):
        # All points with the first, and one of them with each of the others.
        publisher.repack(table, *(POINTS if number == 0 else POINTS[number : number + 1]))
    subscriber.caught_up()
    assert_equal(publisher, subscriber)
    publisher.repack("by_index")
    subscriber.caught_up()
    assert_equal(publisher, subscriber)
    oracle.assert_nothing_left(publisher.db)


@pytest.mark.min_version(15)
@pytest.mark.usefixtures("small_portions")
def test_subscriber_of_a_part(publisher: Publisher, subscriber: Subscriber) -> None:
    """Some columns of some rows; a change of the key takes rows in and out of what is published."""
    publisher.db.execute(
        "CREATE PUBLICATION p FOR TABLE by_key (id, big) WHERE (id > 20), by_index (u, v) WHERE (u > 10020),"
        ' by_all WHERE (id > 20), "Added To" (id, v)'
    )
    subscriber.db.execute("ALTER TABLE by_index DROP CONSTRAINT by_index_pkey, ALTER id DROP NOT NULL")
    subscriber.db.execute("ALTER TABLE by_key ALTER u DROP NOT NULL")
    subscriber.db.execute('ALTER TABLE "Added To" ALTER u DROP NOT NULL')
    subscriber.subscribe("p")
    subscriber.synchronized()
    publisher.write()
    publisher.repack("by_key", *POINTS)
    publisher.repack("by_index", POINTS[-2])
    publisher.repack("by_all", POINTS[-1])
    publisher.repack("Added To")
    subscriber.caught_up()
    assert_equal(
        publisher,
        subscriber,
        by_key="SELECT id, big FROM {t} WHERE id > 20",
        by_index="SELECT u, v FROM {t} WHERE u > 10020",
        by_all="SELECT * FROM {t} WHERE id > 20",
        **{"Added To": "SELECT id, v FROM {t}"},
    )
    oracle.assert_nothing_left(publisher.db)


@pytest.mark.usefixtures("small_portions")
def test_subscription_made_during_a_run(publisher: Publisher, subscriber: Subscriber) -> None:
    """What it begins with is the table, not the copy that a run makes of it, and the exchange comes in between."""
    publisher.db.execute("CREATE PUBLICATION p FOR TABLE by_key, by_index, by_all")
    publisher.db.execute('CREATE PUBLICATION q FOR TABLE "Added To"')
    publisher.write()

    def subscribe() -> None:
        subscriber.subscribe("p, q")
        publisher.write()

    with at("phase: indexing", subscribe):
        publisher.repack("by_key", "swap: before the lock")
    subscriber.synchronized()
    publisher.repack("by_key", "phase: verifying")
    subscriber.caught_up()
    assert_equal(publisher, subscriber)
    oracle.assert_nothing_left(publisher.db)


@pytest.mark.slow
def test_subscriber_that_was_away(publisher: Publisher, subscriber: Subscriber) -> None:
    """What it missed is decoded when the table has had new files twice, of whose names the oldest are gone."""
    publisher.db.execute("CREATE PUBLICATION p FOR ALL TABLES")
    subscriber.subscribe("p")
    subscriber.synchronized()
    with subscriber.away():
        for _ in range(2):
            publisher.write()
            publisher.repack("by_key", "copy: before a chunk", "swap: before the lock")
        publisher.repack("by_all")
    subscriber.caught_up()
    assert_equal(publisher, subscriber)
