"""A run at a closed gate: it says what it waits for, can be paused and aborted there, and goes on by itself."""

from __future__ import annotations

import threading

import psycopg
import pytest

import pglean
from pglean.errors import Aborted, Paused
from pglean.result import Result
from pglean.rewrite.run import Workers
from pglean.session import Connection
from tests.support.fault import repack
from tests.support.oracle import until
from tests.support.play import Background
from tests.support.stage import Stage

pytestmark = pytest.mark.newest

#: More than any disk has.
ENDLESS = 1 << 59


def waiting_for(stage: Stage) -> str:
    """What the one run says that it waits for."""
    return "".join(str(run.progress.get("waiting_for") or "") for run in stage.status())


def test_waits_for_active_sessions_and_goes_on(stage: Stage) -> None:
    """The number of chunks, rounds and indexes that it does meanwhile is none."""
    with psycopg.connect(stage.db.conninfo, autocommit=True) as holder, psycopg.connect(stage.db.conninfo) as waiter:
        holder.execute("SELECT pg_advisory_lock(4711)")
        other = Background(lambda: waiter.execute("SELECT pg_advisory_lock(4711)"))
        until(lambda: stage.db.scalar("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"), "it waits")
        outcome = Background(lambda: repack(stage, max_load=0))
        until(lambda: "of others" in waiting_for(stage), "the run says what it waits for")
        assert stage.db.scalar("SELECT count(*) FROM pglean.chunk") == 0
        holder.execute("SELECT pg_advisory_unlock(4711)")
        other.result()
    assert isinstance(outcome.result(), Result)
    assert stage.repacked
    stage.check()


def test_waits_for_space_and_is_paused(stage: Stage) -> None:
    with pglean.connect(stage.db.conninfo) as database:
        assert any(finding.code == "space" for finding in database.plan(stage.name, min_free_bytes=ENDLESS).warnings)
        outcome = Background(lambda: repack(stage, min_free_bytes=ENDLESS))
        until(lambda: "free on tablespace pg_default" in waiting_for(stage), "the run says what it waits for")
        (run,) = database.status()
        database.pause(run.id, wait_s=30)
        assert isinstance(outcome.result(), Paused)
        stage.write()
        # With room enough, which is what the options say, whoever goes on may change.
        result = database.repack(stage.name, min_free_bytes=0)
        assert result.job == run.id
    stage.check()


@pytest.mark.parametrize("limit", [{"min_free_bytes": ENDLESS}, {"max_lag_bytes": 0, "lag_standbys": ("nobody",)}])
def test_aborted_while_it_waits(stage: Stage, limit: dict[str, object]) -> None:
    """What cannot be measured counts as exceeded."""
    outcome = Background(lambda: repack(stage, **limit))
    until(lambda: waiting_for(stage) != "", "the run says what it waits for")
    with pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        assert database.abort(run.id) == ("undone", [])
    assert isinstance(outcome.result(), Aborted)
    assert not stage.repacked
    stage.check()


def test_pause_at_the_gate_lets_the_others_finish(stage: Stage) -> None:
    """One worker builds an index, perhaps for hours; the other stands at the gate when the pause is asked for."""
    with pglean.connect(stage.db.conninfo) as database:
        server = database.server
        with server.connect("a") as one, server.connect("b") as two:
            at_the_gate, paused = threading.Event(), threading.Event()
            finished: list[str] = []

            def work(conn: Connection, _: str, what: str) -> None:
                if what == "gate":
                    at_the_gate.set()
                    assert paused.wait(20)
                    raise Paused("run 1 was paused")
                assert at_the_gate.wait(20)
                paused.set()
                conn.execute("SELECT pg_catalog.pg_sleep(0.3)")
                finished.append(what)

            workers = Workers(server, [one, two], lambda: None, lambda: None)
            with pytest.raises(Paused):
                workers.each(["gate", "index"], work)
            workers.close()
            assert finished == ["index"]
