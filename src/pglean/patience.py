"""How long locks are waited for, and what is done meanwhile about those who hold them.

The next attempt comes after a pause that doubles, with jitter; after `wait_timeout_s` waiting ends with
`LockNotObtained`, which names who stood in the way.

Nobody is cancelled unless the user asked for it. Then, as in pg_repack, in two steps: after the wait timeout the
sessions that hold conflicting locks on this table, in this database, are cancelled, after twice that time terminated.
Each is named when it happens, and in the error if it was for nothing. A prepared transaction cannot be cancelled; it is
named, and no one is made to suffer for it.

One exception, which is the server's own rule: an autovacuum worker that keeps a lock request waiting is cancelled,
unless it prevents wraparound. The server does so after deadlock_timeout, which our short requests never reach.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pglean.blockers import CONFLICTS, Blocker, Mode
from pglean.errors import LockNotObtained
from pglean.options import Options
from pglean.server import Server
from pglean.session import Connection
from pglean.sql import query

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
#: The server's default for deadlock_timeout.
_AUTOVACUUM_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Policy:
    """How long a lock may be waited for and held, and what may be done about those who hold it."""

    lock_timeout_ms: int
    wait_timeout_s: float
    #: For locks that keep writers away.
    max_lock_ms: int
    kill_backend: bool

    @classmethod
    def of(cls, options: Options) -> Policy:
        return cls(options.lock_timeout_ms, options.wait_timeout_s, options.max_lock_ms, options.kill_backend)


class Named(Protocol):
    """A table, as far as it is known to whoever waits for it."""

    @property
    def oid(self) -> int: ...

    @property
    def qualified_name(self) -> str: ...


class Patience:
    """The time that one purpose may wait for its locks in all, however many attempts and releases it takes.

    `on_wait` is told what is waited for, and who is in the way; `on_message` whom that has cost his statement or
    his session.
    """

    def __init__(
        self,
        server: Server,
        policy: Policy,
        on_wait: Callable[[str], None],
        on_message: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._server, self.policy = server, policy
        self._on_wait, self._on_message = on_wait, on_message
        self._started = time.monotonic()
        self._pause_s = _FIRST_PAUSE_S
        self._escalated = 0
        self._just_escalated = False
        #: What was done to whom, in order; each once.
        self._done: dict[str, None] = {}

    @property
    def _waited_s(self) -> float:
        return time.monotonic() - self._started

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What is done in the block is no waiting: nobody is to be cancelled for how long it takes."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._started += time.monotonic() - began

    def tell(self, reason: str) -> None:
        """Tell what is waited for, where that is no lock on a table."""
        self._on_wait(reason)

    def pause(self, table: Named, mode: Mode, reason: str, blockers: tuple[Blocker, ...]) -> None:
        """Wait before the next attempt, with no lock and no transaction.

        Raises `LockNotObtained` at the end of the patience.
        """
        limit = self.policy.wait_timeout_s * (3 if self.policy.kill_backend else 1)
        # Whoever was cancelled or terminated for it, it was not in vain: there is another attempt.
        tried, self._just_escalated = not self._just_escalated, False
        if (waited_s := self._waited_s) >= limit and tried:
            phrases = tuple(blocker.phrase for blocker in blockers)
            done = [f"{what[0].upper()}{what[1:]}." for what in self._done]
            raise LockNotObtained(
                f"could not lock table {table.qualified_name} within {waited_s:.{1 if waited_s < 9.95 else 0}f} s",
                blockers=phrases,
                detail=" ".join([reason, *(f"Blocked by {phrase}." for phrase in phrases), *done]),
                hint=self._hint(blockers),
            )
        phrases = tuple(blocker.phrase for blocker in blockers)
        self._on_wait("; ".join((f"{mode} lock", *phrases)) if phrases else f"{mode} lock: {reason}")
        self._server.rest(min(self._pause_s * random.uniform(0.5, 1.5), self._next_step_s))
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)

    def _hint(self, blockers: tuple[Blocker, ...]) -> str:
        """Only what would help against these."""
        gids = [blocker.gid for blocker in blockers if blocker.gid is not None]
        prepared = [f"End the prepared transaction: COMMIT PREPARED {gid} or ROLLBACK PREPARED {gid}." for gid in gids]
        if not blockers:
            return "Try again at a quieter time, or raise --wait-timeout or --max-lock-time."
        if len(prepared) == len(blockers):
            return " ".join(prepared)
        if self.policy.kill_backend or not any(blocker.killable for blocker in blockers):
            return " ".join([*prepared, "Wait for these sessions to end, or raise --wait-timeout."])
        sessions = "Wait for these sessions to end, raise --wait-timeout, or have them cancelled by --kill-backend."
        return " ".join([*prepared, sessions])

    @property
    def _next_step_s(self) -> float:
        """Seconds to the next multiple of the wait timeout, at which more is done, or it is given up."""
        timeout_s = max(self.policy.wait_timeout_s, 0.001)
        return timeout_s - self._waited_s % timeout_s

    def escalate(self, conn: Connection, table: Named, mode: Mode) -> None:
        """Cancel an autovacuum that is in the way; with --kill-backend, when the patience is over, others as well."""
        if self._waited_s >= _AUTOVACUUM_AFTER_S:
            self._end(conn, table, mode, autovacuum_only=True)
        if not self.policy.kill_backend:
            return
        step = int(self._waited_s // max(self.policy.wait_timeout_s, 0.001))
        if step > self._escalated and self._escalated < 2:
            # One after the other, even where the time for both has come.
            self._escalated += 1
            self._just_escalated = True
            self._end(conn, table, mode, terminate=self._escalated == 2)

    def _end(
        self, conn: Connection, table: Named, mode: Mode, *, terminate: bool = False, autovacuum_only: bool = False
    ) -> None:
        """Cancel who holds a lock that conflicts, or terminate their sessions, and say whom."""
        verb = "terminated" if terminate else "cancelled"
        parameters = {
            "oid": table.oid,
            "modes": CONFLICTS[mode],
            "terminate": terminate,
            "autovacuum_only": autovacuum_only,
        }
        for who, done in conn.execute(query("locks.end"), parameters).fetchall():
            # An autovacuum that takes its time to end is met at each attempt.
            if done and (what := f"{verb} {who}") not in self._done:
                self._done[what] = None
                self._on_message(f"{what}, which was in the way of the {mode} lock")
