"""What `Database.advise` says of tables: each action where it helps, and none where it does not.

Each test makes a real situation, is told what to do, does it, and is told that there is nothing more to do.
"""

from __future__ import annotations

import datetime
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean.advice import dropping, statistics, vacuuming
from pglean.advice.advice import Action, ActionKind, Advice, words
from pglean.conninfo import connection_words
from pglean.embedded import EmbeddedServer
from pglean.table import quote_name
from tests.servers import SETTINGS, Database, Query, create_database
from tests.support.oracle import until

pytestmark = pytest.mark.in_turn

#: Of tables as small as these.
_MIN_GAIN = 100_000
_ROWS = 20_000


@pytest.fixture(scope="module")
def calm(bindir: Path) -> Iterator[EmbeddedServer]:
    """A server whose autovacuum is on, and does not come."""
    with EmbeddedServer(
        bindir, settings={**SETTINGS, "autovacuum_naptime": "1d", "maintenance_work_mem": "1MB"}
    ) as server:
        yield server.start()


@pytest.fixture
def db(calm: EmbeddedServer) -> Iterator[Database]:
    with create_database(calm) as database:
        yield database


def write(db: Database, *statements: Query) -> None:
    """In a session that ends, and so tells what it has written."""
    with db.connect() as session:
        for statement in statements:
            session.execute(statement)


def counted(db: Database, condition: str, table: str = "items") -> None:
    """Wait until the server has counted what was written."""
    text = sql.SQL("SELECT coalesce(bool_or({condition}), false) FROM pg_stat_user_tables WHERE relname = {table}")
    found = text.format(condition=sql.SQL(condition), table=sql.Literal(table))
    until(lambda: bool(db.scalar(found)), f"{condition} is counted")


def advise(db: Database, *tables: str, user: str = "postgres", **asked: Any) -> Advice:
    with pglean.connect(f"{db.conninfo} user='{user}'") as database:
        return database.advise(tables, **{"min_gain_bytes": _MIN_GAIN, **asked})


def connection(db: Database) -> str:
    """What leads to it on the command line."""
    return connection_words(f"{db.conninfo} user='postgres'", db.name)


def kinds(advice: Advice) -> list[ActionKind]:
    return [action.kind for action in advice]


def the(advice: Advice, kind: ActionKind) -> Action:
    """The only action of its kind."""
    (action,) = (action for action in advice if action.kind is kind)
    return action


def do(db: Database, action: Action) -> None:
    """What it says, in psql."""
    assert action.commands
    with db.connect() as session:
        for statement in action.commands:
            assert statement.endswith(";")
            session.execute(statement.encode())


@pytest.fixture
def items(db: Database) -> Database:
    """A table in which nothing is wrong."""
    write(
        db,
        "CREATE TABLE items (id int PRIMARY KEY, n int, note text)",
        sql.SQL("INSERT INTO items SELECT g, 0, md5(g::text) FROM generate_series(1, {}) AS g").format(_ROWS),
        "VACUUM ANALYZE items",
    )
    counted(db, "last_analyze IS NOT NULL AND n_tup_ins > 0")
    return db


def test_nothing(items: Database) -> None:
    advice = advise(items)
    assert (advice.actions, advice.holds, advice.ages, advice.vacuums) == ((), (), (), ())
    assert (advice.looked_at, advice.fine, advice.unknown) == (1, 1, 0)
    action = the(advise(items, "items"), ActionKind.NOTHING)
    assert re.fullmatch(
        r"of 1\.\d MB a repack would give back .* \(\d%, method: estimate\)(, and .* of it are what dies between two"
        r" autovacuums and is used again)?; 0 rows are dead",
        action.reason,
    ), action.reason
    assert action.command == ""
    # What few changes leave is no bloat either.
    write(items, "UPDATE items SET n = 1 WHERE id % 20 = 0", "DELETE FROM items WHERE id % 20 = 1")
    counted(items, "n_dead_tup > 1000")
    assert kinds(advise(items, "items")) == [ActionKind.NOTHING]


def test_vacuum(items: Database) -> None:
    write(items, "DELETE FROM items WHERE id % 10 < 3")
    counted(items, "n_dead_tup > 5000")
    write(items, "ANALYZE items")
    counted(items, "n_mod_since_analyze = 0")
    advice = advise(items, "items")
    assert kinds(advice) == [ActionKind.VACUUM]
    action = the(advice, ActionKind.VACUUM)
    assert "6,000 of 20,000 rows are dead (30%), autovacuum comes from 2,850 on" in action.reason
    assert "(VACUUM by hand)" in action.reason
    assert action.command == "VACUUM public.items;"
    assert action.gain_bytes == pytest.approx(6000 * 72, rel=0.1)
    assert action.cost.seconds is not None
    assert "reading and writing go on" in action.cost.locks
    assert action.notes == ("autovacuum is due, and will do it by itself, with rests, when a worker is free",)
    do(items, action)
    counted(items, "n_dead_tup = 0")
    # What is free now is used between two autovacuums.
    assert kinds(advise(items, "items")) == [ActionKind.NOTHING]


def test_repack(items: Database) -> None:
    write(items, "DELETE FROM items WHERE id % 10 < 8")
    write(items, "VACUUM ANALYZE items")
    counted(items, "n_dead_tup = 0 AND n_tup_del > 0")
    action = the(advise(items, "items"), ActionKind.REPACK)
    assert "method: estimate" in action.reason
    assert action.command == f"pglean repack {connection(items)} -t public.items"
    assert action.cost.disk_bytes < 600_000
    assert "ACCESS EXCLUSIVE at the end" in action.cost.locks
    with pglean.connect(items.conninfo) as database:
        result = database.repack("items")
    assert result.bytes_before - result.bytes_after == pytest.approx(action.gain_bytes, rel=0.1)
    assert kinds(advise(items, "items")) == [ActionKind.NOTHING]


def test_reindex(items: Database) -> None:
    write(items, "CREATE INDEX items_n_idx ON items ((n + 0))", "DROP INDEX items_n_idx", "UPDATE items SET n = id")
    write(items, "VACUUM FULL items", "CREATE INDEX items_n_idx ON items (n)", "ANALYZE items")
    for part in range(10):
        write(items, sql.SQL("UPDATE items SET n = n + 1000000 WHERE id % 10 = {}").format(part))
        write(items, "VACUUM items")
    write(items, "ANALYZE items")
    counted(items, "n_dead_tup = 0 AND n_tup_upd >= 40000")
    advice = advise(items, "items")
    assert ActionKind.REPACK not in kinds(advice)
    action = the(advice, ActionKind.REINDEX)
    assert action.command.startswith(f"pglean reindex {connection(items)} -i public.items_n_idx")
    assert "its heap is not bloated" in action.reason
    names = re.findall(r"-i (\S+)", action.command)
    with pglean.connect(items.conninfo) as database:
        result = database.reindex(indexes=names)
    saved = sum(index.bytes_before - index.bytes_after for index in result.indexes)
    assert saved == pytest.approx(action.gain_bytes, rel=0.15)
    assert ActionKind.REINDEX not in kinds(advise(items, "items"))


def test_autovacuum_is_off(items: Database) -> None:
    write(items, "ALTER TABLE items SET (autovacuum_enabled = false)", "UPDATE items SET n = 1 WHERE id % 4 = 0")
    counted(items, "n_tup_upd > 0")
    action = the(advise(items, "items"), ActionKind.AUTOVACUUM)
    assert action.reason.startswith("autovacuum is switched off for this table; ")
    assert action.command == "ALTER TABLE public.items RESET (autovacuum_enabled);"
    do(items, action)
    assert ActionKind.AUTOVACUUM not in kinds(advise(items, "items"))


def test_autovacuum_comes_too_late(items: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # For tables as small as this it is not.
    write(items, "DELETE FROM items WHERE id % 4 = 0")
    write(items, "VACUUM ANALYZE items")
    counted(items, "n_dead_tup = 0 AND n_tup_del > 0")
    assert kinds(advise(items, "items")) == [ActionKind.NOTHING]
    monkeypatch.setattr(vacuuming, "_LATE_ROWS", 1000)
    action = the(advise(items, "items"), ActionKind.AUTOVACUUM)
    assert "autovacuum comes only when 50 + 0.2 * 15,000 rows, 3,050 (" in action.reason
    assert action.command == "ALTER TABLE public.items SET (autovacuum_vacuum_scale_factor = 0.02);"
    do(items, action)
    assert ActionKind.AUTOVACUUM not in kinds(advise(items, "items"))


def test_fillfactor(items: Database) -> None:
    write(items, "UPDATE items SET n = 1 WHERE id % 3 = 0")
    write(items, "VACUUM ANALYZE items")
    counted(items, "n_tup_upd > 0 AND n_dead_tup = 0")
    action = the(advise(items, "items"), ActionKind.FILLFACTOR)
    what = "found no room in their page" if items.server.version >= 160000 else "were not heap-only"
    assert what in action.reason
    assert action.command == "ALTER TABLE public.items SET (fillfactor = 85);"
    do(items, action)
    assert ActionKind.FILLFACTOR not in kinds(advise(items, "items"))
    # Where there is room, it is not advised.
    write(items, "ALTER TABLE items SET (fillfactor = 70)", "VACUUM FULL items", "ALTER TABLE items RESET (fillfactor)")
    items.execute("SELECT pg_stat_reset()")
    # 14 is told of that by and by.
    counted(items, "n_tup_upd = 0")
    write(items, "UPDATE items SET n = 2 WHERE id % 4 = 0", "ANALYZE items")
    counted(items, "n_tup_upd > 4000")
    assert ActionKind.FILLFACTOR not in kinds(advise(items, "items"))


def test_indexes_that_could_go(items: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        items,
        "CREATE INDEX twice ON items (id)",
        "CREATE INDEX note_idx ON items (note)",
        "CREATE INDEX note_n_idx ON items (note, n)",
        "CREATE INDEX lower_1 ON items (lower(note))",
        "CREATE  INDEX  lower_2  ON  items  (lower( note ))",
        "CREATE INDEX hashed ON items USING hash (note)",
        "CREATE INDEX partial ON items (note) WHERE n = 0",
        "CREATE UNIQUE INDEX replicated ON items (id)",
        "ALTER TABLE items ALTER id SET NOT NULL, REPLICA IDENTITY USING INDEX replicated",
        "SELECT count(*) FROM items",
    )
    counted(items, "seq_scan > 0")
    assert not any("not used once" in action.reason for action in advise(items, "items"))
    monkeypatch.setattr(dropping, "_COUNTED", datetime.timedelta(0))
    monkeypatch.setattr(dropping, "_MADE_TRANSACTIONS", 0)
    found = {action.command: action for action in advise(items, "items") if action.kind is ActionKind.DROP_INDEX}

    def why(name: str) -> str:
        return found[f"DROP INDEX CONCURRENTLY public.{name};"].reason.partition(") ")[2]

    assert why("twice") in ("is the same as items_pkey", "is the same as replicated")
    assert why("note_idx") == "has the columns that begin those of note_n_idx"
    assert why("lower_2") == "is the same as lower_1"
    assert why("hashed").startswith("was not used once since ")
    # They stay because the others go.
    for name in ("note_n_idx", "lower_1"):
        assert f"DROP INDEX CONCURRENTLY public.{name};" not in found
    assert "public.items_pkey" not in " ".join(found)
    assert "public.replicated" not in " ".join(found)
    assert all("only a hint: ask who made it" in action.notes for action in found.values())


def test_indexes_that_only_look_alike(items: Database) -> None:
    """What the server does differently with them is no matter of columns and operator classes alone."""
    write(
        items,
        "ALTER TABLE items ADD v tsvector",
        "CREATE INDEX short ON items USING gist (v tsvector_ops (siglen = 12))",
        "CREATE INDEX long ON items USING gist (v tsvector_ops (siglen = 200))",
        "CREATE INDEX long_2 ON items USING gist (v tsvector_ops (siglen = 200))",
        "UPDATE items SET v = to_tsvector('simple', note)",
        "CREATE UNIQUE INDEX distinct_n ON items (note)",
    )
    if items.server.version >= 150000:
        write(items, "CREATE UNIQUE INDEX not_distinct_n ON items (note) NULLS NOT DISTINCT")
    # Of a table without statistics no index is told.
    write(items, "ANALYZE items")
    found = [action.command for action in advise(items, "items") if action.kind is ActionKind.DROP_INDEX]
    assert found == ["DROP INDEX CONCURRENTLY public.long_2;"]


def test_invalid_index(items: Database) -> None:
    with items.connect() as session, pytest.raises(psycopg.errors.UniqueViolation):
        session.execute("CREATE UNIQUE INDEX CONCURRENTLY broken ON items (n)")
    action = the(advise(items, "items"), ActionKind.INVALID_INDEX)
    assert action.command == "REINDEX INDEX CONCURRENTLY public.broken;"
    write(items, "UPDATE items SET n = id")
    do(items, action)
    assert ActionKind.INVALID_INDEX not in kinds(advise(items, "items"))


def test_an_index_in_the_making_is_not_told_to_be_invalid(items: Database) -> None:
    with items.connect(autocommit=False) as writer, items.connect() as session:
        writer.execute("UPDATE items SET n = 1 WHERE id = 1")

        def build() -> None:
            session.execute("CREATE INDEX CONCURRENTLY building ON items (n)")

        thread = threading.Thread(target=build)
        thread.start()
        try:
            there = "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE relname = 'building'"
            until(lambda: items.scalar(there) == 1, "it is in the catalog")
            assert ActionKind.INVALID_INDEX not in kinds(advise(items, "items"))
        finally:
            writer.rollback()
            thread.join()


def test_a_catalog(db: Database) -> None:
    """What pglean refuses is left to the server's own commands."""
    commands = [one for action in advise(db, "pg_catalog.pg_proc", min_gain_bytes=0) for one in action.commands]
    assert not any(one.startswith(("pglean", "ALTER", "DROP")) for one in commands)


def test_the_age_of_this_database(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert advise(db).ages == ()
    monkeypatch.setattr(statistics, "_NEAR", 0.0)
    named = [age.name for age in advise(db).ages if age.oid is None]
    assert set(named) == {f"database {quote_name(db.name)}"}


def test_order(items: Database) -> None:
    write(
        items,
        "UPDATE items SET n = hashint4(id) % 1000000",
        "VACUUM FULL items",
        "CREATE INDEX items_n_idx ON items (n)",
        "ANALYZE items",
    )
    scans: list[Query] = ["SELECT sum(n), max(note) FROM items WHERE id BETWEEN 1000 AND 1500"] * 12
    write(items, "SET enable_seqscan = off", *scans)
    counted(items, "idx_scan >= 12")
    # By id rows lie in order.
    assert ActionKind.REPACK_ORDER not in kinds(advise(items, "items"))
    scans = ["SELECT sum(n), max(note) FROM items WHERE n BETWEEN 0 AND 20000"] * 60
    write(items, "SET enable_seqscan = off", *scans)
    counted(items, "idx_scan >= 72")
    action = the(advise(items, "items"), ActionKind.REPACK_ORDER)
    assert action.command == f"pglean repack {connection(items)} -t public.items -o n"
    assert re.search(
        r"index items_n_idx was read 60 times, \d\d\d rows each time, which lie scattered .*:"
        r" about \d+ pages of the heap each time, \d if rows lay in its order",
        action.reason,
    ), action.reason
    with pglean.connect(items.conninfo) as database:
        database.repack("items", order_by="n")
    assert ActionKind.REPACK_ORDER not in kinds(advise(items, "items"))


def test_no_statistics(db: Database) -> None:
    write(db, "CREATE TABLE items (id int)", "INSERT INTO items SELECT generate_series(1, 20000)")
    action = the(advise(db, "items"), ActionKind.ANALYZE)
    assert "neither VACUUM nor ANALYZE has counted its rows" in action.reason
    do(db, action)
    assert kinds(advise(db, "items")) == [ActionKind.NOTHING]


def _many_dead(db: Database) -> None:
    write(
        db,
        "CREATE TABLE many (id int) WITH (autovacuum_enabled = off)",
        "INSERT INTO many SELECT generate_series(1, 400000)",
        "CREATE INDEX ON many (id)",
        "ANALYZE many",
        "DELETE FROM many",
    )
    counted(db, "n_dead_tup >= 400000", "many")


def test_memory_is_predicted(db: Database) -> None:
    _many_dead(db)
    advice = advise(db, "many")
    if db.server.version >= 170000:
        # A dead row takes a fraction of six bytes, nobody knows which.
        assert ActionKind.VACUUM_MEMORY not in kinds(advice)
        return
    action = the(advice, ActionKind.VACUUM_MEMORY)
    assert "400,000 dead rows need 2.3 MB of memory (six bytes each)" in action.reason
    assert "up to 3 passes" in action.reason
    assert action.steps == ("SET maintenance_work_mem = '3MB';", "VACUUM public.many;")
    do(db, action)
    counted(db, "n_dead_tup = 0", "many")
    assert ActionKind.VACUUM_MEMORY not in kinds(advise(db, "many"))


def test_a_vacuum_that_goes_over_the_indexes_again_and_again(db: Database) -> None:
    _many_dead(db)
    with db.connect() as session:
        memory = "64kB" if db.server.version >= 170000 else "1MB"
        session.execute(sql.SQL("SET maintenance_work_mem = {}").format(sql.Literal(memory)))
        session.execute("SET vacuum_cost_delay = '5ms'; SET vacuum_cost_limit = 100")

        def run() -> None:
            with pytest.raises(psycopg.errors.QueryCanceled):
                session.execute("VACUUM many")

        thread = threading.Thread(target=run)
        thread.start()
        try:
            until(lambda: any(vacuum.too_little_memory for vacuum in advise(db).vacuums), "it is at its second pass")
            advice = advise(db)
            (vacuum,) = advice.vacuums
            told = words(vacuum)
            assert told.startswith(f"VACUUM of public.many (pid {session.info.backend_pid}): ")
            assert "each pass reads all indexes: with more memory one would do" in told
            assert (vacuum.table, vacuum.automatic, vacuum.to_prevent_wraparound) == ("public.many", False, False)
            action = the(advice, ActionKind.VACUUM_MEMORY) if db.server.version >= 170000 else advice.actions[0]
            assert any(f"the VACUUM that is running (pid {vacuum.pid}) is at pass " in one.reason for one in advice)
            assert action.commands
            # It is being done.
            assert ActionKind.VACUUM not in kinds(advice)
        finally:
            session.cancel_safe()
            thread.join()
    until(lambda: advise(db).vacuums == (), "it is over")


def test_wraparound(db: Database) -> None:
    write(
        db,
        "CREATE TABLE old (id int, note text) WITH (autovacuum_freeze_max_age = 100000)",
        "INSERT INTO old VALUES (1, 'x')",
        "CREATE TABLE young (id int)",
        "ANALYZE old",
    )
    session = db.connect()
    session.execute("CREATE TEMP TABLE own (id int) WITH (autovacuum_freeze_max_age = 100000)")
    assert advise(db).ages == ()
    db.execute("SET synchronous_commit = off")
    db.execute("DO 'BEGIN FOR i IN 1..100001 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END'")
    advice = advise(db)
    # What is temporary only its session can freeze.
    (own,) = (age for age in advice.ages if age.temporary)
    action = the(advice, ActionKind.END_HOLDER)
    if db.server.version >= 160000:
        assert own.pid == session.info.backend_pid
        assert action.command == f"SELECT pg_terminate_backend({own.pid});"
    assert action.table == own.name
    session.close()
    until(lambda: not any(age.temporary for age in advise(db).ages), "it is gone")
    advice = advise(db)
    assert {(age.name, age.toast, age.of, age.limit) for age in advice.ages} == {
        ("public.old", False, "transactions", 100_000),
        ("public.old", True, "transactions", 100_000),
    }
    assert all(100_000 < age.age < 110_000 for age in advice.ages)
    action = next(action for action in advice if action.kind is ActionKind.FREEZE)
    assert not action.urgent
    assert action.command == "VACUUM (FREEZE) public.old;"
    assert "from 100,000 on autovacuum comes to freeze, from 1,600,000,000 on it leaves all" in action.reason
    do(db, action)
    assert advise(db).ages == ()
    assert ActionKind.FREEZE not in kinds(advise(db))


def test_a_role_without_rights(items: Database) -> None:
    role = "advise plain role"
    items.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        with items.connect(), items.connect(autocommit=False) as other:
            other.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
            advice = advise(items, user=role)
        codes = {warning.code: warning for warning in advice.warnings}
        assert re.match(r"[1-9]\d* sessions? of other roles cannot be seen", codes["hidden-sessions"].message)
        assert (advice.looked_at, advice.unknown) == (1, 1)
        (action,) = advise(items, "items", user=role)
        assert action.kind is ActionKind.NOTHING
        assert action.reason == "nothing is known: no statistics to be seen: the role may not read the table"
    finally:
        items.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_as_many_queries_for_any_number_of_tables(items: Database, caplog: pytest.LogCaptureFixture) -> None:
    def statements() -> int:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="pglean.sql"):
            assert advise(items).looked_at
        return len(caplog.records)

    before = statements()
    items.execute(
        "DO 'BEGIN FOR i IN 1..200 LOOP EXECUTE format(''CREATE TABLE %I (id int PRIMARY KEY)'', i); END LOOP; END'"
    )
    assert advise(items).looked_at == 201
    assert statements() == before
