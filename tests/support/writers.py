"""Random writers on one table, and a model that says what the table must hold.

Every statement is run twice in its transaction: on the table, and on a model table of the same definition that nobody
else touches. Whatever becomes of the transaction becomes of both, so that at the end both hold the same rows, or
somebody has lost one. The model is not kept by triggers: it would then depend on what it is to check.

So that the same statement does the same to both, a transaction first takes advisory locks on all the numbers that it
may use (as keys or as unique values), in their order. Writers so wait for one another, but hardly ever in a circle.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, LiteralString, Self

import psycopg
from psycopg import errors, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from tests.support.model import Connection, Spec, big


@dataclass(slots=True)
class _Hand:
    """One transaction of one writer: its session, its numbers, and what it may do with them."""

    conn: Connection
    spec: Spec
    rng: random.Random
    numbers: list[int]

    # ---- statements, each on both tables

    def both(self, text: LiteralString, params: Any = None, **parts: sql.Composable) -> int:
        """Run a statement on the table and on the model; returns its row count, which must be the same."""
        counts = []
        for name in (self.spec.table, self.spec.model):
            statement = sql.SQL(text).format(
                t=sql.Identifier(name), keys=_names(self.spec), key=_marks(self.spec), match=_match(self.spec), **parts
            )
            counts.append(self.conn.execute(statement, params).rowcount)
        assert counts[0] == counts[1], f"{text}: {counts[0]} rows in the table, {counts[1]} in the model"
        return counts[0]

    def key(self, number: int) -> tuple[Any, ...]:
        return self.spec.key_of(number, self.rng)

    def has(self, number: int) -> bool:
        return bool(self.rows(number))

    def rows(self, number: int) -> list[TupleRow]:
        statement = sql.SQL("SELECT u FROM {t} AS t WHERE {match}").format(
            t=sql.Identifier(self.spec.table), match=_match(self.spec)
        )
        return self.conn.execute(statement, self.key(number)).fetchall()

    def some(self, count: int, *, present: bool) -> list[int] | None:
        """So many of the transaction's numbers that are (or are not) keys of rows; None where there are not enough."""
        found = [number for number in self.numbers if self.has(number) is present]
        return self.rng.sample(found, count) if len(found) >= count else None

    def free_value(self) -> int | None:
        """One of the numbers that no row has as its unique value."""
        for number in self.rng.sample(self.numbers, len(self.numbers)):
            taken = self.conn.execute(
                sql.SQL("SELECT FROM {} WHERE u = %s").format(sql.Identifier(self.spec.table)), (number,)
            ).fetchall()
            if not taken:
                return number
        return None

    def values(self) -> tuple[int, str, str]:
        return self.rng.randrange(1000), f"Note {self.rng.randrange(50)}", big(self.rng, 20)

    # ---- what is done

    def insert(self) -> None:
        numbers, u = self.some(1, present=False), self.free_value()
        if numbers and u is not None:
            self.both(
                "INSERT INTO {t} ({keys}, u, n, note, big) VALUES ({key}, %s, %s, %s, %s)",
                (*self.key(numbers[0]), u, *self.values()),
            )

    def update(self) -> None:
        n, note, _ = self.values()
        number = self.rng.choice(self.numbers)
        self.both("UPDATE {t} AS t SET n = %s, note = %s WHERE {match}", (n, note, *self.key(number)))

    def update_big(self) -> None:
        number = self.rng.choice(self.numbers)
        self.both("UPDATE {t} AS t SET big = %s WHERE {match}", (big(self.rng, 1500), *self.key(number)))

    def update_twice(self) -> None:
        number = self.rng.choice(self.numbers)
        for _ in range(2):
            self.both("UPDATE {t} AS t SET n = n + 1 WHERE {match}", self.key(number))

    def update_many(self) -> None:
        self.both(
            "UPDATE {t} AS t SET n = n + 1, note = left(note || '+', 30) WHERE u = ANY (%s) AND n %% 4 <> 1",
            (self._own_values(),),
        )

    def _own_values(self) -> list[int]:
        """Unique values of the rows that the transaction may write to."""
        return [row[0] for number in self.numbers for row in self.rows(number)]

    def delete(self) -> None:
        self.both("DELETE FROM {t} AS t WHERE {match}", self.key(self.rng.choice(self.numbers)))

    def delete_and_insert(self) -> None:
        numbers = self.some(1, present=True)
        if numbers:
            ((u,),) = self.rows(numbers[0])
            self.both("DELETE FROM {t} AS t WHERE {match}", self.key(numbers[0]))
            self.both(
                "INSERT INTO {t} ({keys}, u, n, note, big) VALUES ({key}, %s, %s, %s, %s)",
                (*self.key(numbers[0]), u, *self.values()),
            )

    def insert_and_delete(self) -> None:
        numbers, u = self.some(1, present=False), self.free_value()
        if numbers and u is not None:
            key = self.key(numbers[0])
            self.both(
                "INSERT INTO {t} ({keys}, u, n, note, big) VALUES ({key}, %s, %s, %s, %s)", (*key, u, *self.values())
            )
            if self.rng.random() < 0.5:
                self.both("UPDATE {t} AS t SET n = n + 1 WHERE {match}", key)
            self.both("DELETE FROM {t} AS t WHERE {match}", key)

    def upsert(self) -> None:
        u = self.free_value()
        if u is not None and self.spec.key != "deferrable":
            self.both(
                "INSERT INTO {t} AS t ({keys}, u, n, note, big) VALUES ({key}, %s, %s, %s, %s) ON CONFLICT ({keys})"
                " DO UPDATE SET n = t.n + 1, note = excluded.note",
                (*self.key(self.rng.choice(self.numbers)), u, *self.values()),
            )

    def insert_unless_there(self) -> None:
        # Not a value of a row that somebody else may be deleting: DO NOTHING waits for nobody, and would find that row
        # in the table still, and not in the model any more.
        free = self.free_value()
        values = [*self._own_values(), *([] if free is None else [free])]
        if self.spec.key != "deferrable" and values:
            number = self.rng.choice(self.numbers)
            self.both(
                "INSERT INTO {t} ({keys}, u, n, note, big) VALUES ({key}, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (*self.key(number), self.rng.choice(values), *self.values()),
            )

    def merge(self) -> None:
        u = self.free_value()
        if u is None or self.conn.info.server_version < 150000:
            return
        self.both(
            "MERGE INTO {t} AS t USING (SELECT %s::int AS u, %s::int AS n, %s::text AS note, %s::text AS big) AS s"
            " ON ({match})"
            " WHEN MATCHED AND t.n %% 3 = 0 THEN DELETE"
            " WHEN MATCHED THEN UPDATE SET n = t.n + s.n, note = s.note"
            " WHEN NOT MATCHED THEN INSERT ({keys}, u, n, note, big) VALUES ({key}, s.u, s.n, s.note, s.big)",
            (u, *self.values(), *(key := self.key(self.rng.choice(self.numbers))), *key),
        )

    def move(self) -> None:
        old, new = self.some(1, present=True), self.some(1, present=False)
        if old and new:
            self._rename(old[0], new[0])

    def move_and_follow(self) -> None:
        """A key moves away and another row moves onto it."""
        old, new = self.some(2, present=True), self.some(1, present=False)
        if old and new:
            self._rename(old[0], new[0])
            self._rename(old[1], old[0])

    def _rename(self, old: int, new: int) -> None:
        self.both(
            "UPDATE {t} AS t SET ({keys}) = ROW({key}) WHERE {match}",
            (*self.key(new), *self.key(old)),
        )

    def respell(self) -> None:
        """The key gets another value that may be equal to it."""
        number = self.rng.choice(self.numbers)
        self._rename(number, number)

    def exchange_keys(self) -> None:
        if self.spec.key == "deferrable" and (pair := self.some(2, present=True)):
            one, other = pair
            self.both(
                "UPDATE {t} SET id = CASE id WHEN %s THEN %s ELSE %s END WHERE id IN (%s, %s)",
                (one, other, one, one, other),
            )

    def exchange_values(self) -> None:
        """Two rows exchange their unique values."""
        if not (pair := self.some(2, present=True)):
            return
        (((one,),), ((other,),)) = (self.rows(number) for number in pair)
        if self.spec.key == "deferrable":
            self.both(
                "UPDATE {t} SET u = CASE u WHEN %s THEN %s::int ELSE %s END WHERE u IN (%s, %s)",
                (one, other, one, one, other),
            )
            return
        aside = -1 - one
        for old, new in ((one, aside), (other, one), (aside, other)):
            self.both("UPDATE {t} SET u = %s WHERE u = %s", (new, old))

    def copy(self) -> None:
        numbers, u = self.some(1, present=False), self.free_value()
        if not numbers or u is None:
            return
        row = (*self.key(numbers[0]), u, *self.values())
        for name in (self.spec.table, self.spec.model):
            statement = sql.SQL("COPY {} ({}, u, n, note, big) FROM STDIN").format(
                sql.Identifier(name), _names(self.spec)
            )
            with self.conn.cursor().copy(statement) as stream:
                stream.write_row(row)

    def collide(self) -> None:
        """A row whose unique value another one has: fails at once, or at COMMIT where that is deferred."""
        pair = self.some(1, present=True), self.some(1, present=False)
        if pair[0] and pair[1] and self.rng.random() < 0.3:
            ((u,),) = self.rows(pair[0][0])
            self.conn.execute("SAVEPOINT collision")
            with contextlib.suppress(errors.UniqueViolation):
                self.both(
                    "INSERT INTO {t} ({keys}, u, n, note, big) VALUES ({key}, %s, %s, %s, %s)",
                    (*self.key(pair[1][0]), u, *self.values()),
                )
            if self.conn.info.transaction_status is TransactionStatus.INERROR:
                self.conn.execute("ROLLBACK TO collision")
            self.conn.execute("RELEASE collision")

    def lock(self) -> None:
        strength: LiteralString = self.rng.choice(("UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"))
        self.conn.execute(
            sql.SQL("SELECT FROM {t} AS t WHERE {match} FOR {strength}").format(
                t=sql.Identifier(self.spec.table), match=_match(self.spec), strength=sql.SQL(strength)
            ),
            self.key(self.rng.choice(self.numbers)),
        )

    def savepoints(self) -> None:
        """A few statements in a subtransaction, perhaps nested, released or rolled back."""
        name = sql.Identifier(f"s{self.rng.randrange(1 << 30)}")
        self.conn.execute(sql.SQL("SAVEPOINT {}").format(name))
        try:
            for _ in range(self.rng.randint(1, 3)):
                self.act(nest=0.3)
            keep = self.rng.random() < 0.5
        except errors.UniqueViolation:
            keep = False
        if not keep:
            self.conn.execute(sql.SQL("ROLLBACK TO {}").format(name))
        self.conn.execute(sql.SQL("RELEASE {}").format(name))

    def act(self, nest: float = 0.2) -> None:
        """Do one thing or, with this probability, several in a subtransaction."""
        if self.rng.random() < nest:
            self.savepoints()
        else:
            self.rng.choice(_ACTS)(self)


_ACTS: tuple[Callable[[_Hand], None], ...] = (
    _Hand.insert,
    _Hand.insert,
    _Hand.update,
    _Hand.update,
    _Hand.update_big,
    _Hand.update_twice,
    _Hand.update_many,
    _Hand.delete,
    _Hand.delete_and_insert,
    _Hand.insert_and_delete,
    _Hand.upsert,
    _Hand.insert_unless_there,
    _Hand.merge,
    _Hand.move,
    _Hand.move_and_follow,
    _Hand.respell,
    _Hand.exchange_keys,
    _Hand.exchange_values,
    _Hand.copy,
    _Hand.collide,
    _Hand.lock,
)


def _names(spec: Spec) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, spec.key_columns))


def _marks(spec: Spec) -> sql.Composed:
    return sql.SQL(", ").join(sql.Placeholder() for _ in spec.key_columns)


def _match(spec: Spec) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier("t", name), sql.Placeholder()) for name in spec.key_columns
    )


class Writers:
    """So many sessions that write at random until they are stopped.

    `reconnect`: a session that is lost is opened again, as often as need be, and its transaction forgotten: table and
    model know whether it was committed. Without it a lost session is an error.
    `pause_s`: rest of each writer after each transaction.
    An error of a writer that is not to be expected is raised by `wait_for` and by `stop`.
    """

    def __init__(
        self,
        conninfo: str,
        spec: Spec,
        seed: int,
        connections: int = 8,
        *,
        reconnect: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        self._conninfo, self._spec, self._seed = conninfo, spec, seed
        self._reconnect, self._pause_s = reconnect, pause_s
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        #: How many transactions ended how: ``committed``, ``rolled back``, ``lost``, or an SQLSTATE.
        self.tally: Counter[str] = Counter()
        #: The longest time that a transaction took, in seconds.
        self.longest_s = 0.0
        self._threads = [
            threading.Thread(target=self._write, args=(number,), name=f"writer {number}", daemon=True)
            for number in range(connections)
        ]

    def start(self) -> None:
        """Let them begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each end its transaction, and wait for it."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._raise()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.stop()
        except BaseException:
            # What broke the block is told first; it may well be the cause.
            if kind is None:
                raise

    def wait_for(self, transactions: int, timeout_s: float = 60.0) -> None:
        """Until so many more transactions have been committed."""
        with self._changed:
            goal = self.tally["committed"] + transactions
            reached = self._changed.wait_for(
                lambda: self._failure is not None or self.tally["committed"] >= goal, timeout_s
            )
        self._raise()
        assert reached, f"writers made {self.tally} and no more within {timeout_s:g} s"

    def compare(self) -> None:
        """Raise `AssertionError` where table and model differ. To be called when they have stopped."""
        with psycopg.connect(self._conninfo, autocommit=True) as conn:
            differences = self._spec.differences(conn)
        assert not differences, "\n".join([f"seed {self._seed}, {dict(self.tally)}", *differences])

    def _raise(self) -> None:
        if self._failure is not None:
            raise AssertionError(f"a writer failed (seed {self._seed}): {self._failure!r}") from self._failure

    def _write(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        try:
            while not self._stopping.is_set():
                try:
                    with psycopg.connect(self._conninfo, autocommit=True, application_name="writer") as conn:
                        self._write_on(conn, number, rng)
                except psycopg.OperationalError:
                    if not self._reconnect:
                        raise
                    self._count("lost")
                    self._stopping.wait(0.05)
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _write_on(self, conn: Connection, number: int, rng: random.Random) -> None:
        conn.execute("SET deadlock_timeout = '100ms'")
        # One of eight writes as a replication worker does: ordinary triggers do not fire. Nor do those which check
        # deferrable constraints, so that there it could leave duplicates.
        if number % 8 == 7 and self._spec.key != "deferrable":
            conn.execute("SET session_replication_role = replica")
        while not self._stopping.is_set():
            began = time.monotonic()
            outcome = self._transaction(conn, rng)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self._count(outcome)
            if self._pause_s:
                self._stopping.wait(self._pause_s)

    def _transaction(self, conn: Connection, rng: random.Random) -> str:
        numbers = sorted(rng.sample(range(self._spec.numbers), rng.randint(2, 8)))
        conn.execute("BEGIN")
        try:
            conn.execute(
                "SELECT pg_advisory_xact_lock(1885826149, n) FROM (SELECT unnest(%s::int[]) AS n ORDER BY 1) AS s",
                (numbers,),
            )
            hand = _Hand(conn, self._spec, rng, numbers)
            for _ in range(rng.randint(1, 6)):
                hand.act()
            if rng.random() < 0.2:
                conn.execute("ROLLBACK")
                return "rolled back"
            conn.execute("COMMIT")
        except (errors.UniqueViolation, errors.DeadlockDetected) as error:
            conn.execute("ROLLBACK")
            return error.sqlstate or "?"
        return "committed"

    def _count(self, outcome: str) -> None:
        with self._changed:
            self.tally[outcome] += 1
            self._changed.notify_all()
