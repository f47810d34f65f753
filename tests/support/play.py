"""A table, its model, and what other sessions do to both while a run stands still at a named point."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean import pausepoint
from pglean.errors import PgleanError
from pglean.progress import Progress
from pglean.result import Result
from tests.servers import Database
from tests.support import oracle

_DEFINITION = """
    (id int PRIMARY KEY, u int NOT NULL UNIQUE, grp int NOT NULL DEFAULT 0, v text, big text,
     EXCLUDE USING btree ((u + 1) WITH =))
"""


class Play:
    """Table ``t`` and model ``m``, of the same definition, with the same rows 1 to 1,500 and many dead ones.

    Row i has u = i, grp = i / 100. Nobody but `both` writes to them, unless a test does.
    """

    def __init__(self, db: Database) -> None:
        self.db = db
        for name in ("t", "m"):
            db.execute(
                f"CREATE TABLE {name} {_DEFINITION};"
                f"ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL;"
                f"CREATE INDEX ON {name} (lower(v)) WHERE grp < 7;"
                f"INSERT INTO {name} SELECT g, g, g / 100, 'v' || g,"
                f" CASE WHEN g % 50 = 0 THEN repeat(md5(g::text), 200) END FROM generate_series(1, 1500) AS g;"
                f"UPDATE {name} SET v = v || '!'"
            )
        self._writer = db.connect()

    def both(self, script: str, **parts: Any) -> None:
        """Run a script on the table and on the model, in one transaction unless it ends that itself.

        ``{t}`` stands for the table, ``{u}`` etc. for what is passed.
        """
        self.each(script.format(t="t", **parts), script.format(t="m", **parts))

    def each(self, on_table: str, on_model: str) -> None:
        """Run one script that writes to the table, another that writes to the model, in one transaction."""
        with self._writer.transaction():
            self._writer.execute(sql.SQL(on_table))
            self._writer.execute(sql.SQL(on_model))

    def repack(self, **options: Any) -> Result:
        """Repack the table in this thread, with full verification."""
        with pglean.connect(self.db.conninfo) as database:
            return database.repack("t", **{"verify": "full", "jobs": 2, "wait_timeout_s": 20, **options})

    def check(self) -> None:
        """Table and model are the same, every index has every row, nothing of a run is left."""
        assert oracle.rows(self.db, "t") == oracle.rows(self.db, "m")
        self.db.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
        assert self.db.fetchall("SELECT * FROM verify_heapam('t', check_toast => true)") == []
        self.db.execute(
            "SELECT bt_index_check(indexrelid, true) FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
            " WHERE indrelid = 't'::regclass AND relam = 403"
        )
        oracle.assert_nothing_left(self.db)


@contextlib.contextmanager
def at(point: str, action: Callable[[], object], *, nth: int = 1) -> Iterator[None]:
    """Run the action when a run comes to the point for the nth time; it must come there."""
    lock = threading.Lock()
    count = 0
    failures: list[BaseException] = []

    def act() -> None:
        nonlocal count
        with lock:
            count += 1
            if count != nth:
                return
        try:
            action()
        except BaseException as error:
            failures.append(error)
            raise

    with pausepoint.intercept(point, act):
        try:
            yield
        finally:
            # What the action met is the cause, and says more than what the run made of it.
            for failure in failures:
                if isinstance(failure, AssertionError | psycopg.Error):
                    raise failure
    assert count >= nth, f"the run came to the point {point!r} {count} times"


class Holder:
    """A session that holds a lock, and lets go as soon as the run tells that it waits for it."""

    def __init__(self, db: Database, *statements: str) -> None:
        self.conn = db.connect(autocommit=False)
        self.pid = self.conn.info.backend_pid
        self._statements = statements
        #: What the run said while it waited.
        self.told: list[str] = []

    def hold(self) -> None:
        """Take the lock."""
        for statement in self._statements:
            self.conn.execute(sql.SQL(statement))

    def on_progress(self, progress: Progress) -> None:
        """Let go when the run waits."""
        if progress.waiting_for and not self.conn.closed:
            self.told.append(progress.waiting_for)
            self.conn.commit()


class Background:
    """Something done in a thread of its own, whose outcome is asked for later."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(action,), daemon=True)
        self._thread.start()

    def _run(self, action: Callable[[], Any]) -> None:
        try:
            self._value = action()
        except BaseException as error:
            self._error = error

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def result(self, timeout_s: float = 60) -> Any:
        """What it returned; raises what it raised."""
        self._thread.join(timeout_s)
        assert self.done, f"not done within {timeout_s:g} s"
        if self._error is not None:
            raise self._error
        return self._value


def fails(play: Play, error: type[PgleanError], **options: Any) -> PgleanError:
    """The run must end with this error."""
    with pytest.raises(error) as caught:
        play.repack(**options)
    return caught.value


@contextlib.contextmanager
def standing_still(points: tuple[str, ...], times: int, wait: Callable[[], None]) -> Iterator[None]:
    """Wait at each of the points, the first so many times that a run comes there."""
    counts = dict.fromkeys(points, times)
    lock = threading.Lock()

    def pause(point: str) -> None:
        with lock:
            counts[point] -= 1
            if counts[point] < 0:
                return
        wait()

    with contextlib.ExitStack() as stack:
        for point in points:
            stack.enter_context(pausepoint.intercept(point, partial(pause, point)))
        yield
