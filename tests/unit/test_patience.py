"""How long a lock is tried for, and when others are cancelled for it."""

from __future__ import annotations

from typing import Any

import pytest

from pglean.blockers import Blocker, Mode
from pglean.errors import LockNotObtained
from pglean.patience import Patience, Policy
from pglean.table import Table

TABLE = Table(
    oid=1,
    schema="public",
    name="t",
    kind="r",
    persistence="p",
    owner="postgres",
    owner_is_superuser=True,
    method="heap",
    is_heap=True,
    tablespace=None,
    options=(),
    columns=(),
    indexes=(),
    key=None,
    toast=None,
    heap_bytes=0,
    estimated_rows=None,
    is_system=False,
)


class Bench:
    """A clock that only resting moves, and a session that notes what it is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, policy: Policy, attempt_s: float) -> None:
        self.now, self._attempt_s = 0.0, attempt_s
        self.events: list[tuple[float, str]] = []
        self.told: list[str] = []
        self.messages: list[str] = []
        self.blockers: tuple[Blocker, ...] = (Blocker("pid 7", killable=True),)
        monkeypatch.setattr("pglean.patience.time.monotonic", lambda: self.now)
        monkeypatch.setattr("pglean.patience.query", lambda name: name)
        anything: Any = self
        self._patience = Patience(anything, policy, self.told.append, self.messages.append)

    def rest(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def execute(self, name: str, parameters: dict[str, Any]) -> Bench:
        assert name == "locks.end"
        verb = "terminate" if parameters["terminate"] else "cancel"
        self.events.append((self.now, "cancel autovacuum" if parameters["autovacuum_only"] else verb))
        return self

    def fetchall(self) -> list[tuple[str, bool]]:
        """Whom the last statement has reached, or not."""
        return [] if self.events[-1][1] == "cancel autovacuum" else [("pid 7 (joe)", True), ("pid 8", False)]

    def wait(self) -> LockNotObtained:
        """Try in vain until it is given up."""
        session: Any = self
        for _ in range(10_000):
            self.now += self._attempt_s
            self.events.append((self.now, "attempt"))
            self._patience.escalate(session, TABLE, Mode.ACCESS_EXCLUSIVE)
            try:
                self._patience.pause(TABLE, Mode.ACCESS_EXCLUSIVE, "It was late.", self.blockers)
            except LockNotObtained as error:
                return error
        raise AssertionError("it never ends")


@pytest.mark.parametrize("timeout_s", [0.0, 0.3, 5.0, 60.0])
@pytest.mark.parametrize("attempt_s", [0.01, 0.2, 30.0])
def test_nobody_is_cancelled_unasked(monkeypatch: pytest.MonkeyPatch, timeout_s: float, attempt_s: float) -> None:
    bench = Bench(monkeypatch, Policy(200, timeout_s, 1000, kill_backend=False), attempt_s)
    error = bench.wait()
    assert error.blockers == ("pid 7",)
    assert error.message == f"could not lock table public.t within {bench.now:.{1 if bench.now < 9.95 else 0}f} s"
    assert error.detail == "It was late. Blocked by pid 7."
    assert error.hint
    assert "--kill-backend" in error.hint
    assert bench.messages == []
    # An autovacuum is another matter: the server itself would cancel it for any other statement.
    assert {name for _, name in bench.events} <= {"attempt", "cancel autovacuum"}
    assert timeout_s <= bench.now <= timeout_s + 2 * attempt_s + 0.001
    assert set(bench.told) <= {"ACCESS EXCLUSIVE lock; pid 7"}


@pytest.mark.parametrize("timeout_s", [0.0, 0.3, 5.0, 60.0])
@pytest.mark.parametrize("attempt_s", [0.01, 0.2, 30.0])
def test_first_cancelled_then_terminated_then_given_up(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float, attempt_s: float
) -> None:
    bench = Bench(monkeypatch, Policy(200, timeout_s, 1000, kill_backend=True), attempt_s)
    error = bench.wait()
    assert error.message == f"could not lock table public.t within {bench.now:.{1 if bench.now < 9.95 else 0}f} s"
    assert bench.now >= 3 * timeout_s
    # It is told to whom it was done; who got away is not named.
    assert [message.partition(",")[0] for message in bench.messages] == [
        "cancelled pid 7 (joe)",
        "terminated pid 7 (joe)",
    ]
    assert error.detail == "It was late. Blocked by pid 7. Cancelled pid 7 (joe). Terminated pid 7 (joe)."
    assert error.hint == "Wait for these sessions to end, or raise --wait-timeout."
    steps = [(at, name) for at, name in bench.events if name in {"cancel", "terminate"}]
    assert [name for _, name in steps] == ["cancel", "terminate"]
    assert steps[0][0] >= timeout_s
    assert steps[1][0] >= 2 * timeout_s
    # None of them in vain: the lock is tried again after each.
    names = [name for _, name in bench.events if name != "cancel autovacuum"]
    assert names[names.index("cancel") + 1] == "attempt"
    assert names[names.index("terminate") + 1] == "attempt"


PREPARED = Blocker("prepared transaction 'it''s'", gid="'it''s'")
END_IT = "End the prepared transaction: COMMIT PREPARED 'it''s' or ROLLBACK PREPARED 'it''s'."


@pytest.mark.parametrize(
    ("blockers", "hint"),
    [
        ((), "Try again at a quieter time, or raise --wait-timeout or --max-lock-time."),
        ((PREPARED,), END_IT),
        (
            (PREPARED, Blocker("pid 7", killable=True)),
            f"{END_IT} Wait for these sessions to end, raise --wait-timeout, or have them cancelled by --kill-backend.",
        ),
        # An autovacuum that prevents wraparound, or one who only waits in the queue, is not cancelled.
        ((Blocker("pid 9"),), "Wait for these sessions to end, or raise --wait-timeout."),
    ],
)
def test_hint_says_only_what_would_help(
    monkeypatch: pytest.MonkeyPatch, blockers: tuple[Blocker, ...], hint: str
) -> None:
    bench = Bench(monkeypatch, Policy(200, 1.0, 1000, kill_backend=False), 0.2)
    bench.blockers = blockers
    assert bench.wait().hint == hint


def test_what_is_done_in_between_is_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh of minutes between two requests for the lock must not get anybody cancelled."""
    clock = [0.0]
    monkeypatch.setattr("pglean.patience.time.monotonic", lambda: clock[0])
    anything: Any = None
    patience = Patience(anything, Policy(200, 3.0, 1000, kill_backend=True), lambda _: None)
    with patience.elsewhere():
        clock[0] += 600
    assert patience._waited_s == 0
    clock[0] += 1
    assert patience._waited_s == 1
