"""Runs with faults, drawn at random: whatever happens to a run, in whatever order, no row is lost and nothing is left.

A seed decides on the table, on the options of the runs, and on a sequence of faults, each at some point of a run:
sessions are terminated, the client is killed, the server crashes, somebody locks the table, makes and drops indexes,
switches triggers off for a moment, pauses the run, aborts it. After each of them the run is gone on with, repacked
anew, or aborted, until one goes through. All the time writers write, and their model says what the table must hold.

A seed does not decide when threads run: a failure may take several attempts to come back. The story is printed.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import psycopg
import pytest

import pglean
from pglean import pausepoint
from pglean.embedded import EmbeddedServer
from pglean.errors import Interrupted, PgleanError, Refused, VerificationFailed
from pglean.options import Options
from pglean.result import Result
from pglean.rewrite import cleanup, copy, ending, refresh, watch
from pglean.rewrite import job as jobs
from pglean.rewrite.status import Status
from tests.servers import Database, create_database
from tests.support import client as clients
from tests.support import oracle
from tests.support.client import Client
from tests.support.fault import Fault
from tests.support.model import Spec
from tests.support.play import Background
from tests.support.points import POINTS, SAFE, UNDO
from tests.support.writers import Writers

pytestmark = pytest.mark.newest

#: Seeds that have failed once.
REGRESSIONS: Final[tuple[int, ...]] = ()
_ORDINARY: Final = range(6)
_SOAK: Final = range(6, 206)

SEEDS: Final = [
    *(pytest.param(seed, id=f"seed-{seed}") for seed in dict.fromkeys((*REGRESSIONS, *_ORDINARY))),
    *(pytest.param(seed, id=f"seed-{seed}", marks=pytest.mark.slow) for seed in _SOAK if seed not in REGRESSIONS),
]

#: How long an attempt may take before it counts as hanging.
_HANGS_S: Final = 120.0
#: What a session of somebody else waits for a lock while a run stands still, perhaps with the table locked.
_OTHERS_WAIT: Final = "SET lock_timeout = '300ms'"


class Mishap(RuntimeError):
    """What nobody expects."""


@dataclass(frozen=True, slots=True)
class Blow:
    """A fault of the sequence: what happens when a run comes to the point for the nth time, and what is done next."""

    kind: str
    point: str
    nth: int
    then: str


@dataclass(frozen=True, slots=True)
class Script:
    """All that a seed decides."""

    spec: Spec
    options: dict[str, Any]
    #: The first chunk's blocks, and the records from which on a refresh is divided.
    first_blocks: int
    shared_from: int
    blows: tuple[Blow, ...]

    @classmethod
    def draw(cls, seed: int) -> Script:
        """What the seed stands for."""
        rng = random.Random(f"soak {seed}")
        spec = Spec(
            key=rng.choice(("int", "int", "composite", "deferrable")),
            numbers=rng.choice((100, 400)),
            bystanders=rng.choice((0, 1000, 3000)),
            owner=rng.choice(("", "keeper")),
            meddling=rng.random() < 0.3,
        )
        options = {
            "jobs": rng.choice((1, 2, 3, 4)),
            "hold": rng.random() < 0.2,
            "mvcc_safe": rng.random() < 0.25,
            "keep": rng.random() < 0.5,
            "verify": rng.choice(("none", "count", "full", "full", "full")),
            "chunk_ms": rng.choice((10, 30, 500)),
            "analyze": rng.random() < 0.7,
            "lock_timeout_ms": 100,
            "wait_timeout_s": 1.0,
            "kill_backend": rng.random() < 0.1,
        }
        points = [*POINTS, *([SAFE] if options["mvcc_safe"] else [])]
        blows = tuple(
            Blow(
                kind=rng.choice(list(_KINDS)),
                point=rng.choice(points),
                nth=rng.choice((1, 1, 1, 2, 3)),
                then=rng.choice(("resume", "resume", "resume", "repack", "abort", "cleanup")),
            )
            for _ in range(rng.randint(1, 4))
        )
        return cls(spec, options, rng.choice((8, 16, 64)), rng.choice((0, 30, 2000)), blows)


@dataclass(slots=True)
class Soak:
    """A script, and what has become of it so far."""

    db: Database
    script: Script
    writers: Writers
    rng: random.Random
    #: What happened, for whoever has to find out why.
    story: list[str] = field(default_factory=list)
    #: Set when a watch has seen what its run is asked for.
    noted: threading.Event = field(default_factory=threading.Event)
    #: How often the table was repacked.
    repacked: int = 0
    _holders: list[psycopg.Connection[Any]] = field(default_factory=list)
    _others: list[Background] = field(default_factory=list)
    _indexes: int = 0

    @property
    def table(self) -> str:
        return self.script.spec.table

    # ---- attempts

    def play(self) -> None:
        """Strike all blows, then go on until the table is repacked and no run is left."""
        then = "repack"
        for blow in self.script.blows:
            self.story.append(f"{then}, {blow}")
            if blow.kind == "kill":
                self._kill(blow)
            else:
                self._attempt(then, blow)
            self._recover()
            then = blow.then
        self.story.append(f"{then}, undisturbed")
        self._attempt(then, None)
        self._recover()
        if self.status() or not self.repacked:
            # With --mvcc-safe there may be no moment to swap as long as somebody writes.
            self.writers.stop()
            self.story.append("repack, alone")
            self._attempt("repack", None)
            assert self.status() == []
            assert self.repacked
        self.writers.stop()

    def status(self) -> list[Status]:
        """The runs that are not over."""
        with pglean.connect(self.db.conninfo) as database:
            return database.status()

    def _attempt(self, how: str, blow: Blow | None) -> None:
        """One run of this process, with what happens to it."""
        file = self._file()
        with self._struck(blow), pglean.connect(self.db.conninfo) as database:
            work = Background(partial(self._run, database, how))
            try:
                outcome = work.result(_HANGS_S)
            except PgleanError as error:
                outcome = error
            except Mishap as error:
                # Raised while the run was being undone: nobody is left who could tell it better.
                assert blow is not None
                assert blow.kind == "vanish"
                outcome = error
        self.story.append(f"  {type(outcome).__name__}: {outcome if isinstance(outcome, PgleanError) else ''}")
        if isinstance(outcome, PgleanError):
            self._tolerate(outcome)
        self.repacked += self._file() != file
        assert not isinstance(outcome, Result) or self._file() != file

    def _run(self, database: pglean.Database, how: str) -> Any:
        left = self.status()
        if how != "repack" and left:
            (run,) = left
            if how == "resume":
                return database.resume(run.id)
            if how == "abort":
                return database.abort(run.id)
            return database.cleanup(Options(wait_timeout_s=1.0), paused=True)
        return database.repack(self.table, **self.script.options)

    def _tolerate(self, error: PgleanError) -> None:
        """Most blows end a run; none of them may make it wrong."""
        assert not isinstance(error, VerificationFailed), error
        if isinstance(error, Refused):
            # An index that somebody did not get to build; it is dropped in `_recover`.
            assert [finding.code for finding in error.findings] == ["invalid-index"], error
        if type(error) is PgleanError:
            assert "Mishap" in error.message, error
        assert "bug of pglean" not in str(error), error

    def _recover(self) -> None:
        """Whoever was in the way lets go; the application has noticed nothing, and the runs are well accounted for."""
        for holder in self._holders:
            holder.close()
        self._holders.clear()
        for other in self._others:
            with contextlib.suppress(psycopg.Error, PgleanError):
                other.result()
        self._others.clear()
        for (name,) in self.db.fetchall(
            "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = %s::regclass AND NOT indisvalid",
            (self.table,),
        ):
            self.db.execute(f"DROP INDEX {name}")
        ours = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pglean %'"
        oracle.until(lambda: not self.db.fetchall(ours), "the sessions of the run have ended")
        left = self.status()
        self.story.append(f"  left: {[(run.id, run.phase, run.state, run.error) for run in left]}")
        assert len(left) <= 1
        assert all(run.state in ("paused", "interrupted", "remains") for run in left), left
        self.writers.wait_for(3)

    def _file(self) -> int:
        return int(self.db.scalar("SELECT pg_relation_filenode(%s::regclass)", (self.table,)))

    def _kill(self, blow: Blow) -> None:
        """A run in a process of its own, which is killed at the point; it goes on with the one that is there."""
        file = self._file()
        options = self.script.options
        arguments = ["repack", "-j", str(options["jobs"]), "-t", self.table, "-T", "1", "--verify", options["verify"]]
        with Client([*arguments, self.db.conninfo], {blow.point}) as client:
            for number in range(blow.nth):
                if client.line() is None:
                    break
                if number < blow.nth - 1:
                    client.step()
            client.kill()
        self.story.append(f"  exit status {client.wait()}: {client.stderr}")
        assert client.wait() in (0, 3, 4, 5, 6, -9)
        self.repacked += self._file() != file

    # ---- what happens to them

    @contextlib.contextmanager
    def _struck(self, blow: Blow | None) -> Iterator[None]:
        """Arm the blow; a run that holds is told to swap as soon as it is ready."""
        actions: dict[str, list[Callable[[], None]]] = {}
        if self.script.options["hold"]:
            actions["phase: ready"] = [partial(self._ask, "swap")]
        if blow is not None:
            kind = partial(_KINDS[blow.kind], self)
            actions.setdefault(blow.point, []).append(Fault(blow.point, kind, blow.nth))
            if blow.kind == "vanish":
                actions[UNDO] = [self._fail]
        self.noted.clear()
        with contextlib.ExitStack() as stack:
            for point, todo in actions.items():
                stack.enter_context(pausepoint.intercept(point, partial(_all, todo)))
            yield

    def _ask(self, command: str) -> None:
        self.db.execute("UPDATE pglean.job SET command = %s WHERE state = 'running'", (command,))

    def _ask_and_wait(self, command: str) -> None:
        """Until it was noted, which it is not before the triggers are there, nor after the swap."""
        self._ask(command)
        self.noted.wait(0.5)

    def _fail(self) -> None:
        raise Mishap

    def _interrupt(self) -> None:
        raise Interrupted("enough")

    def _sessions(self) -> list[int]:
        return [
            pid
            for (pid,) in self.db.fetchall(
                "SELECT pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'pglean %' ORDER BY backend_start, pid"
            )
        ]

    def _terminate(self, *, everybody: bool) -> None:
        sessions = self._sessions()
        for pid in sessions if everybody else self.rng.sample(sessions, 1):
            self.db.scalar("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    def _cancel(self) -> None:
        """What an administrator does who wonders what this statement is."""
        for pid in self._sessions():
            self.db.scalar("SELECT pg_cancel_backend(%s)", (pid,))

    def _crash(self, *, flushed: bool) -> None:
        if flushed:
            self.db.scalar("SELECT pg_logical_emit_message(true, 'test', '')")
        self.db.close()
        self.db.server.stop("immediate")
        self.db.server.start()

    def _hold(self, *statements: str) -> None:
        """Somebody has the table in use until the attempt is over."""
        holder = psycopg.connect(self.db.conninfo, application_name="holder")
        self._holders.append(holder)
        with contextlib.suppress(psycopg.errors.LockNotAvailable):
            for statement in (_OTHERS_WAIT, "COMMIT", *statements):
                holder.execute(statement)

    def _other(self, *statements: str) -> bool:
        """Somebody's DDL, each statement for itself; False where the table was locked."""
        with psycopg.connect(self.db.conninfo, autocommit=True, application_name="other") as conn:
            conn.execute(_OTHERS_WAIT)
            try:
                for statement in statements:
                    conn.execute(statement)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                self.story.append("  somebody did not get his lock")
                return False
        return True

    def _make_index(self, how: str = "") -> None:
        self._indexes += 1
        self._other(f"CREATE INDEX {how} extra_{self._indexes} ON {self.table} (n, u)")

    def _make_index_concurrently(self) -> None:
        """It waits for transactions of the run, which stands still: so not here."""
        self._others.append(Background(partial(self._make_index, "CONCURRENTLY")))

    def _drop_index(self) -> None:
        names = self.db.fetchall(
            "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
            " WHERE indrelid = %s::regclass AND NOT indisunique ORDER BY relname",
            (self.table,),
        )
        if names:
            self._other(f"DROP INDEX {self.rng.choice(names)[0]}")

    def _reindex(self) -> None:
        self._other(f"REINDEX TABLE {self.table}")

    def _switch_triggers(self) -> None:
        """As a script that loads data does. Where triggers of the table decide on its rows, nobody writes meanwhile."""
        off, on = (f"ALTER TABLE {self.table} {what} TRIGGER USER" for what in ("DISABLE", "ENABLE"))
        if self.script.spec.meddling:
            self._other(f"BEGIN; {off}; {on}; COMMIT")
        elif self._other(off):
            with contextlib.suppress(AssertionError):
                self.writers.wait_for(3, timeout_s=0.3)
            oracle.until(lambda: self._other(on), "the triggers are on again")

    def _vacuum(self) -> None:
        self._others.append(Background(partial(self._other, f"VACUUM (FREEZE) {self.table}")))

    def _grant(self) -> None:
        self._other(f"GRANT SELECT ON {self.table} TO PUBLIC", f"COMMENT ON TABLE {self.table} IS 'commented'")


def _all(actions: list[Callable[[], None]]) -> None:
    for action in actions:
        action()


_KINDS: Final[dict[str, Callable[[Soak], None]]] = {
    "error": Soak._fail,
    "vanish": Soak._fail,
    "interrupt": Soak._interrupt,
    "terminate one": partial(Soak._terminate, everybody=False),
    "terminate all": partial(Soak._terminate, everybody=True),
    "cancel": Soak._cancel,
    "kill": Soak._fail,
    "pause": lambda soak: soak._ask_and_wait("pause"),
    "abort": lambda soak: soak._ask_and_wait("abort"),
    "crash": partial(Soak._crash, flushed=True),
    "lossy crash": partial(Soak._crash, flushed=False),
    "reader": lambda soak: soak._hold(f"LOCK TABLE {soak.table} IN ACCESS SHARE MODE"),
    "writer": lambda soak: soak._hold(f"LOCK TABLE {soak.table} IN ROW EXCLUSIVE MODE"),
    "snapshot": lambda soak: soak._hold("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT 1"),
    "index made": Soak._make_index,
    "index made concurrently": Soak._make_index_concurrently,
    "index dropped": Soak._drop_index,
    "reindex": Soak._reindex,
    "triggers": Soak._switch_triggers,
    "vacuum": Soak._vacuum,
    "grant": Soak._grant,
}


@pytest.fixture
def soak(server: EmbeddedServer, seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Soak]:
    """The table of this seed, in a database of its own, with its writers at work."""
    script = Script.draw(seed)
    patches = {
        (copy, "_FIRST_BLOCKS"): script.first_blocks,
        (copy, "_MOST_BLOCKS"): 4 * script.first_blocks,
        (refresh, "_SHARED_FROM"): script.shared_from,
        (refresh, "_SHARE_RECORDS"): 40,
        (watch, "_INTERVAL_S"): 0.05,
        (ending, "_UNDO_WAIT_S"): 3.0,
        (cleanup, "_DROP_WAIT_S"): 1.0,
    }
    lines = []
    for (module, name), value in patches.items():
        monkeypatch.setattr(module, name, value)
        lines.append(f"import {module.__name__}; {module.__name__}.{name} = {value!r}\n")
    # The same for the client that is killed.
    monkeypatch.setattr(clients, "_DRIVER", "".join(lines) + clients._DRIVER)
    with create_database(server) as db:
        script.spec.create(db.connect())
        writers = Writers(db.conninfo, script.spec, seed, 3, reconnect=True, pause_s=0.02)
        soak = Soak(db, script, writers, random.Random(seed))

        def command(conn: Any, job_id: int, look: Callable[..., str | None] = jobs.command) -> str | None:
            asked = look(conn, job_id)
            if asked in ("pause", "abort"):
                soak.noted.set()
            return asked

        monkeypatch.setattr(jobs, "command", command)
        with writers:
            yield soak


@pytest.mark.parametrize("seed", SEEDS)
def test_faults_at_random(soak: Soak, seed: int) -> None:
    """No row is lost, and nothing is left."""
    soak.writers.wait_for(5)
    try:
        soak.play()
        soak.writers.compare()
        oracle.assert_sound(soak.db, soak.table)
        oracle.assert_nothing_left(soak.db)
    finally:
        print(f"seed {seed}: {soak.script}", *soak.story, sep="\n")
