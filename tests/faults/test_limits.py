"""Where something comes to its limits in the middle of a run: time, room, or the server itself.

Short timeouts of the role and the database, deadlocks, a full disk, a standby that is promoted, a crash or a cut
connection at every boundary between two phases.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import pglean
from pglean import pausepoint
from pglean.embedded import EmbeddedServer
from pglean.errors import ConnectionLost, DiskFull, Paused, PgleanError
from pglean.result import Result
from tests.servers import Database, create_database
from tests.support import oracle
from tests.support.fault import WRITING, Fault, repack
from tests.support.play import Background, Play, at
from tests.support.points import COMMITTED, POINTS, SAFE
from tests.support.proxy import Proxy
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


@pytest.fixture
def play(db: Database) -> Play:
    """A table ``t`` with its model ``m``."""
    return Play(db)


# ---- time

#: Each as low as it can be with a session getting in at all on a machine that is busy.
TIMEOUTS = {
    "lock_timeout": "1ms",
    "statement_timeout": "100ms",
    "idle_in_transaction_session_timeout": "100ms",
    "transaction_timeout": "100ms",
    "idle_session_timeout": "100ms",
}


@pytest.mark.parametrize("whose", ["role", "database"])
@pytest.mark.parametrize("setting", TIMEOUTS)
def test_timeouts_of_others_do_not_end_a_run(server: EmbeddedServer, setting: str, whose: str) -> None:
    """25: a site that limits everybody's statements does not mean us."""
    if setting == "transaction_timeout" and server.version < 170000:
        pytest.skip("this server has no transaction_timeout")
    with create_database(server) as db:
        stage = Stage(db)
        subject = sql.SQL("DATABASE {}" if whose == "database" else "ROLE postgres IN DATABASE {}").format(
            sql.Identifier(db.name)
        )
        # Opened before it is limited.
        writer = db.connect()
        db.execute(sql.SQL("ALTER {} SET {} = {}").format(subject, sql.Identifier(setting), TIMEOUTS[setting]))

        def dawdle() -> None:
            writer.execute("SELECT pg_sleep(0.25)")

        try:
            with contextlib.ExitStack() as stack:
                for point in (
                    "copy: in a chunk",
                    "phase: catching up",
                    "refresh: before the commit",
                    "swap: before the exchange",
                ):
                    stack.enter_context(oracle.once(point, dawdle))
                # Somebody keeps the table for longer than their lock_timeout.
                stack.enter_context(oracle.once("phase: copying", lambda: _lock_for_a_while(db)))
                stack.enter_context(pglean.connect(db.conninfo)).repack(stage.name, verify="full")
        finally:
            writer.execute(sql.SQL("ALTER {} RESET ALL").format(subject))
        assert stage.repacked
        # The session of the test had its limits, too.
        db.close()
        stage.check()


def _lock_for_a_while(db: Database) -> None:
    """By a session that nothing limits; returns when it has the lock."""
    conn = db.connect(
        options="-c statement_timeout=0 -c transaction_timeout=0"
        if db.server.version >= 170000
        else "-c statement_timeout=0"
    )
    Background(lambda: conn.execute("DO 'BEGIN LOCK TABLE items; PERFORM pg_sleep(0.25); END'"))
    held = "SELECT FROM pg_locks WHERE pid = %s AND relation = 'items'::regclass AND granted"
    with db.connect(options="-c statement_timeout=0 -c idle_session_timeout=0") as other:
        oracle.until(
            lambda: bool(other.execute(held, (conn.info.backend_pid,)).fetchall()),
            "the table is locked",
        )


# ---- deadlocks


class Crossing:
    """A session that has a lock, and asks for another in the opposite order to the run; then it writes and commits."""

    def __init__(self, play: Play, first: str, then: str) -> None:
        self._play, self._first, self._then = play, first, then
        self.conn = play.db.connect(autocommit=False, application_name="crossing")
        # The run finds the deadlock, not this session.
        self.conn.execute("SET deadlock_timeout = '60s'")
        self.conn.commit()
        self._asking: Background | None = None

    def hold(self) -> None:
        """Take the first lock."""
        self.conn.execute(self._first)

    def ask(self) -> None:
        """Ask for the second, until it is waited for."""
        self._asking = Background(self._go_on)
        waits = "SELECT FROM pg_locks WHERE pid = %s AND NOT granted"
        oracle.until(lambda: bool(self._play.db.fetchall(waits, (self.conn.info.backend_pid,))), "it waits")

    def _go_on(self) -> None:
        self.conn.execute(self._then)
        for name in ("t", "m"):
            self.conn.execute(f"UPDATE {name} SET v = 'crossed' WHERE id < 20")
        self.conn.commit()

    def check(self) -> None:
        """It has lost nothing."""
        assert self._asking is not None
        self._asking.result()
        assert self._play.db.scalar("SELECT count(*) FROM t WHERE v = 'crossed'") == 19


@pytest.mark.parametrize("patient", [False, True], ids=["short-lock-timeout", "detected-by-the-server"])
def test_30_deadlock_at_the_lock_upgrade(play: Play, patient: bool) -> None:
    """30: a session has read the table and is about to write, the run keeps writers away and is about to swap."""
    crossing = Crossing(play, "LOCK TABLE t IN ACCESS SHARE MODE", "LOCK TABLE t IN ROW EXCLUSIVE MODE")
    times = {"lock_timeout_ms": 10_000, "max_lock_ms": 20_000} if patient else {}
    with at("swap: before the lock", crossing.hold), at(SAFE, crossing.ask):
        play.repack(mvcc_safe=True, **times)
    crossing.check()
    play.check()


@pytest.mark.parametrize("point", ["copy: before a chunk", "refresh: before a round"])
def test_30_deadlock_on_the_copy(play: Play, point: str) -> None:
    """30: somebody's REINDEX DATABASE has got at the copy, and goes on to the table while the run waits for him."""
    waiting = "SELECT FROM pg_locks WHERE relation = 'pglean.shadow_1'::regclass AND NOT granted"
    crossing = Crossing(play, "LOCK TABLE pglean.shadow_1 IN SHARE MODE", "LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
    asking: list[Background] = []

    def cross() -> None:
        oracle.until(lambda: bool(watcher.execute(waiting).fetchall()), "the run waits for the copy")
        crossing.ask()

    def hold() -> None:
        play.both("UPDATE {t} SET v = 'x', id = id + 5000 WHERE id BETWEEN 100 AND 150")
        crossing.hold()
        asking.append(Background(cross))

    with play.db.connect() as watcher:
        with at(point, hold):
            play.repack(lock_timeout_ms=10_000, jobs=1)
        asking[0].result()
    crossing.check()
    play.check()


# ---- room


@pytest.fixture
def small(server: EmbeddedServer) -> Iterator[tuple[Database, Path]]:
    """A database with a tablespace `small` of a few megabytes, and where that is."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    directory = Path(tempfile.mkdtemp(prefix="pglean-small-"))
    mounted = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        directory.rmdir()
        pytest.skip("file systems cannot be mounted here")
    try:
        owner = server.datadir.stat()
        os.chown(directory, owner.st_uid, owner.st_gid)
        directory.chmod(0o700)
        with psycopg.connect(server.conninfo(), autocommit=True) as session:
            session.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(sql.Literal(str(directory))))
            try:
                with create_database(server) as db:
                    yield db, directory
            finally:
                session.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
        directory.rmdir()


@pytest.mark.parametrize("what", ["table", "index"])
@pytest.mark.parametrize("then", ["resume", "repack", "abort"])
def test_27_disk_full(small: tuple[Database, Path], what: str, then: str) -> None:
    """27: in the copy and in the build of an index. The run is kept, and goes on once there is room."""
    db, directory = small
    stage = Stage(db)
    moved = {"table": ("TABLE", "items"), "index": ("INDEX", "items_amount_idx")}[what]
    db.execute("ALTER {} {} SET TABLESPACE small".format(*moved))
    file = stage.file
    ballast = directory / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as target:
            while True:
                target.write(bytes(8192))

    point = {"table": "copy: before a chunk", "index": "phase: indexing"}[what]
    outcome = repack(stage, Fault(point, fill), min_free_bytes=0)
    assert isinstance(outcome, DiskFull), outcome
    assert outcome.exit_status == 1
    assert outcome.retryable
    assert "No space left on device" in outcome.message
    assert "Make room on the server's disk" in str(outcome)
    (run,) = stage.status()
    assert f"{stage.typed(f'resume {run.id}')} continues" in str(outcome)
    assert (run.state, run.phase) == ("paused", {"table": "copying", "index": "indexing"}[what])
    # Still full: once more in vain, and nothing lost.
    with pglean.connect(db.conninfo) as database, pytest.raises(DiskFull):
        database.resume(run.id)
    ballast.unlink()
    # Not before: from 19 on reading extends the visibility map, for which there was no room either.
    stage.compare()
    stage.write()
    with pglean.connect(db.conninfo) as database:
        match then:
            case "resume":
                assert isinstance(database.resume(run.id), Result)
            case "repack":
                result = database.repack(stage.name, min_free_bytes=0)
                assert result.job == run.id
            case _:
                assert database.abort(run.id) == ("undone", [])
    assert (stage.file != file) == (then != "abort")
    stage.check()


@pytest.mark.parametrize("then", ["pause", "abort", "room"])
def test_27_throttle_before_the_disk_is_full(stage: Stage, then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """27: where the disk can be seen from here, work waits before it is full; waiting, it does what it is asked for."""
    told: list[str] = []
    running = Background(
        lambda: repack(stage, min_free_bytes=1 << 50, on_progress=lambda progress: told.append(progress.waiting_for))
    )
    oracle.until(lambda: any("free on tablespace pg_default" in text for text in told), "it waits for room")
    (run,) = stage.status()
    assert run.phase == "copying"
    stage.write()
    with pglean.connect(stage.db.conninfo) as database:
        match then:
            case "pause":
                database.pause(run.id, wait_s=20)
                assert isinstance(running.result(), Paused)
                assert database.repack(stage.name, min_free_bytes=0).job == run.id
            case "abort":
                assert database.abort(run.id, wait_s=20) == ("undone", [])
                assert isinstance(running.result(), PgleanError)
            case _:
                monkeypatch.setattr("pglean.disk._free_bytes", lambda _: 1 << 51)
                assert isinstance(running.result(), Result)
    stage.check()


# ---- a standby is promoted


@pytest.mark.parametrize("then", ["resume", "abort"])
@pytest.mark.parametrize("point", ["copy: in a chunk", "index: after a build", "swap: before the lock", COMMITTED])
def test_standby_promoted_in_the_middle(stage: Stage, point: str, then: str) -> None:
    """The primary's run goes on; on the new primary it was interrupted, and can be gone on with or aborted as well."""
    standby = stage.db.server.standby()
    copy = Database(standby, stage.db.name)
    rows: list[str] = []

    def promote() -> None:
        if point != COMMITTED:
            stage.write()
        # Ours commits asynchronously: a later commit brings the WAL along.
        stage.db.scalar("SELECT pg_logical_emit_message(true, 'test', '')")
        position = stage.db.scalar("SELECT pg_current_wal_insert_lsn()")
        oracle.until(
            lambda: bool(copy.scalar("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,))),
            "the standby has replayed the WAL",
        )
        rows.extend(oracle.rows(stage.db, stage.name))
        copy.scalar("SELECT pg_promote()")

    try:
        standby.start()
        assert isinstance(repack(stage, Fault(point, promote)), Result)
        stage.check()
        # What the stage knows of its table holds there, too.
        stage.db, primary = copy, stage.db
        assert oracle.rows(copy, stage.name) == rows
        (run,) = stage.status()
        assert run.state == "interrupted"
        file = stage.file
        stage.settle(then)
        # What was being committed when the standby was promoted is a file of before.
        swapped = point == COMMITTED
        assert (stage.file != file) == (then == "resume" and not swapped)
        assert oracle.rows(copy, stage.name) == rows
        stage.check()
        with pglean.connect(copy.conninfo) as database:
            database.repack(stage.name, verify="full")
        stage.check()
        stage.db = primary
    finally:
        copy.close()
        standby.close(mode="immediate")


# ---- a crash, and a connection that is cut, at every boundary


#: Where one phase has ended and the next begins; and the two moments around the commits that matter.
BOUNDARIES = [point for point in POINTS if point.startswith("phase: ")] + ["capture: before the commit", COMMITTED]
_SAMPLE = ("phase: indexing", "phase: swapping", COMMITTED)
_BOUNDARIES = [
    pytest.param(point, id=point, marks=() if point in _SAMPLE else pytest.mark.slow) for point in BOUNDARIES
]


#: Before them nothing is worth being kept; after them the table is repacked, and only to be tidied up after.
_EARLY = ("phase: capturing", "capture: prepared", "capture: before the commit")
_LATE = (COMMITTED, "phase: cleaning", "analyze")


def crash(stage: Stage) -> None:
    """Stop the server as a crash does, and start it again.

    What the run has committed is on the disk then; where its last moments are lost it goes on from an earlier one, or
    has never been (`test_crash`, `test_soak`).
    """
    stage.db.scalar("SELECT pg_logical_emit_message(true, 'test', '')")
    stage.db.close()
    stage.db.server.stop("immediate")
    stage.db.server.start()


def settled(stage: Stage, outcome: Result | PgleanError, then: str, point: str) -> None:
    """After a lost connection: gone on with, the table is repacked and equals its model; aborted, it is as it was."""
    assert isinstance(outcome, ConnectionLost), outcome
    swapped = stage.repacked
    left = stage.status()
    stage.write()
    stage.settle(then)
    if then == "abort" or not left:
        assert stage.repacked == swapped
    assert bool(left) == (point not in (*_EARLY, *_LATE)), left
    if left:
        assert stage.repacked == (then == "resume")
    stage.check()


@pytest.mark.parametrize("then", ["resume", "abort"])
@pytest.mark.parametrize("point", _BOUNDARIES)
def test_crash_at_a_boundary(stage: Stage, point: str, then: str) -> None:
    settled(stage, repack(stage, Fault(point, lambda: crash(stage))), then, point)


@pytest.mark.slow
@pytest.mark.parametrize("then", ["resume", "abort"])
@pytest.mark.parametrize("point", [point for point in POINTS if point not in BOUNDARIES])
def test_crash_at_every_other_point(stage: Stage, point: str, then: str) -> None:
    settled(stage, repack(stage, Fault(point, lambda: crash(stage))), then, point)


_CUTS = [
    pytest.param(point, id=point, marks=() if point in (*_SAMPLE, "copy: in a chunk") else pytest.mark.slow)
    for point in POINTS
]


@pytest.mark.parametrize("then", ["resume", "abort"])
@pytest.mark.parametrize("point", _CUTS)
def test_connections_cut(stage: Stage, point: str, then: str) -> None:
    """Both sides are told. What the network swallows silently is noticed by keepalives, within two minutes."""
    with Proxy(stage.db.server.port) as proxy:
        there = make_conninfo(stage.db.server.conninfo(stage.db.name, tcp=True), port=proxy.port)
        settled(stage, _repack_through(stage, there, Fault(point, proxy.cut)), then, point)


def _repack_through(stage: Stage, conninfo: str, fault: Fault) -> Result | PgleanError:
    """As `fault.repack`, by another way to the server."""

    def write_and_strike() -> None:
        stage.write()
        fault()

    with contextlib.ExitStack() as stack:
        if fault.point == WRITING:
            stack.enter_context(oracle.once(WRITING, write_and_strike))
        else:
            stack.enter_context(pausepoint.intercept(WRITING, Fault(WRITING, stage.write)))
            stack.enter_context(pausepoint.intercept(fault.point, fault))
        try:
            return stack.enter_context(pglean.connect(conninfo)).repack(stage.name)
        except PgleanError as error:
            return error
