"""Thresholds of `pglean check`: what is too much, and what is not known."""

from __future__ import annotations

import pytest

from pglean.bloat.finding import Bloat, Method, RelationBloat, TableBloat
from pglean.bloat.verdict import State, Threshold, Thresholds, judge, worst
from pglean.errors import UsageError

_MB = 1 << 20


def table(name: str, size: int, gain: int | None, family: str | None = None) -> TableBloat:
    """A table of so many megabytes; None: nothing is known of it."""
    after = None if gain is None else (size - gain) * _MB
    method = None if gain is None else Method.ESTIMATE
    heap = RelationBloat("heap", name, size * _MB, method, after_bytes=after)
    return TableBloat(1, "public", name, heap, None, (), family=None if family is None else ("public", family))


def thresholds(warning: str = "30%", critical: str = "50%") -> Thresholds:
    return Thresholds(Threshold.parse("warning", warning), Threshold.parse("critical", critical))


def test_thresholds() -> None:
    assert Threshold.parse("warning", " 30 % ").share == 0.3
    assert Threshold.parse("warning", "1.5GB").bytes == 3 << 29
    for text in ("30", "130%", "-1%", "", "much", "10:20", "@30%", "1 parsec"):
        with pytest.raises(UsageError, match=f"invalid value for option --critical: {text}") as caught:
            Threshold.parse("critical", text)
        assert "--critical 30%, --critical 10GB" in (caught.value.hint or "")
    for warning, critical in (("50%", "30%"), ("2GB", "1GB")):
        with pytest.raises(UsageError, match=f"--warning {warning} is above --critical {critical}"):
            thresholds(warning, critical)
    # What cannot be compared is not.
    thresholds("50%", "1MB")


@pytest.mark.parametrize(
    ("size", "gain", "warning", "critical", "state"),
    [
        (100, 0, "0%", "50%", State.OK),
        (100, 1, "0%", "50%", State.WARNING),
        (100, 30, "30%", "50%", State.OK),
        (100, 31, "30%", "50%", State.WARNING),
        (100, 51, "30%", "50%", State.CRITICAL),
        (100, 31, "31MB", "50%", State.OK),
        (100, 32, "31MB", "50%", State.WARNING),
        (100, 60, "70MB", "50%", State.CRITICAL),
        (0, 0, "0%", "0%", State.OK),
        (100, None, "30%", "50%", State.UNKNOWN),
        (100, None, "100%", "100%", State.OK),
        # It cannot give back more than it has.
        (100, None, "100MB", "1GB", State.OK),
        (101, None, "100MB", "1GB", State.UNKNOWN),
    ],
)
def test_one_table(size: int, gain: int | None, warning: str, critical: str, state: State) -> None:
    found = judge(Bloat((table("t", size, gain),), 1), thresholds(warning, critical))
    assert found.state is state


def test_the_worst_is_told_first() -> None:
    assert worst([]) is State.OK
    assert worst([State.OK, State.UNKNOWN, State.OK]) is State.UNKNOWN
    assert worst([State.WARNING, State.UNKNOWN]) is State.WARNING
    assert worst([State.UNKNOWN, State.CRITICAL, State.WARNING]) is State.CRITICAL
    tables = (table("fine", 900, 9), table("none", 50, None), table("bad", 10, 9), table("large", 100, 40))
    found = judge(Bloat(tables, 4), thresholds())
    assert [one.name for one in found.tables] == ["public.bad", "public.large", 'public."none"', "public.fine"]
    assert found.state is State.CRITICAL
    found = judge(Bloat(tables, 4), thresholds(), min_bytes=20 * _MB)
    assert (found.state, found.small, len(found.tables)) == (State.WARNING, 1, 3)
    assert judge(Bloat((), 0), thresholds()).state is State.OK


def test_all_together() -> None:
    tables = (table("a", 100, 90), table("b", 900, 10))
    found = judge(Bloat(tables, 2), thresholds(), together=True)
    assert (found.state, found.total.gain_bytes) == (State.OK, 100 * _MB)
    assert judge(Bloat(tables, 2), thresholds("9%", "11%"), together=True).state is State.WARNING
    # 300 MB more could be bloat: 400 of 1300.
    more = (*tables, table("c", 300, None))
    assert judge(Bloat(more, 3), thresholds(), together=True).state is State.UNKNOWN
    assert judge(Bloat(more, 3), thresholds("31%", "50%"), together=True).state is State.OK
    assert judge(Bloat(more, 3), thresholds("5%", "50%"), together=True).state is State.WARNING


def test_partitions_of_which_little_is_known() -> None:
    parts = (table("p1", 40, 4, "p"), table("p2", 60, None, "p"))
    found = judge(Bloat(parts, 2), thresholds())
    (family,) = found.tables
    assert (family.name, family.state, family.unknown_bytes) == ("public.p", State.UNKNOWN, 60 * _MB)
    assert judge(Bloat(parts, 2), thresholds("70%", "80%")).state is State.OK
    assert [one.name for one in judge(Bloat(parts, 2), thresholds(), partitions=True).tables] == [
        "public.p2",
        "public.p1",
    ]
    # As large as all of its partitions.
    assert judge(Bloat(parts, 2), thresholds(), min_bytes=90 * _MB).small == 0
    assert judge(Bloat(parts, 2), thresholds(), min_bytes=50 * _MB, partitions=True).small == 1
