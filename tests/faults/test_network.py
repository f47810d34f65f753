"""The network fails: connections are cut between client and server."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

import pglean
from pglean import cli
from pglean.errors import ConnectionLost, UsageError
from tests.support.oracle import once, until
from tests.support.proxy import Proxy
from tests.support.stage import Stage

pytestmark = pytest.mark.in_turn

#: Builds an index for a minute, once it is asked to take its time.
_SLOW = """
CREATE FUNCTION slowly(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
$$ BEGIN IF current_setting('test.slow', true) = 'on' THEN PERFORM pg_sleep(0.02); END IF; RETURN n; END $$;
CREATE INDEX ON items (slowly(amount));
"""


@pytest.fixture
def proxy(stage: Stage) -> Iterator[Proxy]:
    with Proxy(stage.db.server.port) as proxy:
        yield proxy


def conninfo(stage: Stage, proxy: Proxy) -> str:
    # The cancel requests of a run go the same way.
    return make_conninfo(stage.db.server.conninfo(stage.db.name, tcp=True), port=proxy.port)


@pytest.mark.parametrize("point", ["capture: before the commit", "copy: in a chunk", "swap: before the commit"])
def test_connections_cut_between_statements(stage: Stage, proxy: Proxy, point: str) -> None:
    with (
        once(point, proxy.cut),
        pglean.connect(conninfo(stage, proxy)) as database,
        pytest.raises(ConnectionLost, match="connection to the server was lost"),
    ):
        database.repack(stage.name)
    assert not stage.repacked
    assert [run.state for run in stage.status()] == ([] if point.startswith("capture") else ["paused"])
    stage.write()
    stage.settle("resume")
    stage.check()


def test_connections_cut_during_a_long_statement(
    stage: Stage, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.db.execute(_SLOW)
    stage.db.execute(f"ALTER DATABASE {stage.db.name} SET test.slow = on")
    building = (
        "SELECT pid FROM pg_stat_activity"
        " WHERE state = 'active' AND query LIKE 'REINDEX INDEX%' AND application_name LIKE '%slowly%'"
    )
    status: list[int] = []
    try:
        arguments = ["repack", "-t", "items", "-j", "1", conninfo(stage, proxy)]
        run = threading.Thread(target=lambda: status.append(_in_thread(arguments)))
        run.start()
        until(lambda: stage.db.fetchall(building) != [], "the index is being built")
        proxy.cut()
        # Only the server itself can notice that the statement's client has gone: client_connection_check_interval.
        until(lambda: stage.db.fetchall(building) == [], "the server has ended the statement")
        run.join()
    finally:
        stage.db.execute(f"ALTER DATABASE {stage.db.name} RESET test.slow")
    assert status == [5]
    assert "connection to the server was lost" in capsys.readouterr().err
    assert not stage.repacked
    stage.settle("resume")
    stage.check()


def _in_thread(arguments: list[str]) -> int:
    # Signal handlers are for the main thread alone.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda number, handler: handler)
        return cli.run(arguments)


@pytest.mark.parametrize("what", ["request", "answer"])
def test_connection_lost_at_the_commit_of_the_swap(stage: Stage, proxy: Proxy, what: str) -> None:
    def arm() -> None:
        proxy.cut_at(b"COMMIT", "request" if what == "request" else "answer")

    with (
        once("swap: before the commit", arm),
        pglean.connect(conninfo(stage, proxy)) as database,
        pytest.raises(ConnectionLost) as caught,
    ):
        database.repack(stage.name)
    assert stage.repacked == (what == "answer")
    assert ("the table is repacked" in str(caught.value)) == stage.repacked
    assert ("What was done is kept" in str(caught.value)) != stage.repacked
    stage.write()
    stage.settle("resume")
    stage.check()


def test_connection_lost_at_the_commit_of_the_capture(stage: Stage, proxy: Proxy) -> None:
    """It was committed: the triggers record, so there is something to go on with."""

    def arm() -> None:
        proxy.cut_at(b"COMMIT", "answer")

    with (
        once("capture: before the commit", arm),
        pglean.connect(conninfo(stage, proxy)) as database,
        pytest.raises(ConnectionLost, match="What was done is kept"),
    ):
        database.repack(stage.name)
    assert not stage.repacked
    stage.write()
    stage.settle("resume")
    stage.check()


def test_pooler_is_refused(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings, locks and exported snapshots belong to a server process, of which it may give us another each time."""
    with Proxy(stage.db.server.port, pooling=True) as proxy:
        assert cli.run(["repack", "-t", "items", conninfo(stage, proxy)]) == UsageError.exit_status
        assert "the connection goes through a pooler" in capsys.readouterr().err
        with pytest.raises(UsageError, match="pooler"), pglean.connect(conninfo(stage, proxy)) as database:
            database.status()
    assert stage.db.scalar("SELECT to_regnamespace('pglean')") is None
    stage.check()
