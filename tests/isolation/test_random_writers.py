"""Random writers in eight sessions while their table is repacked twice: no change is lost, none is made twice."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql

import pglean
from pglean.rewrite import copy, refresh
from tests.servers import Database
from tests.support import oracle
from tests.support.model import Spec
from tests.support.play import standing_still
from tests.support.sorted import RANGES
from tests.support.writers import Writers

pytestmark = pytest.mark.in_turn

#: Where the run stands still until the writers have gone on; at none of them does it keep them from writing.
POINTS = (
    "capture: prepared",
    "copy: before a chunk",
    "copy: in a chunk",
    "phase: indexing",
    "index: before a build",
    "index: after a build",
    "refresh: before a round",
    "refresh: between the halves",
    "refresh: before the commit",
    "swap: before the lock",
    "swap: after the commit",
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A table, and how it is repacked."""

    name: str
    spec: Spec
    jobs: int
    #: The order that it is repacked in; by ranges of its first column, if there is an index.
    order_by: str | None = None
    ranges: bool = False
    capture: str = "trigger"


VARIANTS = (
    Variant("superuser", Spec(), 4),
    Variant("plain-owner", Spec(key="composite", owner="keeper"), 2),
    Variant("deferrable", Spec(key="deferrable"), 1),
    Variant("caseless", Spec(key="text", owner="keeper"), 4),
    Variant("meddling", Spec(meddling=True, owner="keeper"), 2),
    # By columns that the writers change.
    Variant("sorted", Spec(), 2, "n % 100 DESC, lower(note)"),
    Variant("sorted-plain-owner", Spec(key="composite", owner="keeper"), 2, "note, n"),
    Variant("ranges", Spec(), 4, "u DESC", ranges=True),
    Variant("ranges-plain-owner", Spec(owner="keeper", meddling=True), 2, "u, n", ranges=True),
    Variant("wal", Spec(), 4, capture="wal"),
    Variant("wal-plain-owner", Spec(key="composite", owner="keeper", meddling=True), 2, capture="wal"),
    Variant("wal-alone", Spec(key="composite"), 1, capture="wal"),
    Variant("ranges-of-the-key", Spec(key="composite", owner="keeper"), 4, "b DESC, a", ranges=True),
)


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks, and refreshes divided among workers, on a table of a few thousand rows too."""
    monkeypatch.setattr(refresh, "_SHARED_FROM", 30)
    monkeypatch.setattr(refresh, "_SHARE_RECORDS", 40)
    monkeypatch.setattr(copy, "_FIRST_BLOCKS", 16)
    monkeypatch.setattr(copy, "_MOST_BLOCKS", 32)
    for module, attribute, value in RANGES:
        monkeypatch.setattr(module, attribute, value)


def repack_under_load(db: Database, variant: Variant, seed: int, *, pauses: tuple[int, ...], transactions: int) -> None:
    """Repack while the writers are at work, as often as there are `pauses`, then compare."""
    spec = variant.spec
    try:
        spec.create(db.connect())
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server was built without ICU")
    db.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(spec.table)))
    with Writers(db.conninfo, spec, seed) as writers, pglean.connect(db.conninfo) as database:
        writers.wait_for(10)
        order = database.plan(spec.table, order_by=variant.order_by).order
        assert (order is not None and order.ranges is not None) == variant.ranges
        for number, times in enumerate(pauses):
            with standing_still(POINTS, times, lambda: writers.wait_for(transactions)):
                result = database.repack(
                    spec.table,
                    jobs=variant.jobs,
                    verify="full" if number % 2 else "count",
                    order_by=variant.order_by,
                    capture=variant.capture,
                )
            assert result.changes_applied > 0
        writers.wait_for(10)
    writers.compare()
    oracle.assert_sound(db, spec.table)
    oracle.assert_nothing_left(db)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_nothing_is_lost(db: Database, variant: Variant, seed: int) -> None:
    """Two repacks, one after the other."""
    repack_under_load(db, variant, seed, pauses=(2, 0), transactions=6)


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(5))
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_nothing_is_lost_in_many_runs(db: Database, variant: Variant, seed: int, round_: int) -> None:
    """The same, longer, with more interleavings."""
    repack_under_load(db, variant, seed + round_, pauses=(4, 0, 4, 1), transactions=10)
