"""Runs that sort the rows, killed or cut off in the middle: they go on with the order that they had begun with."""

from __future__ import annotations

import threading

import pytest

import pglean
from pglean import pausepoint
from pglean.errors import ConnectionLost, Paused, Refused
from pglean.result import Result
from pglean.rewrite import copy
from pglean.rewrite import job as jobs
from pglean.rewrite.copy import Ranges
from pglean.session import Connection
from tests.faults.test_client import stopped
from tests.support.fault import Fault, repack
from tests.support.oracle import until
from tests.support.play import Background
from tests.support.sorted import RANGES, out_of_place
from tests.support.stage import Stage

pytestmark = pytest.mark.in_turn

CHUNK = "copy: before a chunk"


@pytest.fixture
def by_ranges(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ranges of `amount`, one piece at a time, whatever the statistics say."""
    for module, attribute, value in RANGES:
        monkeypatch.setattr(module, attribute, value)
    monkeypatch.setattr(Ranges, "took", lambda *_: None)
    stage.db.execute("ANALYZE items")


def meddle(stage: Stage) -> None:
    """Everything that a new run would decide otherwise."""
    stage.write()
    stage.db.execute("ALTER TABLE items CLUSTER ON items_code_key")
    stage.db.execute('UPDATE items SET amount = amount + 1000; UPDATE "model of items" SET amount = amount + 1000')
    stage.db.execute("ANALYZE items")


def cut_off(stage: Stage, occurrence: int, **options: object) -> None:
    def terminate() -> None:
        for pid in stage.sessions():
            stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    assert isinstance(repack(stage, Fault(CHUNK, terminate, occurrence), **options), ConnectionLost)


@pytest.mark.usefixtures("by_ranges")
@pytest.mark.parametrize("given", ["amount DESC, id", None], ids=["given", "by the clustering index"])
def test_ranges_stay_what_they_were(stage: Stage, given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied is not copied again, and the rest by the bounds of then."""
    if given is None:
        stage.db.execute("ALTER TABLE items CLUSTER ON items_amount_idx")
    cut_off(stage, 4, order_by=given, jobs=1)
    (pieces, ordering), *_ = stage.db.fetchall("SELECT blocks, ordering FROM pglean.job")
    assert pieces == len(ordering["ranges"]["bounds"]) + 2 > 20
    assert ordering["text"] == (given or "amount")
    assert len(stage.db.fetchall("SELECT FROM pglean.chunk")) == 3
    meddle(stage)
    more: list[str] = []
    with pausepoint.intercept(CHUNK, lambda: more.append(CHUNK)), pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        assert isinstance(database.resume(run.id), Result)
    assert len(more) == pieces - 3
    assert stage.db.scalar("SELECT ordering FROM pglean.job") == ordering
    stage.check()


@pytest.mark.usefixtures("by_ranges")
def test_ranges_of_several_workers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "_TRIAL_S", 0.0)
    monkeypatch.setattr(copy, "_PAYS", 0.0)
    cut_off(stage, 9, order_by="amount, id", jobs=4)
    meddle(stage)
    stage.settle("resume")
    stage.check()


@pytest.mark.parametrize("point", [CHUNK, "copy: in a chunk", "phase: indexing"])
def test_one_statement(stage: Stage, point: str) -> None:
    """Killed before it is committed it is done again, else not; the order is that of then."""
    with stopped(stage, point, options=["-o", "amount % 7, id DESC"]) as client:
        client.kill()
    stage.deserted()
    (ordering,) = stage.db.fetchall("SELECT ordering FROM pglean.job")[0]
    assert (ordering["text"], ordering["ranges"]) == ("amount % 7, id DESC", None)
    stage.db.execute("ALTER TABLE items CLUSTER ON items_code_key")
    copied = stage.db.scalar("SELECT count(*) FROM pglean.chunk")
    assert copied == (1 if point == "phase: indexing" else 0)
    with pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        assert isinstance(database.resume(run.id), Result)
    if point != "phase: indexing":
        # There it was written to.
        assert out_of_place(stage.db, "items", "amount % 7, id DESC") == 0
    stage.check()


@pytest.mark.usefixtures("by_ranges")
def test_pause_between_ranges(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    standing, go_on = threading.Event(), threading.Event()
    noted: list[str | None] = []
    watch = jobs.command

    def command(conn: Connection, job_id: int) -> str | None:
        noted.append(watch(conn, job_id))
        return noted[-1]

    monkeypatch.setattr(jobs, "command", command)

    def stand() -> None:
        standing.set()
        assert go_on.wait(30)

    outcome = Background(lambda: repack(stage, Fault(CHUNK, stand, 3), order_by="amount", jobs=1))
    assert standing.wait(30)
    (run,) = stage.status()
    asking = Background(lambda: pause(stage, run.id))
    # The watch takes a look at a time: at the next one, what came of the last is in force.
    until(lambda: noted.count("pause") > 1, "the pause is noted")
    go_on.set()
    asking.result()
    assert isinstance(outcome.result(), Paused)
    assert 3 <= stage.db.scalar("SELECT count(*) FROM pglean.chunk") < stage.db.scalar("SELECT blocks FROM pglean.job")
    stage.settle("resume")
    stage.check()


def pause(stage: Stage, job: int) -> None:
    with pglean.connect(stage.db.conninfo) as database:
        database.pause(job, wait_s=30)


def test_who_waits_for_the_table_goes_first(stage: Stage) -> None:
    """The sort, which would take a minute, is ended, and done again."""
    stage.db.execute("CREATE TABLE slow AS SELECT 60 AS seconds")
    given = "(SELECT pg_catalog.count(pg_catalog.pg_sleep(seconds)) FROM public.slow), id DESC"
    outcome = Background(lambda: repack(stage, order_by=given))
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    until(lambda: stage.db.scalar(sleeping) == 1, "it sorts")
    stage.db.execute("UPDATE slow SET seconds = 0")
    stage.db.execute("BEGIN; SET LOCAL lock_timeout = '10s'; LOCK TABLE items IN ACCESS EXCLUSIVE MODE; COMMIT")
    assert isinstance(outcome.result(), Result), outcome.result()
    stage.check()


def test_sort_that_was_ended_leaves_no_dead_rows(stage: Stage) -> None:
    """They would be as much as the table: what was filled is given back before it is tried again."""
    more = "SELECT 100000 + g, 'more ' || g, 0, md5(g::text) FROM generate_series(1, 20000) g"
    stage.db.execute(f"INSERT INTO items {more}")
    stage.db.execute('INSERT INTO "model of items" SELECT * FROM items WHERE id > 100000')

    def terminate() -> None:
        for pid in stage.sessions():
            stage.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    for _ in range(2):
        assert isinstance(repack(stage, Fault("copy: in a chunk", terminate), order_by="note"), ConnectionLost)
    with pglean.connect(stage.db.conninfo) as database:
        first = database.repack("items", order_by="note")
        again = database.repack("items", order_by="note")
    assert first.bytes_after <= 1.05 * again.bytes_after
    stage.check()


def test_dry_run_knows_of_the_run_that_is_kept(stage: Stage) -> None:
    cut_off(stage, 1, order_by="amount", jobs=1)
    with pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        plan = database.plan("items", order_by="amount")
        assert plan.steps[0] == f"go on with run {run.id}, which had come to copying, from copying on"
        with pytest.raises(Refused, match="was begun with other options"):
            database.plan("items")
        # What cannot be gone on with is no reason not to begin anew.
        stage.db.execute(
            'ALTER TABLE items ALTER amount TYPE bigint; ALTER TABLE "model of items" ALTER amount TYPE bigint'
        )
        assert database.plan("items").steps[0].startswith("record the keys")
        database.repack("items")
    stage.check()


def test_names_with_an_ellipsis(stage: Stage) -> None:
    """What the program writes for people is written plainly where a database might not know it; names never are."""
    for table in ("items", '"model of items"'):
        stage.db.execute(f'ALTER TABLE {table} RENAME amount TO "a…b"')
    cut_off(stage, 1, order_by='"a…b" DESC', jobs=1)
    with pglean.connect(stage.db.conninfo) as database:
        (run,) = database.status()
        result = database.resume(run.id)
    assert isinstance(result, Result)
    assert out_of_place(stage.db, "items", '"a…b" DESC') == 0
    for table in ("items", '"model of items"'):
        stage.db.execute(f'ALTER TABLE {table} RENAME "a…b" TO amount')
    stage.check()
