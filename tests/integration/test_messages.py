"""What is said: of those who were in the way, and by preflight of what it finds."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import pglean
from pglean import catalog
from pglean.blockers import Mode
from pglean.embedded import EmbeddedServer
from pglean.errors import Finding, LockNotObtained, Refused
from pglean.locks import locked
from pglean.options import Options
from pglean.patience import Patience, Policy
from pglean.rewrite import checks
from pglean.server import Server
from pglean.table import quote_name
from tests.servers import SETTINGS, Database
from tests.support.oracle import until

pytestmark = pytest.mark.newest

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE INDEX i ON t (v)"


def lock(db: Database, policy: Policy) -> list[str]:
    """Take a lock on the table that keeps writers away; returns what was told of it."""
    messages: list[str] = []
    server = Server(db.conninfo)
    with server.connect("run") as conn:
        table = catalog.load(conn, db.scalar("SELECT 't'::regclass::oid"))
        patience = Patience(server, policy, lambda _: None, messages.append)
        with locked(server, conn, table, Mode.SHARE_ROW_EXCLUSIVE, patience):
            pass
    return messages


def warnings(db: Database, code: str) -> list[Finding]:
    """What preflight warns of, by its code."""
    with pglean.connect(db.conninfo) as database:
        return [finding for finding in database.plan("t").warnings if finding.code == code]


def test_names_are_quoted_as_the_server_does(db: Database) -> None:
    text = "SELECT w, quote_ident(w) FROM unnest(ARRAY(SELECT word FROM pg_get_keywords()) || %s::text[]) AS w"
    odd = ["", "a$b", "Ab", "1a", "a b", 'say "hi"', "größe", "_a1"]
    with db.connect() as session:
        for word, quoted in session.execute(text, (odd,)):
            # What is a keyword in another version is in quotes as well.
            assert quote_name(word) in (quoted, f'"{word}"')
            assert quoted == word or quote_name(word) == quoted


# ---- who was in the way


def test_cancelled_and_terminated_sessions_are_told(db: Database) -> None:
    db.execute(TABLE)
    blocker = db.connect(application_name="old report")
    blocker.execute("BEGIN; LOCK TABLE t IN ROW EXCLUSIVE MODE")
    who = f"pid {blocker.info.backend_pid} (postgres, old report, idle in transaction)"
    assert lock(db, Policy(20, 0.1, 1000, kill_backend=True)) == [
        f"cancelled {who}, which was in the way of the SHARE ROW EXCLUSIVE lock",
        f"terminated {who}, which was in the way of the SHARE ROW EXCLUSIVE lock",
    ]
    assert lock(db, Policy(20, 0.1, 1000, kill_backend=True)) == []


def test_cancelled_autovacuum_is_told(bindir: Path) -> None:
    settings = {
        **SETTINGS,
        "autovacuum_naptime": "1s",
        "autovacuum_vacuum_cost_delay": "100ms",
        "autovacuum_vacuum_cost_limit": "1",
    }
    with EmbeddedServer(bindir, settings=settings) as server, contextlib.closing(Database(server, "postgres")) as db:
        db.execute(
            f"{TABLE}; ALTER TABLE t SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0);"
            "INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(1, 20000) AS n; DELETE FROM t"
        )
        vacuuming = (
            "SELECT count(*) = 1 FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE relation = 't'::regclass AND backend_type = 'autovacuum worker' AND granted"
        )
        until(lambda: bool(db.scalar(vacuuming)), "an autovacuum works on the table")
        messages = lock(db, Policy(20, 30, 1000, kill_backend=False))
        # The next may have come before the lock could be had; each is told once.
        assert messages
        assert len(set(messages)) == len(messages)
        for message in messages:
            assert re.fullmatch(
                r"cancelled pid \d+ \(autovacuum worker, active\), which was in the way of the .*", message
            )


@pytest.fixture
def prepared(db: Database) -> Iterator[str]:
    """The name, as SQL writes it, of a prepared transaction that has locked the table."""
    db.execute(TABLE)
    db.execute("BEGIN; LOCK TABLE t IN ROW EXCLUSIVE MODE; PREPARE TRANSACTION 'two, ''phase'''")
    yield "'two, ''phase'''"
    db.execute("ROLLBACK PREPARED 'two, ''phase'''")


def test_prepared_transaction_is_not_to_be_killed(db: Database, prepared: str) -> None:
    with pglean.connect(db.conninfo) as database:
        for kill_backend in (False, True):
            with pytest.raises(LockNotObtained) as caught:
                database.repack("t", wait_timeout_s=0.1, lock_timeout_ms=20, kill_backend=kill_backend)
            error = caught.value
            assert error.hint == (
                f"End the prepared transaction: COMMIT PREPARED {prepared} or ROLLBACK PREPARED {prepared}."
                " The run had not come so far that there was anything to keep, and was undone."
            )
            (blocker,) = error.blockers
            assert blocker.startswith(f"prepared transaction {prepared} of postgres")


# ---- what preflight finds


def test_own_tables(db: Database) -> None:
    db.execute(TABLE)
    with pglean.connect(db.conninfo) as database:
        database.repack("t")
        with pytest.raises(Refused, match=r"^pglean.job is a table of pglean itself\n") as caught:
            database.plan("pglean.job")
        assert [finding.code for finding in caught.value.findings] == ["system"]


def test_event_triggers(db: Database) -> None:
    db.execute(
        f"{TABLE}; CREATE FUNCTION look() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        'CREATE EVENT TRIGGER "On drop" ON sql_drop EXECUTE FUNCTION look();'
        "CREATE EVENT TRIGGER rewritten ON table_rewrite EXECUTE FUNCTION look();"
        "CREATE EVENT TRIGGER off ON ddl_command_end EXECUTE FUNCTION look(); ALTER EVENT TRIGGER off DISABLE;"
        "CREATE EVENT TRIGGER theirs ON ddl_command_end EXECUTE FUNCTION look();"
        "ALTER EXTENSION plpgsql ADD EVENT TRIGGER theirs"
    )
    (finding,) = warnings(db, "event-trigger")
    assert finding.message == 'event trigger "On drop" runs for the helpers that are made and dropped'
    db.execute("ALTER EVENT TRIGGER off ENABLE ALWAYS")
    (finding,) = warnings(db, "event-trigger")
    assert finding.message == 'event triggers "On drop", off run for the helpers that are made and dropped'
    assert finding.hint
    db.execute(finding.hint.partition(" for the time")[0])
    assert warnings(db, "event-trigger") == []


def test_connections_that_are_not_there(db: Database) -> None:
    db.execute(TABLE)
    server = Server(db.conninfo)
    limit = server.capabilities.max_connections

    def found(sessions: int) -> list[Finding]:
        with server.connect("run") as conn:
            table = catalog.load(conn, db.scalar("SELECT 't'::regclass::oid"))
            facts = checks.gather(conn, server.capabilities, table, Options(), busy=False, sessions=sessions)
            return [finding for finding in checks.run(facts) if finding.code == "connections"]

    # The test's own session is another one; that of the run is among those it needs.
    assert found(0) == found(5) == found(limit - 20) == []
    (finding,) = found(limit)
    assert finding.fatal
    assert finding.message.startswith(f"the run needs {limit} connections, of which the server has ")
    assert finding.hint
    assert "-j" in finding.hint
    free = int(finding.message.split()[-2])
    assert limit - 20 < free < limit
    assert found(free) == []
    assert len(found(free + 1)) == 1


def test_reserved_connections_are_for_superusers(db: Database, plain_role: str) -> None:
    db.execute(TABLE)
    server, plain = Server(db.conninfo), Server(db.server.conninfo(db.name, plain_role))
    limit = server.capabilities.max_connections
    with server.connect("run") as conn:
        table = catalog.load(conn, db.scalar("SELECT 't'::regclass::oid"))
        figures = []
        for known in (server.capabilities, plain.capabilities):
            facts = checks.gather(conn, known, table, Options(), busy=False, sessions=limit)
            (finding,) = [finding for finding in checks.run(facts) if finding.code == "connections"]
            figures.append(int(finding.message.split()[-2]))
    assert figures[0] - figures[1] == db.scalar("SELECT current_setting('superuser_reserved_connections')::int")


@pytest.mark.parametrize("where", ["DATABASE {db}", 'ROLE "set aside"', 'ROLE "set aside" IN DATABASE {db}', None])
def test_role_that_was_set(db: Database, plain_role: str, where: str | None) -> None:
    db.execute(f'{TABLE}; DROP ROLE IF EXISTS "set aside"; CREATE ROLE "set aside" SUPERUSER LOGIN')
    conninfo = db.server.conninfo(db.name, "set aside")
    if where is None:
        conninfo += f" options='-c role=\"{plain_role}\"'".replace(plain_role, plain_role.replace(" ", r"\\ "))
        conninfo = conninfo.replace('"', "")
    else:
        where = where.format(db=db.name)
        db.execute(f'ALTER {where} SET role = "{plain_role}"')
    try:
        with pglean.connect(conninfo) as database, pytest.raises(Refused) as caught:
            database.plan("t")
        (finding,) = caught.value.findings
        assert finding.code == "rights"
        assert finding.message == ('the session of "set aside" works as role "plain role", which is not a superuser')
        assert finding.hint
        # Either way out is one.
        with pglean.connect(db.server.conninfo(db.name, "set aside") + " options='-c role=none'") as database:
            database.plan("t")
        if where is not None:
            assert finding.hint.endswith(f", or take the setting back: ALTER {where} RESET role;")
            db.execute(finding.hint.partition("take the setting back: ")[2])
            with pglean.connect(conninfo) as database:
                database.plan("t")
    finally:
        db.execute('RESET ROLE; DROP ROLE "set aside"')


def test_lowered_fillfactor(db: Database) -> None:
    db.execute(f"{TABLE}; INSERT INTO t SELECT n, repeat('x', 90) FROM generate_series(1, 5000) AS n; ANALYZE t")
    assert warnings(db, "fillfactor") == []
    db.execute("ALTER TABLE t SET (fillfactor = 100, autovacuum_enabled = off)")
    assert warnings(db, "fillfactor") == []
    db.execute("ALTER TABLE t SET (fillfactor = 50)")
    (finding,) = warnings(db, "fillfactor")
    assert finding.message == "with its fillfactor of 50, public.t may become larger than it is"
    # Most of it is bloat.
    db.execute("DELETE FROM t WHERE id < 4000; ANALYZE t")
    assert warnings(db, "fillfactor") == []


def test_disk_space_by_tablespace(tablespace: str, db: Database) -> None:
    db.execute(f"{TABLE}; INSERT INTO t SELECT n, repeat('x', 90) FROM generate_series(1, 5000) AS n")
    with pglean.connect(db.conninfo) as database:
        assert database.plan("t").disk_bytes_by_tablespace == {None: database.plan("t").disk_bytes}
        db.execute(f"ALTER INDEX i SET TABLESPACE {tablespace}")
        plan = database.plan("t")
        places = plan.disk_bytes_by_tablespace
        assert set(places) == {None, tablespace}
        assert places[tablespace] == db.scalar("SELECT pg_relation_size('i')")
        assert sum(places.values()) == plan.disk_bytes
        db.execute(f"ALTER TABLE t SET TABLESPACE {tablespace}")
        places = database.plan("t").disk_bytes_by_tablespace
        assert places[None] == db.scalar("SELECT pg_relation_size('t_pkey')")
    with psycopg.connect(db.conninfo, autocommit=True) as session:
        session.execute("DROP TABLE t")
