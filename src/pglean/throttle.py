"""The brake: whether work may go on, by the limits that the user has set for standbys, load, locks, WAL and space.

`Throttle` measures, in one thread with a session of its own; `Gate` is what the workers wait at meanwhile.

It fails closed: a limit that cannot be measured counts as exceeded, and the reason says what is missing. A limit that
silently does not work is worse than none.

That it does not flap: once a limit was exceeded, work goes on when the value is down to 80 % of it, *or* has kept
within the limit for five seconds on end. The first alone would never let go where the others' own share lies steadily
between the two; the second alone would wait in vain where there is plenty of room.

*Which standbys count.* By default those that replay what they are sent and physically follow: somebody reads from
them, or they take over. `pg_receivewal` and `pg_basebackup` replay nothing. A logical subscriber confirms when it
likes (some do so once an hour), and what it lags by is mostly its own. Who wants any of them to count names it; a named
one counts whatever it is, and must be there.

*Lag in seconds.* The server's own measure (`replay_lag`) has two gaps. It is NULL where a standby has been up to date
and idle: with nothing left to replay that is no lag; else, how old the WAL is that it lacks was noted here (`Trail`).
And it is renewed by replies only: that of a standby which has gone silent stays as small as it was. What was noted here
grows, and the greater of both counts. A standby that has replayed all and has not yet said so counts as behind; the WAL
that comes next (of our heartbeat, if of nobody else) makes it say so.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psycopg

from pglean.disk import Space, bytes_text
from pglean.errors import ConnectionLost
from pglean.options import Options
from pglean.server import translate
from pglean.session import Connection, scalar
from pglean.sql import query

#: Share of a limit to which a value must fall for work to go on at once; and how long it must keep within it if not.
RESUME = 0.8
STEADY_S = 5.0
#: WAL is written in bursts (a checkpoint begins, a batch commits): its rate is the mean of so many seconds.
RATE_WINDOW_S = 5.0
#: The shortest time for which it is remembered where the WAL ended when.
_TRAIL_S = 60.0

#: States of a WAL sender that has something to follow it; the others prepare, or send a base backup.
_STREAMS = frozenset({"catchup", "streaming", "stopping"})


class Unmeasured(Exception):
    """A limit that cannot be measured, or (with no reason) not yet. Its text is why work must wait."""

    def __init__(self, what: str, why: str = "") -> None:
        super().__init__(f"cannot measure {what}: {why}" if why else f"measuring {what}")


# ---- limits


class Limit:
    """A value's upper limit, with the memory of whether it was exceeded. A lower one limits the negative value."""

    def __init__(self, most: float, show: Callable[[float], str]) -> None:
        self._most, self._show = most, show
        self._resume = most * RESUME if most >= 0 else most / RESUME
        self._closed = False
        self._within_since: float | None = None

    @property
    def most(self) -> float:
        return self._most

    def check(self, value: float, now: float) -> str:
        """What the value must come to, in parentheses; the empty string where work may go on."""
        if value > self._most:
            self._closed, self._within_since = True, None
            return f"(limit {self._show(abs(self._most))})"
        if self._closed and value > self._resume:
            self._within_since = now if self._within_since is None else self._within_since
            if now - self._within_since < STEADY_S:
                return f"(limit {self._show(abs(self._most))}, goes on at {self._show(abs(self._resume))})"
        self._closed, self._within_since = False, None
        return ""

    def unknown(self) -> None:
        """The value could not be measured: nobody knows whether it has kept within the limit."""
        self._within_since = None


class Rate:
    """Bytes a second, as the mean of the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, position: int, now: float) -> float | None:
        """The rate up to now; None at the first time, which cannot tell."""
        self._samples.append((now, position))
        # One sample from before the window stays: the window begins there.
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_WINDOW_S:
            self._samples.popleft()
        began, first = self._samples[0]
        return (position - first) / (now - began) if now > began else None


class Trail:
    """Where the WAL ended when: by that, how old the WAL is that a standby still lacks."""

    def __init__(self, horizon_s: float) -> None:
        self._horizon_s = max(_TRAIL_S, 2 * horizon_s)
        self._times: list[float] = []
        self._positions: list[int] = []

    def add(self, position: int, now: float) -> None:
        """The WAL goes at least so far now."""
        # Half a thousand samples, however far back they go, are exact enough.
        if self._times and (position <= self._positions[-1] or now - self._times[-1] < self._horizon_s / 500):
            return
        self._times.append(now)
        self._positions.append(position)
        while len(self._times) > 1 and self._times[1] < now - self._horizon_s:
            del self._times[0], self._positions[0]

    def age_s(self, position: int, now: float) -> tuple[float, bool]:
        """For how long, at the least, there has been WAL beyond the position; and whether it was seen to come.

        Too little by the time between two samples, never too much.
        """
        after = bisect_right(self._positions, position)
        age_s = now - self._times[after] if after < len(self._times) else 0.0
        return age_s, after > 0


# ---- standbys


@dataclass(frozen=True, slots=True)
class Standby:
    """What the server knows of one that receives its WAL."""

    name: str
    #: What its WAL sender is doing.
    state: str
    #: Whether it decodes the WAL instead of replaying it.
    logical: bool
    #: Whether it stores what it receives without replaying it.
    only_receives: bool
    #: Up to where it has replayed, or stored, the WAL; None where it has not told, or we may not know.
    position: int | None
    #: `replay_lag`.
    replay_lag_s: float | None


def counted(standbys: Sequence[Standby], names: Sequence[str]) -> list[Standby]:
    """Those whose lag counts. Raises `Unmeasured` where a named one is not there."""
    streaming = [standby for standby in standbys if standby.state in _STREAMS]
    if not names:
        return [standby for standby in streaming if not (standby.logical or standby.only_receives)]
    for name in names:
        states = [standby.state for standby in standbys if standby.name == name]
        if not states:
            raise Unmeasured(f"the lag of standby {name}", "it is not connected")
        if not any(standby.name == name for standby in streaming):
            raise Unmeasured(f"the lag of standby {name}", f"it is not streaming (state {states[0]})")
    return [standby for standby in streaming if standby.name in names]


def behind_bytes(standby: Standby, position: int) -> int:
    """WAL that a standby lacks. Raises `Unmeasured`."""
    if standby.position is None:
        raise Unmeasured(f"the lag of standby {standby.name}", "it has not reported yet")
    return max(position - standby.position, 0)


def behind_s(standby: Standby, position: int, trail: Trail, limit_s: float, now: float) -> float:
    """How old the oldest WAL is that a standby lacks. Raises `Unmeasured`."""
    if standby.position is None or behind_bytes(standby, position) == 0:
        return 0.0
    age_s, known = trail.age_s(standby.position, now)
    if standby.replay_lag_s is not None:
        return max(age_s, standby.replay_lag_s)
    if not known and age_s <= limit_s:
        raise Unmeasured(f"the lag of standby {standby.name}", "it lacks WAL whose age is not known yet")
    return age_s


# ---- the measuring

_LAG, _SESSIONS = "the lag of standbys", "sessions of others"


@dataclass(frozen=True, slots=True)
class _Part:
    """Limits that are measured together."""

    #: What they limit, in words.
    what: str
    #: Yields why work must wait.
    measure: Callable[[Connection], Iterator[str]]
    limits: tuple[Limit, ...]

    def unknown(self, unmeasured: Unmeasured) -> str:
        """None of them could be measured; returns why work must wait."""
        for limit in self.limits:
            limit.unknown()
        return str(unmeasured)


class Throttle:
    """The limits of one run; for one thread, and for one session in autocommit mode."""

    def __init__(self, options: Options, space: Space | None) -> None:
        self._names = options.lag_standbys
        self._lag_bytes = _limit(options.max_lag_bytes, bytes_text)
        self._lag_s = _limit(options.max_lag_s, limit_text)
        self._load = _limit(options.max_load, _number_text)
        self._lock_waits = _limit(options.max_lock_waits, _number_text)
        self._wal_rate = _limit(options.max_wal_rate_bytes, bytes_text)
        self._space = space if options.min_free_bytes > 0 else None
        purposes = self._space.paths if self._space else ()
        self._free = {purpose: Limit(-options.min_free_bytes, bytes_text) for purpose in purposes}
        self._rate, self._trail = Rate(), Trail(options.max_lag_s or 0)
        self._parts = tuple(self._wanted_parts())

    @property
    def wanted(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self._parts)

    def measure(self, conn: Connection) -> str:
        """Why work must wait, for a person to read; the empty string where it may go on.

        Raises psycopg's error where the connection was lost. Any other counts as a limit that cannot be measured.
        """
        reasons: list[str] = []
        for part in self._parts:
            try:
                reasons.extend(part.measure(conn))
            except Unmeasured as unmeasured:
                reasons.append(part.unknown(unmeasured))
            except psycopg.Error as error:
                meaning = translate(error)
                if isinstance(meaning, ConnectionLost):
                    raise
                reasons.append(part.unknown(Unmeasured(part.what, meaning.message)))
            except OSError as error:
                reasons.append(part.unknown(Unmeasured(part.what, str(error))))
        return "; ".join(reasons)

    def _wanted_parts(self) -> Iterator[_Part]:
        for part in (
            _Part(_LAG, self._measure_lag, _given(self._lag_bytes, self._lag_s)),
            _Part(_SESSIONS, self._measure_sessions, _given(self._load, self._lock_waits)),
            _Part("the rate of WAL", self._measure_wal, _given(self._wal_rate)),
            _Part("free space", self._measure_space, tuple(self._free.values())),
        ):
            if part.limits:
                yield part

    def _measure_lag(self, conn: Connection) -> Iterator[str]:
        _require_rights(conn, _LAG)
        # Read first: what a standby reports of a moment later can only be more.
        position = int(scalar(conn, query("throttle.position")))
        now = time.monotonic()
        self._trail.add(position, now)
        rows = conn.execute(query("throttle.standbys"))
        standbys = counted([Standby(*row) for row in rows], self._names)
        in_bytes = [(behind_bytes(standby, position), standby.name) for standby in standbys]
        if self._lag_bytes is not None:
            lag, name = max(in_bytes, default=(0, ""))
            if note := self._lag_bytes.check(lag, now):
                yield f"standby {name} lags by {bytes_text(lag)} {note}"
        if self._lag_s is not None:
            most = self._lag_s.most
            in_s = [(behind_s(standby, position, self._trail, most, now), standby.name) for standby in standbys]
            lag_s, name = max(in_s, default=(0.0, ""))
            if note := self._lag_s.check(lag_s, now):
                yield f"standby {name} lags by {limit_text(lag_s)} {note}"

    def _measure_sessions(self, conn: Connection) -> Iterator[str]:
        _require_rights(conn, _SESSIONS)
        row = conn.execute(query("throttle.sessions")).fetchone()
        assert row is not None
        (active, waiting), now = row, time.monotonic()
        if self._load is not None and (note := self._load.check(active, now)):
            yield f"{'1 session of others is' if active == 1 else f'{active} sessions of others are'} active {note}"
        if self._lock_waits is not None and (note := self._lock_waits.check(waiting, now)):
            yield f"{'1 session waits' if waiting == 1 else f'{waiting} sessions wait'} for locks {note}"

    def _measure_wal(self, conn: Connection) -> Iterator[str]:
        position = int(scalar(conn, query("throttle.position")))
        # Our own clock, though the answer takes its time to come here: the server's may be set.
        now = time.monotonic()
        rate = self._rate.add(position, now)
        if rate is None:
            # It takes a second look.
            raise Unmeasured("the rate of WAL")
        if self._wal_rate is not None and (note := self._wal_rate.check(rate, now)):
            yield f"the server writes {bytes_text(rate)} of WAL a second {note}"

    def _measure_space(self, _: Connection) -> Iterator[str]:
        if self._space is None:
            return
        now = time.monotonic()
        for purpose, free in self._space.free_bytes().items():
            if note := self._free[purpose].check(-free, now):
                yield f"{bytes_text(free)} free on {purpose} {note}"


def _limit(most: float | None, show: Callable[[float], str]) -> Limit | None:
    return None if most is None else Limit(most, show)


def _given(*limits: Limit | None) -> tuple[Limit, ...]:
    return tuple(limit for limit in limits if limit is not None)


def _require_rights(conn: Connection, what: str) -> None:
    if not scalar(conn, query("throttle.rights")):
        raise Unmeasured(what, "our role lacks the rights of pg_monitor")


# ---- the gate


class Gate:
    """Closed while a limit is exceeded; whoever is about to begin something waits (`Run.pass_gate`). For any thread."""

    def __init__(self) -> None:
        # One reference that is replaced as a whole: there is nothing for a lock to protect.
        self._reason = ""

    @property
    def reason(self) -> str:
        """Why it is closed; the empty string where it is open."""
        return self._reason

    def close(self, reason: str) -> None:
        """Let nobody pass from now on; `reason` may be another one than before."""
        self._reason = reason

    def open(self) -> None:
        """Let everybody pass."""
        self._reason = ""


# ---- words


def limit_text(seconds: float) -> str:
    """A time that is limited: ``0.25 s``, ``4 s``, ``12 s``, ``3600 s``.

    Always in seconds, as limits are given, and below one as exact as they may be. (`report.seconds_text` tells how long
    something takes: that becomes minutes and hours, and keeps its width while it grows.)
    """
    return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"


def _number_text(number: float) -> str:
    return f"{int(number)}"
