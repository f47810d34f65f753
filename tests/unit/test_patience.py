"""How long a lock is tried for, and when others are cancelled for it."""

from __future__ import annotations

from typing import Any

import pytest

from pglean.errors import LockNotObtained
from pglean.locks import Mode, Patience, Policy
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
        monkeypatch.setattr("pglean.locks.time.monotonic", lambda: self.now)
        monkeypatch.setattr("pglean.locks.query", lambda name: name)
        anything: Any = self
        self._patience = Patience(anything, policy, self.told.append)

    def rest(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def execute(self, name: str, _: object) -> None:
        self.events.append((self.now, name))

    def wait(self) -> LockNotObtained:
        """Try in vain until it is given up."""
        session: Any = self
        for _ in range(10_000):
            self.now += self._attempt_s
            self.events.append((self.now, "attempt"))
            self._patience.escalate(session, TABLE, Mode.ACCESS_EXCLUSIVE)
            try:
                self._patience.pause(TABLE, Mode.ACCESS_EXCLUSIVE, "It was late.", ("pid 7",))
            except LockNotObtained as error:
                return error
        raise AssertionError("it never ends")


@pytest.mark.parametrize("timeout_s", [0.0, 0.3, 5.0, 60.0])
@pytest.mark.parametrize("attempt_s", [0.01, 0.2, 30.0])
def test_nobody_is_cancelled_unasked(monkeypatch: pytest.MonkeyPatch, timeout_s: float, attempt_s: float) -> None:
    bench = Bench(monkeypatch, Policy(200, timeout_s, 1000, kill_backend=False), attempt_s)
    error = bench.wait()
    assert error.blockers == ("pid 7",)
    assert error.message == f"could not lock table public.t within {timeout_s:g} s"
    assert error.detail == "It was late. Blocked by pid 7."
    # An autovacuum is another matter: the server itself would cancel it for any other statement.
    assert {name for _, name in bench.events} <= {"attempt", "locks.cancel_autovacuum"}
    assert timeout_s <= bench.now <= timeout_s + 2 * attempt_s + 0.001
    assert set(bench.told) <= {"ACCESS EXCLUSIVE lock; pid 7"}


@pytest.mark.parametrize("timeout_s", [0.0, 0.3, 5.0, 60.0])
@pytest.mark.parametrize("attempt_s", [0.01, 0.2, 30.0])
def test_first_cancelled_then_terminated_then_given_up(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float, attempt_s: float
) -> None:
    bench = Bench(monkeypatch, Policy(200, timeout_s, 1000, kill_backend=True), attempt_s)
    bench.wait()
    steps = [(at, name) for at, name in bench.events if name in {"locks.cancel", "locks.terminate"}]
    assert [name for _, name in steps] == ["locks.cancel", "locks.terminate"]
    assert steps[0][0] >= timeout_s
    assert steps[1][0] >= 2 * timeout_s
    # None of them in vain: the lock is tried again after each.
    names = [name for _, name in bench.events if name != "locks.cancel_autovacuum"]
    assert names[names.index("locks.cancel") + 1] == "attempt"
    assert names[names.index("locks.terminate") + 1] == "attempt"
