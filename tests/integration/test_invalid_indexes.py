"""Invalid indexes of a table that is to be repacked: refused, rebuilt or dropped, as asked; none keeps its old file."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

import pglean
from pglean.errors import Interrupted, LockNotObtained, Refused
from tests.servers import Database
from tests.support import rebuild
from tests.support.oracle import assert_nothing_left, assert_same, assert_sound, observe, repack
from tests.support.rebuild import Rebuild

pytestmark = pytest.mark.in_turn

TABLE = """
    CREATE TABLE t (id int PRIMARY KEY, n int, v text);
    INSERT INTO t SELECT g, g % 10, md5(g::text) FROM generate_series(1, 1000) g;
    CREATE INDEX tn ON t (n);
    DELETE FROM t WHERE id > 500;
"""


def invalid_unique(db: Database) -> None:
    """An index that a failed CREATE INDEX CONCURRENTLY has left, for two rows are equal."""
    db.execute(f"{TABLE}; UPDATE t SET v = 'twice' WHERE id IN (1, 2)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.execute("CREATE UNIQUE INDEX CONCURRENTLY tv ON t (v)")


def refusal(db: Database, **options: Any) -> Refused:
    before = db.fetchall("SELECT oid, relname, relfilenode FROM pg_class ORDER BY oid")
    with pglean.connect(db.conninfo) as database, pytest.raises(Refused) as caught:
        database.repack("t", **options)
    assert db.fetchall("SELECT oid, relname, relfilenode FROM pg_class ORDER BY oid") == before
    return caught.value


def plan(db: Database, how: str) -> list[str | None]:
    """What --dry-run says of invalid indexes."""
    with pglean.connect(db.conninfo) as database:
        warnings = database.plan("t", invalid_indexes=how).warnings
    return [warning.detail for warning in warnings if warning.code == "invalid-index"]


def test_refused_by_default(db: Database) -> None:
    invalid_unique(db)
    rebuild.leave(db, "tn")
    findings = {finding.message: finding for finding in refusal(db).findings}
    plain, leftover = findings["index public.tv is invalid"], findings["index public.tn_ccnew is invalid"]
    assert "--invalid-indexes rebuild" in (plain.hint or "")
    assert "DROP INDEX CONCURRENTLY or REINDEX INDEX CONCURRENTLY public.tv;" in (plain.hint or "")
    assert "A REINDEX CONCURRENTLY of public.tn that failed" in (leftover.detail or "")
    assert "pglean reindex -t 'public.t'" in (leftover.hint or "")


def test_rebuilt(db: Database, owner: str) -> None:
    invalid_unique(db)
    db.execute(f"""UPDATE t SET v = 'once' WHERE id = 1; ALTER TABLE t OWNER TO "{owner}" """)
    rebuild.leave(db, "tn")
    assert sorted(filter(None, plan(db, "rebuild"))) == [
        "A REINDEX CONCURRENTLY of public.tn that failed or was cancelled has left it; nothing needs it."
        " It is dropped first.",
        "It is rebuilt first (--invalid-indexes rebuild).",
    ]
    assert rebuild.invalid(db) == {"tv", "tn_ccnew"}
    told: list[str] = []
    with pglean.connect(db.conninfo) as database:
        database.repack("t", invalid_indexes="rebuild", on_progress=lambda progress: told.append(progress.message))
    assert any("removed invalid index public.tn_ccnew" in message for message in told)
    assert rebuild.invalid(db) == set()
    assert set(rebuild.indexes(db, "t")) == {"t_pkey", "tn", "tv"}
    assert_sound(db, "t")
    assert_nothing_left(db)
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.execute("INSERT INTO t VALUES (-1, 0, 'twice')")


def test_dropped(db: Database) -> None:
    invalid_unique(db)
    rebuild.leave(db, "tn", rebuild.READERS)
    assert "It is dropped first (--invalid-indexes drop)." in plan(db, "drop")
    with pglean.connect(db.conninfo) as database:
        database.repack("t", invalid_indexes="drop")
    assert set(rebuild.indexes(db, "t")) == {"t_pkey", "tn"}
    assert_sound(db, "t")
    assert_nothing_left(db)


def test_what_cannot_be_rebuilt(db: Database) -> None:
    invalid_unique(db)
    error = refusal(db, invalid_indexes="rebuild")
    assert error.message == "could not rebuild unique index public.tv: a key occurs more than once"
    assert error.detail == "Key (v)=(twice) is duplicated."
    assert "Delete the duplicates" in (error.hint or "")
    assert "--invalid-indexes drop" in (error.hint or "")
    assert [finding.code for finding in error.findings] == ["invalid-index"]
    assert rebuild.invalid(db) == {"tv"}
    assert db.scalar("SELECT to_regnamespace('pglean')") is None


def test_other_obstacles_come_first(db: Database, plain_role: str) -> None:
    """Nothing is done about indexes of a table that will be refused."""
    invalid_unique(db)
    db.execute("UPDATE t SET v = 'once' WHERE id = 1; ALTER TABLE t SET UNLOGGED")
    error = refusal(db, invalid_indexes="drop")
    assert [finding.code for finding in error.findings] == ["unlogged"]
    assert "tv" in rebuild.indexes(db, "t")


def test_index_of_a_constraint(db: Database) -> None:
    db.execute(f"{TABLE}; ALTER TABLE t ADD CONSTRAINT tu UNIQUE (n, id);")
    db.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'tu'::regclass")
    error = refusal(db, invalid_indexes="drop")
    assert error.detail == "It cannot be dropped, for it backs constraint tu."
    assert "--invalid-indexes rebuild" in (error.hint or "")
    assert "backs constraint tu" in (refusal(db).hint or "")
    with pglean.connect(db.conninfo) as database:
        database.repack("t", invalid_indexes="rebuild")
    assert rebuild.invalid(db) == set()
    assert db.scalar("SELECT conindid::regclass::text FROM pg_constraint WHERE conname = 'tu'") == "tu"
    assert_sound(db, "t")


def test_index_of_a_partition(db: Database) -> None:
    db.execute(
        """
        CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
        CREATE TABLE t PARTITION OF p FOR VALUES FROM (0) TO (100);
        INSERT INTO p SELECT g, g FROM generate_series(1, 50) g;
        CREATE INDEX pv ON ONLY p (v); CREATE INDEX tv ON t (v); ALTER INDEX pv ATTACH PARTITION tv;
        UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'tv'::regclass;
        """
    )
    assert refusal(db, invalid_indexes="drop").detail == "It cannot be dropped, for it is a part of index public.pv."
    with pglean.connect(db.conninfo) as database:
        database.repack("t", invalid_indexes="rebuild")
    assert rebuild.invalid(db) == set()
    assert db.fetchall("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'pv'::regclass") == [("tv",)]


def test_index_of_an_exclusion_constraint(db: Database) -> None:
    db.execute(f"{TABLE}; ALTER TABLE t ADD CONSTRAINT x EXCLUDE USING btree (id WITH =)")
    db.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'x'::regclass")
    for how in ("rebuild", "drop"):
        assert [finding.code for finding in refusal(db, invalid_indexes=how).findings] == ["invalid-index"]
    assert "REINDEX INDEX public.x;" in (refusal(db, invalid_indexes="rebuild").hint or "")


def test_no_index_points_into_the_old_heap(db: Database) -> None:
    """Each has a new file, and finds every row of the new heap, whatever it was before."""
    invalid_unique(db)
    db.execute("UPDATE t SET v = 'once' WHERE id = 1")
    rebuild.leave(db, "tn")
    with pglean.connect(db.conninfo) as database:
        database.repack("t", invalid_indexes="rebuild")
    before = observe(db, "t")
    assert set(before.indexes) == {"t_pkey", "tn", "tv"}
    repack(db, "t", invalid_indexes="rebuild")
    assert_same(before, observe(db, "t"))


def test_lock_that_is_not_to_be_had(db: Database) -> None:
    invalid_unique(db)
    with db.connect(autocommit=False) as session, pglean.connect(db.conninfo) as database:
        session.execute("LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(LockNotObtained):
            database.repack("t", invalid_indexes="rebuild", wait_timeout_s=0.2)
    assert rebuild.invalid(db) == {"tv"}


def test_interrupted(db: Database) -> None:
    invalid_unique(db)
    db.execute("UPDATE t SET v = 'once' WHERE id = 1")
    with rebuild.held(db, rebuild.WRITERS) as holder:
        run = Rebuild(db, "t", act="repack", invalid_indexes="rebuild")
        rebuild.waiting(db, rebuild.WRITERS)
        assert run.server is not None
        run.server.cancel("SIGINT")
        rebuild.waiting(db, rebuild.WRITERS, 0)
        holder.rollback()
    assert isinstance(run.outcome(), Interrupted)
    assert rebuild.invalid(db) == {"tv"}
    assert db.scalar("SELECT to_regnamespace('pglean')") is None


def test_invalid_index_of_the_toast_table(db: Database) -> None:
    """It goes with the old TOAST table, whatever is asked for."""
    db.execute("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    toast = db.scalar("SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 't'::regclass")
    with db.connect(autocommit=False) as writer, db.connect() as session:
        writer.execute("INSERT INTO t SELECT g, repeat(g::text, 9000) FROM generate_series(1, 20) g")
        session.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            session.execute(f"REINDEX INDEX CONCURRENTLY {toast}_index")
        writer.commit()
    assert len(rebuild.invalid(db)) == 1
    repack(db, "t")
    assert rebuild.invalid(db) == set()
