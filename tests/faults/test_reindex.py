"""Rebuilds of indexes that are interrupted, killed and cut off: what they leave is removed, at once or by the next."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import psycopg
import pytest

import pglean
from pglean.engines import reindex
from pglean.errors import ConnectionLost, Interrupted
from pglean.result import ReindexResult
from tests.servers import Database
from tests.support import rebuild
from tests.support.client import Client
from tests.support.oracle import assert_sound, until
from tests.support.rebuild import Rebuild, held, waiting

pytestmark = pytest.mark.in_turn

_OURS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pglean %'"
_WORKER = f"{_OURS} AND query LIKE 'REINDEX %' AND state = 'active'"


@pytest.fixture
def db(arena: Database) -> Database:
    arena.execute(f"SELECT pg_terminate_backend(pid, 5000) {_OURS}")
    arena.execute(
        """
        DROP SCHEMA public CASCADE; CREATE SCHEMA public;
        CREATE TABLE t (id int PRIMARY KEY, n int);
        INSERT INTO t SELECT g, g % 10 FROM generate_series(1, 1000) g;
        CREATE INDEX tn ON t (n);
        CREATE TABLE u (id int PRIMARY KEY);
        """
    )
    return arena


def check(db: Database) -> None:
    """Nothing is left, all is sound, and can be done again."""
    until(lambda: db.scalar(f"SELECT count(*) {_OURS}") == 0, "the sessions of the run have ended")
    assert rebuild.invalid(db) == set()
    assert set(rebuild.indexes(db, "t")) == {"t_pkey", "tn"}
    assert_sound(db, "t")
    with pglean.connect(db.conninfo) as database:
        assert database.reindex(["t"]).error is None


@contextlib.contextmanager
def client(db: Database, *arguments: str) -> Iterator[Client]:
    """The command line, rebuilding the indexes of `t`."""
    with Client(["reindex", "-t", "t", *arguments, db.conninfo], []) as process:
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signal(db: Database, number: signal.Signals) -> None:
    with held(db, rebuild.WRITERS) as holder, client(db) as process:
        waiting(db, rebuild.WRITERS)
        process.signal(number)
        # The DROP waits for the same transaction.
        holder.rollback()
        assert process.wait() == 8, process.stderr
        assert f"pglean: error: interrupted by {number.name}" in process.stderr
        assert "still there" not in process.stderr
        assert "Traceback" not in process.stderr
        assert "not done: public.tn" in process.stdout
    check(db)


def test_signal_after_the_exchange(db: Database) -> None:
    before = rebuild.indexes(db, "t")
    with held(db, rebuild.READERS) as holder, client(db) as process:
        waiting(db, rebuild.READERS)
        process.signal(signal.SIGINT)
        holder.rollback()
        assert process.wait() == 8, process.stderr
        # It is rebuilt; what was left was the old one.
        assert " public.t_pkey " in process.stdout
        assert "not done: public.tn" in process.stdout
        assert "not done: public.t_pkey" not in process.stdout
    after = rebuild.indexes(db, "t")
    assert after["t_pkey"] != before["t_pkey"]
    assert after["tn"] == before["tn"]
    check(db)


@pytest.mark.parametrize("phase", rebuild.HOLDS)
def test_kill(db: Database, phase: str, capsys: pytest.CaptureFixture[str]) -> None:
    with held(db, phase):
        with client(db) as process:
            waiting(db, phase)
            process.kill()
        until(lambda: db.scalar(f"SELECT count(*) {_OURS}") == 0, "the server has noticed")
        (left,) = rebuild.invalid(db)
    with pglean.connect(db.conninfo) as database:
        assert database.reindex(["t"]).removed == (f"public.{left}",)
    check(db)


def test_what_cannot_be_removed_at_once_is_told(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reindex, "_UNDO_WAIT_S", 0.3)
    with held(db, rebuild.WRITERS):
        run = Rebuild(db, "t")
        waiting(db, rebuild.WRITERS)
        assert run.server is not None
        run.server.cancel("SIGINT")
        result = run.result()
        error = result.error
        assert isinstance(error, Interrupted)
        assert "The invalid index public.t_pkey_ccnew is still there, for its table is in use" in (error.hint or "")
        assert set(result.failures) == {"public.tn", "public.t_pkey"}
        assert rebuild.invalid(db) == {"t_pkey_ccnew"}
    with pglean.connect(db.conninfo) as database:
        assert database.reindex(["t"]).removed == ("public.t_pkey_ccnew",)
    check(db)


@pytest.mark.min_version(17)
def test_what_only_the_owner_may_remove_is_told(db: Database) -> None:
    db.execute(
        "DROP ROLE IF EXISTS maintainer; CREATE ROLE maintainer LOGIN;"
        " GRANT USAGE ON SCHEMA public TO maintainer; GRANT MAINTAIN ON t TO maintainer"
    )
    try:
        with held(db, rebuild.WRITERS) as holder:
            run = Rebuild(db, indexes=["tn"], conninfo=db.server.conninfo(db.name, "maintainer"))
            waiting(db, rebuild.WRITERS)
            db.execute(f"SELECT pg_cancel_backend(pid) {_WORKER}")
            waiting(db, rebuild.WRITERS, 0)
            holder.rollback()
        error = run.result().failures["public.tn"]
        assert "As its owner: DROP INDEX CONCURRENTLY public.tn_ccnew;" in (error.hint or "")
        assert "in use" not in (error.hint or "")
        with pglean.connect(db.conninfo) as database:
            assert database.reindex(["t"]).removed == ("public.tn_ccnew",)
    finally:
        db.execute("DROP OWNED BY maintainer; DROP ROLE maintainer")
    check(db)


def test_nothing_is_begun_without_the_watch(db: Database) -> None:
    db.execute(
        "DROP ROLE IF EXISTS lonely; CREATE ROLE lonely LOGIN CONNECTION LIMIT 1;"
        " GRANT USAGE, CREATE ON SCHEMA public TO lonely; ALTER TABLE t OWNER TO lonely"
    )
    before = rebuild.indexes(db, "t")
    try:
        with held(db, rebuild.WRITERS):
            outcome = Rebuild(db, "t", conninfo=db.server.conninfo(db.name, "lonely")).outcome()
        error = outcome.error if isinstance(outcome, ReindexResult) else outcome
        assert isinstance(error, ConnectionLost)
        assert "too many connections" in str(error)
        assert rebuild.indexes(db, "t") == before
    finally:
        db.execute("ALTER TABLE t OWNER TO postgres; DROP OWNED BY lonely; DROP ROLE lonely")
    check(db)


def test_cancelled_by_an_administrator(db: Database) -> None:
    with held(db, rebuild.WRITERS) as holder:
        run = Rebuild(db, "t")
        waiting(db, rebuild.WRITERS)
        db.execute(f"SELECT pg_cancel_backend(pid) {_WORKER}")
        until(lambda: db.scalar(f"SELECT count(*) {_WORKER}") == 0, "it is cancelled")
        holder.rollback()
    result = run.result()
    # The table's other index is done nevertheless.
    assert [index.index for index in result.indexes] == ["public.tn"]
    error = result.failures["public.t_pkey"]
    assert error.message == "could not rebuild index public.t_pkey: canceling statement due to user request"
    assert error.hint is None
    check(db)


def test_terminated(db: Database) -> None:
    with held(db, rebuild.WRITERS) as holder:
        run = Rebuild(db, "t", "u")
        waiting(db, rebuild.WRITERS)
        db.execute(f"SELECT pg_terminate_backend(pid) {_WORKER}")
        holder.rollback()
    result = run.result()
    assert isinstance(result.error, ConnectionLost)
    assert result.failures["public.u_pkey"].message == "not begun: the run was ended before"
    check(db)


def test_watch_is_begun_anew(db: Database) -> None:
    watch = f"{_OURS} AND application_name = 'pglean reindex watch'"
    with held(db, rebuild.WRITERS):
        run = Rebuild(db, indexes=["tn"])
        waiting(db, rebuild.WRITERS)
        until(lambda: any("holder" in text for text in run.waited_for), "it is told who is waited for")
        db.execute(f"SELECT pg_terminate_backend(pid, 5000) {watch}")
        run.waited_for.clear()
        until(lambda: any("holder" in text for text in set(run.waited_for)), "it is told again")
    assert run.result().error is None
    check(db)


def test_server_that_crashes(db: Database) -> None:
    with contextlib.suppress(psycopg.OperationalError), held(db, rebuild.WRITERS):
        run = Rebuild(db, "t")
        waiting(db, rebuild.WRITERS)
        db.server.restart(mode="immediate")
    db.close()
    result = run.result()
    assert isinstance(result.error, ConnectionLost), result
    check(db)
