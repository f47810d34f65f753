"""The brake on real servers: each limit closes, says why, and opens again; what cannot be measured closes too."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pglean import disk, throttle
from pglean.disk import Space
from pglean.embedded import EmbeddedServer, find_binaries
from pglean.options import Options
from pglean.server import Server
from pglean.session import Connection, scalar
from pglean.throttle import Throttle
from tests.servers import SETTINGS, Database
from tests.support.oracle import until

MB = 1 << 20

pytestmark = pytest.mark.newest


@contextlib.contextmanager
def measuring(
    conninfo: str, options: Options, space: Space | None = None
) -> Iterator[tuple[Callable[[], str], Connection]]:
    """What measures, and the session that it has for itself."""
    brake = Throttle(options, space)
    assert brake.wanted
    with Server(conninfo).connect("throttle") as conn:
        yield lambda: brake.measure(conn), conn


# ---- standbys


class Pair:
    """A primary and its standby, which is called follower."""

    def __init__(self, primary: EmbeddedServer, standby: EmbeddedServer) -> None:
        self.primary, self.standby = primary, standby
        self.conninfo = primary.conninfo()
        self._sessions = [psycopg.connect(server.conninfo(), autocommit=True) for server in (primary, standby)]

    def write(self, size: int = 1000) -> None:
        """Commit so much WAL."""
        self._sessions[0].execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', %s))", (size,))

    def told(self, question: str) -> object:
        """What the primary says."""
        row = self._sessions[0].execute(sql.SQL(question)).fetchone()
        return None if row is None else row[0]

    def opens(self, measure: Callable[[], str]) -> None:
        """Wait until work may go on. A standby tells what it has replayed when it receives something."""

        def open_again() -> bool:
            self.write()
            return measure() == ""

        until(open_again, "work may go on")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The standby receives, and does not replay."""
        session = self._sessions[1]
        session.execute("SELECT pg_wal_replay_pause()")
        state = "SELECT pg_get_wal_replay_pause_state() = 'paused'"
        until(lambda: session.execute(state).fetchone() == (True,), "replay is paused")
        try:
            yield
        finally:
            session.execute("SELECT pg_wal_replay_resume()")

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """The standby neither receives nor replies, and its connection stands."""
        row = self._sessions[1].execute("SELECT pid FROM pg_stat_wal_receiver").fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(row[0], signal.SIGCONT)

    def close(self) -> None:
        for session in self._sessions:
            session.close()


@pytest.fixture(scope="module")
def pair(bindir: Path) -> Iterator[Pair]:
    with (
        EmbeddedServer(bindir, settings=SETTINGS) as primary,
        primary.standby(application_name="follower") as standby,
    ):
        found = Pair(primary, standby)
        until(
            lambda: found.told("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 1, "it follows"
        )
        yield found
        found.close()


def test_lag_in_bytes(pair: Pair) -> None:
    with measuring(pair.conninfo, Options(max_lag_bytes=MB)) as (measure, _):
        pair.opens(measure)
        with pair.paused():
            pair.write(4 * MB)
            until(lambda: measure() != "", "the standby lags")
            assert measure() == "standby follower lags by 4 MB (limit 1 MB)"
            # What is exceeded stays so.
            assert measure() != ""
        pair.opens(measure)


def test_lag_in_seconds(pair: Pair) -> None:
    with measuring(pair.conninfo, Options(max_lag_s=0.2)) as (measure, _):
        pair.opens(measure)
        with pair.paused():
            pair.write()
            until(lambda: "standby follower lags by " in measure(), "the standby lags")
            assert measure().endswith(" s (limit 0.2 s)")
        pair.opens(measure)


def test_a_standby_that_has_gone_silent_lags(pair: Pair) -> None:
    with measuring(pair.conninfo, Options(max_lag_s=0.5)) as (measure, _):
        pair.opens(measure)
        with pair.silent():
            pair.write()
            until(lambda: "standby follower lags by " in measure(), "the standby lags")
            # The server has nothing newer than the last reply.
            assert pair.told("SELECT coalesce(replay_lag, '0') < '0.5 s' FROM pg_stat_replication")
        pair.opens(measure)


def test_an_idle_standby_does_not_lag(pair: Pair) -> None:
    with measuring(pair.conninfo, Options(max_lag_bytes=0, max_lag_s=0.0)) as (measure, _):
        until(lambda: measure() == "", "all is replayed, and reported to be", timeout_s=40)


def test_only_named_standbys_count(pair: Pair) -> None:
    with measuring(pair.conninfo, Options(max_lag_bytes=MB, lag_standbys=("follower", "elsewhere"))) as (measure, _):
        assert measure() == "cannot measure the lag of standby elsewhere: it is not connected"
    with measuring(pair.conninfo, Options(max_lag_bytes=MB, lag_standbys=("follower",))) as (measure, _):
        pair.opens(measure)


@contextlib.contextmanager
def receiving(pair: Pair, program: str, name: str, *arguments: str) -> Iterator[None]:
    """A client that receives WAL and replays nothing; it stands still once it has reported."""
    path = pair.primary.bindir / program
    path = path if path.is_file() else find_binaries() / program
    conninfo = make_conninfo(pair.conninfo, application_name=name)
    process = subprocess.Popen(
        [path, f"--dbname={conninfo}", "--status-interval=1", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        reported = f"SELECT write_lsn IS NOT NULL FROM pg_stat_replication WHERE application_name = '{name}'"
        until(lambda: pair.told(reported) is True, f"{name} receives")
        process.send_signal(signal.SIGSTOP)
        yield
    finally:
        process.kill()
        process.wait()


def test_receivers_count_only_where_they_are_named(pair: Pair, tmp_path: Path) -> None:
    with psycopg.connect(pair.conninfo, autocommit=True) as session:
        session.execute("CREATE PUBLICATION p FOR ALL TABLES")
        session.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        logical = ("--slot=s", "--start", "--option=proto_version=1", "--option=publication_names=p", "--file=-")
        with (
            receiving(pair, "pg_receivewal", "archive", "--no-sync", f"--directory={tmp_path}"),
            receiving(pair, "pg_recvlogical", "subscriber", *logical),
        ):
            pair.write(4 * MB)
            with measuring(pair.conninfo, Options(max_lag_bytes=MB)) as (measure, _):
                pair.opens(measure)
            for name in ("archive", "subscriber"):
                with measuring(pair.conninfo, Options(max_lag_bytes=MB, lag_standbys=(name,))) as (measure, _):
                    assert measure().startswith(f"standby {name} lags by ")
        until(lambda: pair.told("SELECT active FROM pg_replication_slots WHERE slot_name = 's'") is False, "it is free")
        session.execute("SELECT pg_drop_replication_slot('s')")
        session.execute("DROP PUBLICATION p")


def test_without_a_standby_nothing_lags(db: Database) -> None:
    with measuring(db.conninfo, Options(max_lag_bytes=0, max_lag_s=0.0)) as (measure, _):
        assert measure() == ""


# ---- sessions


@contextlib.contextmanager
def working(db: Database, statement: str, name: str = "application") -> Iterator[None]:
    """A session that is busy with the statement."""
    session = db.connect(application_name=name)
    session.pgconn.send_query(statement.encode())
    try:
        busy = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type IN ('Timeout', 'Lock')"
        until(lambda: bool(db.fetchall(busy, (session.info.backend_pid,))[0][0]), "the session is busy")
        yield
    finally:
        db.execute("SELECT pg_terminate_backend(%s, 20000)", (session.info.backend_pid,))
        session.close()


def test_active_sessions(db: Database) -> None:
    with measuring(db.conninfo, Options(max_load=1)) as (measure, _):
        until(lambda: measure() == "", "nobody works")
        with working(db, "SELECT pg_sleep(600)"):
            assert measure() == ""
            with working(db, "SELECT pg_sleep(600)"):
                assert measure() == "2 sessions of others are active (limit 1)"
            # As many as are allowed: it goes on after a while, or when there are less.
            assert measure() == "1 session of others is active (limit 1, goes on at 0)"
        assert measure() == ""


def test_sessions_of_ours_do_not_count(db: Database) -> None:
    with measuring(db.conninfo, Options(max_load=0)) as (measure, _):
        until(lambda: measure() == "", "nobody works")
        with working(db, "SELECT pg_sleep(600)", name="pglean 7 t copy"):
            assert measure() == ""


def test_sessions_that_are_not_tracked_count_as_active(db: Database) -> None:
    with measuring(db.conninfo, Options(max_load=0)) as (measure, _):
        until(lambda: measure() == "", "nobody works")
        with working(db, "SET track_activities = off; SELECT pg_sleep(600)"):
            assert measure() == "1 session of others is active (limit 0)"


def test_sessions_that_wait_for_locks(db: Database) -> None:
    db.execute("CREATE TABLE t (a int)")
    with (
        measuring(db.conninfo, Options(max_lock_waits=0, max_load=1)) as (measure, _),
        db.connect() as session,
    ):
        until(lambda: measure() == "", "nobody works")
        session.execute("BEGIN; LOCK TABLE t")
        with working(db, "TABLE t"):
            assert measure() == "1 session waits for locks (limit 0)"
            with working(db, "TABLE t"):
                both = "2 sessions of others are active (limit 1); 2 sessions wait for locks (limit 0)"
                assert measure() == both
        session.execute("ROLLBACK")
        assert measure() == ""


# ---- WAL


def test_rate_of_wal(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "RATE_WINDOW_S", 0.2)
    with measuring(db.conninfo, Options(max_wal_rate_bytes=MB)) as (measure, _):
        assert measure() == "measuring the rate of WAL"
        db.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 16 << 20))")
        reason = measure()
        assert reason.startswith("the server writes ")
        assert reason.endswith("B of WAL a second (limit 1 MB)")
        until(lambda: measure() == "", "the rate has fallen")


# ---- what cannot be measured


@pytest.fixture
def nobody(db: Database) -> Iterator[str]:
    """A role without rights."""
    name = f"nobody_{uuid.uuid4().hex[:8]}"
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name
    db.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


def test_a_role_that_may_not_look(db: Database, nobody: str) -> None:
    role = sql.Identifier(nobody)
    lacking = "our role lacks the rights of pg_monitor"
    with measuring(db.server.conninfo(db.name, nobody), Options(max_lag_s=1.0, max_load=1000)) as (measure, conn):
        assert (
            measure() == f"cannot measure the lag of standbys: {lacking}; cannot measure sessions of others: {lacking}"
        )
        db.execute(sql.SQL("GRANT pg_monitor TO {}").format(role))
        assert measure() == ""
        db.execute("REVOKE SELECT ON pg_stat_replication FROM PUBLIC")
        db.execute(sql.SQL("REVOKE pg_monitor FROM {0}; GRANT pg_read_all_stats TO {0}").format(role))
        assert measure() == "cannot measure the lag of standbys: permission denied for view pg_stat_replication"
        db.execute("GRANT SELECT ON pg_stat_replication TO PUBLIC")
        assert measure() == ""
        assert disk.find(conn, None) is None


def test_a_lost_connection_is_none_of_its_business(db: Database) -> None:
    with measuring(db.conninfo, Options(max_load=1000)) as (measure, conn):
        assert measure() == ""
        db.execute("SELECT pg_terminate_backend(%s, 20000)", (conn.info.backend_pid,))
        with pytest.raises(psycopg.OperationalError):
            measure()
        with pytest.raises(psycopg.OperationalError):
            measure()


# ---- disk space


def find(conninfo: str, tablespace: str | None = None) -> Space | None:
    with Server(conninfo).connect("throttle") as conn:
        return disk.find(conn, tablespace)


def test_space_of_the_database(db: Database) -> None:
    space = find(db.conninfo)
    assert space is not None
    assert space.paths == {"tablespace pg_default": db.server.datadir / "base"}
    # Others write to the same disk meanwhile.
    expected = pytest.approx(shutil.disk_usage(db.server.datadir).free, abs=1 << 28)
    assert space.free_bytes() == {"tablespace pg_default": expected}
    assert find(db.conninfo, "pg_default") == space
    assert find(db.conninfo, "nonesuch") is None
    with measuring(db.conninfo, Options(min_free_bytes=1), space) as (measure, _):
        assert measure() == ""
    with measuring(db.conninfo, Options(min_free_bytes=1 << 50), space) as (measure, _):
        assert measure().endswith(" free on tablespace pg_default (limit 1 PB)")


def test_space_of_a_tablespace(tablespace: str, db: Database) -> None:
    space = find(db.conninfo, tablespace)
    assert space is not None
    assert list(space.paths) == [f"tablespace {tablespace}"]
    (path,) = space.paths.values()
    db.execute("CREATE TABLE t () TABLESPACE " + tablespace)
    assert path in (db.server.datadir / db.scalar("SELECT pg_relation_filepath('t')")).parents


@pytest.fixture
def elsewhere(server: EmbeddedServer) -> Iterator[Path]:
    """A directory on another file system, which the server may use; to be asked for before the database."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == server.datadir.stat().st_dev:
        pytest.skip("there is no other file system")
    directory = Path(tempfile.mkdtemp(prefix="pglean-", dir=memory))
    owner = server.datadir.stat()
    os.chown(directory, owner.st_uid, owner.st_gid)
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        session.execute(sql.SQL("CREATE TABLESPACE elsewhere LOCATION {}").format(sql.Literal(str(directory))))
        yield directory
        session.execute("DROP TABLESPACE elsewhere")
    shutil.rmtree(directory)


def test_space_of_a_tablespace_elsewhere(elsewhere: Path, db: Database) -> None:
    space = find(db.conninfo, "elsewhere")
    assert space is not None
    assert list(space.paths) == ["tablespace elsewhere", "pg_wal"]
    assert space.paths["tablespace elsewhere"].samefile(elsewhere)
    free = space.free_bytes()
    assert free["tablespace elsewhere"] == pytest.approx(shutil.disk_usage(elsewhere).free, abs=1 << 28)
    assert free["pg_wal"] == pytest.approx(shutil.disk_usage(db.server.datadir).free, abs=1 << 28)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can pose as another user")
def test_space_is_unknown_to_another_user(db: Database) -> None:
    with Server(db.conninfo).connect("throttle") as conn:
        os.seteuid(54321)
        try:
            assert disk.find(conn, None) is None
        finally:
            os.seteuid(0)
        assert disk.find(conn, None) is not None


_FIND = """\
import sys
from pglean import disk
from pglean.server import Server
with Server(sys.argv[1]).connect("throttle") as conn:
    print(disk.find(conn, None))
"""
_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "--")


def test_space_is_unknown_where_another_server_has_the_same_path(pair: Pair) -> None:
    command = [*_NAMESPACE, "sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "sh"]
    ours, other = str(pair.primary.datadir), str(pair.standby.datadir)
    client = [sys.executable, "-c", _FIND, pair.conninfo]
    if subprocess.run([*command, other, ours, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no directory can be mounted here")
    alike = subprocess.run([*command, other, ours, *client], capture_output=True, text=True, check=True)
    assert alike.stdout == "None\n"
    same = subprocess.run([*command, ours, ours, *client], capture_output=True, text=True, check=True)
    assert same.stdout.startswith("Space(")


def test_the_session_is_left_as_it_was(db: Database) -> None:
    everything = Options(
        max_lag_bytes=1 << 40, max_lag_s=60, max_load=1000, max_lock_waits=1000, max_wal_rate_bytes=1 << 40
    )
    with measuring(db.conninfo, everything, find(db.conninfo)) as (measure, conn):
        measure()
        assert measure() == ""
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert scalar(conn, "SELECT 1") == 1
