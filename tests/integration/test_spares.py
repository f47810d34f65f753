"""Sessions that are kept for the next table: how many there are, what is seen of their past, and who may end them."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from psycopg.conninfo import make_conninfo

import pglean
from pglean.errors import PgleanError
from pglean.progress import Progress
from pglean.rewrite import checks
from pglean.server import Server
from pglean.session import Connection, scalar, transaction
from tests.servers import Database
from tests.support.oracle import until

_SPARE = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pglean spare'"
)
_OURS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ '^pglean '"
_END = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name ="
)


def _pid(conn: Connection) -> int:
    return int(scalar(conn, "SELECT pg_backend_pid()"))


def _settings(conn: Connection) -> dict[str, str]:
    return dict(conn.execute("SELECT name, setting FROM pg_settings").fetchall())


def _tables(db: Database, count: int) -> list[str]:
    names = [f"t{number}" for number in range(count)]
    for name in names:
        db.execute(
            f"CREATE TABLE {name} (id int PRIMARY KEY, v text); INSERT INTO {name} VALUES (1, 'one'), (2, 'two')"
        )
    return names


@pytest.mark.parametrize("at_once", [1, 2])
def test_several_tables_share_their_sessions(db: Database, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    names = _tables(db, 8)
    opened: list[str] = []
    connect = Server._connect

    def count(self: Server, purpose: str, **options: bool) -> Connection:
        opened.append(purpose)
        return connect(self, purpose, **options)

    monkeypatch.setattr(Server, "_connect", count)
    with pglean.connect(db.conninfo) as database:
        database.repack(names[0])
        opened.clear()
        database.repack(names[0])
        single = len(opened)
        opened.clear()
        outcomes = database.repack_all(names, at_once=at_once)
    assert not [outcome for outcome in outcomes.values() if isinstance(outcome, PgleanError)]
    # Of two at once one may want more at a moment than it does alone.
    assert len(opened) <= (single if at_once == 1 else 4 * single), opened
    until(lambda: db.scalar(_OURS) == 0, "all sessions have ended")


def test_nothing_of_its_past_is_seen(db: Database) -> None:
    db.execute("CREATE SCHEMA elsewhere")
    server = Server(db.conninfo)
    with server.kept():
        with server.connect("second") as conn:
            fresh, pid = _settings(conn), _pid(conn)
            for statement in (
                "SELECT pg_advisory_lock(1)",
                "CREATE TEMP TABLE mine ()",
                "PREPARE mine AS SELECT 1",
                "LISTEN mine",
                "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
                "SELECT set_config('mine.own', 'yes', false)",
                "SET search_path = elsewhere",
                "SET lock_timeout = 1",
                "SET client_encoding = 'LATIN1'",
                "SET ROLE pg_monitor",
            ):
                conn.execute(statement)
        assert db.scalar(_SPARE) == 1
        with server.connect("second") as conn:
            assert _pid(conn) == pid
            for query in (
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
                "SELECT count(*) FROM pg_class WHERE relname = 'mine'",
                "SELECT count(*) FROM pg_prepared_statements",
                "SELECT count(*) FROM pg_listening_channels()",
                "SELECT count(*) FROM pg_cursors WHERE name = 'mine'",
            ):
                assert scalar(conn, query) == 0, query
            assert not scalar(conn, "SELECT current_setting('mine.own', true)")
            assert scalar(conn, "SELECT current_user = session_user")
            assert scalar(conn, "SELECT current_setting('application_name')") == "pglean second"
            assert _settings(conn) == fresh
            assert conn.info.encoding == "utf-8"
    until(lambda: db.scalar(_OURS) == 0, "the spare session has ended")


def test_what_is_not_kept(db: Database) -> None:
    server = Server(db.conninfo)
    with server.kept():
        with pytest.raises(RuntimeError), server.connect("failed"):
            raise RuntimeError
        assert db.scalar(_SPARE) == 0
        with server.connect("in a transaction") as conn:
            conn.execute("BEGIN")
        assert db.scalar(_SPARE) == 0
        with server.connect("closed") as conn:
            conn.close()
        assert db.scalar(_SPARE) == 0
        with server.connect("interrupted"):
            server.cancel("SIGINT")
        assert db.scalar(_SPARE) == 0
    other = Server(db.conninfo)
    with other.connect("outside"):
        pass
    until(lambda: db.scalar(_OURS) == 0, "all sessions have ended")


def test_what_was_asked_to_cancel_is_not_kept(db: Database) -> None:
    """The server may be told of it late."""
    server = Server(db.conninfo)
    with server.kept():
        with server.connect("first") as conn:
            conn.cancel_safe()
        assert db.scalar(_SPARE) == 0


def test_undoing_has_a_session_of_its_own(db: Database) -> None:
    server = Server(db.conninfo)
    with server.kept():
        with server.connect("first") as conn:
            pid = _pid(conn)
        with server.connect("undo", cancellable=False) as conn:
            assert _pid(conn) != pid


def test_none_is_kept_once_nobody_wants_any(db: Database) -> None:
    server = Server(db.conninfo)
    with server.kept(), server.kept():
        with server.connect("first"):
            pass
        assert server.spare_pids
        server.keep_no_more()
        assert not server.spare_pids
        with server.connect("second"):
            pass
        assert not server.spare_pids
    with server.kept():
        with server.connect("third"):
            pass
        assert server.spare_pids


def test_spares_are_free_for_the_next_run_alone(db: Database) -> None:
    server = Server(db.conninfo)
    with server.kept():
        with contextlib.ExitStack() as stack:
            for number in range(5):
                stack.enter_context(server.connect(f"worker {number}"))
        with server.connect("preflight") as conn:
            used = int(scalar(conn, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"))
            full = replace(server.capabilities, max_connections=used + 5)
            assert not list(checks.of_connections(conn, full, 10, server.spare_pids))
            assert list(checks.of_connections(conn, full, 10))


def test_a_role_that_is_no_superuser_any_more_still_gets_in(db: Database) -> None:
    role = f"former_{db.name}"
    db.execute(f'CREATE ROLE "{role}" LOGIN SUPERUSER')
    try:
        server = Server(make_conninfo(db.conninfo, user=role))
        db.execute(f'ALTER ROLE "{role}" NOSUPERUSER')
        with server.connect("undo") as conn:
            assert scalar(conn, "SELECT current_setting('search_path')") == "pg_catalog, pg_temp"
    finally:
        db.execute(f'DROP ROLE "{role}"')


def test_a_role_that_was_set_for_the_login_is_there_in_every_session(db: Database) -> None:
    role, group = f"login_{db.name}", f"group_{db.name}"
    db.execute(f'CREATE ROLE "{group}"; CREATE ROLE "{role}" LOGIN SUPERUSER IN ROLE "{group}"')
    try:
        db.execute(f"ALTER ROLE \"{role}\" SET role = '{group}'")
        server = Server(make_conninfo(db.conninfo, user=role))
        with server.kept():
            for _ in range(2):
                with server.connect("first") as conn:
                    assert scalar(conn, "SELECT current_user") == group
    finally:
        db.execute(f'DROP ROLE "{role}", "{group}"')


def test_a_spare_session_that_somebody_ended(db: Database) -> None:
    names = _tables(db, 3)
    ended: list[int] = []

    def watch(progress: Progress) -> None:
        if progress.phase == "planned":
            ended.append(len(db.fetchall(f"{_END} 'pglean spare'")))

    with pglean.connect(db.conninfo) as database:
        database.repack(names[0])
        outcomes = {}
        with database.server.kept():
            for name in names:
                outcomes[name] = database.repack(name, on_progress=watch)
                ended.append(len(db.fetchall(f"{_END} 'pglean spare'")))
    assert max(ended) > 0
    assert len(outcomes) == 3


def test_a_session_is_not_used_for_ever(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pglean.spares._MOST_USES", 3)
    server = Server(db.conninfo)
    pids = []
    with server.kept():
        for _ in range(7):
            with server.connect("again") as conn, transaction(conn):
                pids.append(_pid(conn))
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]
