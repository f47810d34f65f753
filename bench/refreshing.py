"""Levers of what was written meanwhile: how it is recorded, and how the shadow takes it over."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Final

from copying import builds
from lever import SECONDS, WAL, Figures, Lever, Way
from pglean.session import Connection
from result import Metric
from workbench import CHANGED, COLUMNS, INDEXED, RECORDED, SHADOW, Cost, Workbench, statements, value

_SIZE: Final = Metric("size_mb", "size afterwards, MB", 1)
_HASH: Final = "(hash_record_extended(ROW(c.k1), 0) & 9223372036854775807) % {of} = {number}"
_BY_KEY: Final = " ORDER BY t.id"
_SORTED: Final = "SET LOCAL enable_hashagg = off"
_CONSUME: Final = "DELETE FROM pglean.changes"


def halves(share: str = "true") -> tuple[str, str]:
    """The two statements of a refresh by keys: deletes come first, all of them."""
    recorded = f"EXISTS (SELECT FROM pglean.changes AS c WHERE {{}}.id = c.k1 AND {share})"
    return (
        f"DELETE FROM {SHADOW} AS s WHERE {recorded.format('s')}",
        f"INSERT INTO {SHADOW} SELECT {COLUMNS} FROM public.orders AS t WHERE {recorded.format('t')}",
    )


def refresh(*, hashed: bool = False) -> tuple[str, ...]:
    """A whole refresh by one session; `hashed`: keys are told apart as the planner likes."""
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ"
    return (begin if hashed else f"{begin}; {_SORTED}", *halves(), _CONSUME, "COMMIT")


def _total(costs: Sequence[Cost]) -> Figures:
    return {
        "seconds": sum(cost.seconds for cost in costs),
        "wal_mb": sum(cost.wal_bytes for cost in costs) / 1e6,
    }


def _shadow_mb(bench: Workbench) -> float:
    with bench.connect() as conn:
        return int(value(conn, f"SELECT pg_total_relation_size('{SHADOW}')")) / 1e6


# ---- order


def _ordered(bench: Workbench, *, before: bool) -> Figures:
    bench.fresh(RECORDED)
    vacuum = statements(f"VACUUM (FREEZE, TRUNCATE false) {SHADOW}")
    takes_over = [statements(*refresh())]
    # Pages that were written after they were frozen have to be frozen once more.
    acts = [takes_over, [vacuum], builds()] if before else [[vacuum], builds(), takes_over, [vacuum]]
    costs = [bench.timed(*act) for act in acts]
    return {
        **_total(costs),
        "refresh_s": costs[0 if before else 2].seconds,
        "size_mb": _shadow_mb(bench),
    }


ORDER: Final = Lever(
    "order",
    "What was written during the copy: taken over before the indexes are built, or after that? A tenth of the keys.",
    (
        Metric("seconds", "refresh, freeze and builds, s", 2),
        Metric("refresh_s", "refresh alone, s", 2),
        WAL,
        _SIZE,
    ),
    (
        Way("before (pglean)", partial(_ordered, before=True)),
        Way("after", partial(_ordered, before=False)),
    ),
    "Before. Deletes and inserts then touch the heap alone, and the indexes are built of what is there; after"
    " that each key costs its entries in all indexes, one by one and in random places, and what was frozen is"
    " frozen again. Only what comes in while the indexes are built is refreshed with them there.",
)


# ---- workers


#: So long one of two waits for the other, which may have failed.
_TOGETHER_S: Final = 120


def _by_one(bench: Workbench) -> Figures:
    bench.fresh(CHANGED)
    return bench.timed(statements(*refresh())).figures


def _by_two(bench: Workbench, *, hashed: bool = False, by_key: bool = False) -> Figures:
    """Deletes by both, then, when both have committed, inserts by both; the records go last."""
    bench.fresh(CHANGED)
    barrier = threading.Barrier(2, timeout=_TOGETHER_S)

    def job(conn: Connection, number: int) -> None:
        delete, insert = halves(_HASH.format(of=2, number=number))
        conn.execute(f"SET enable_hashagg = {'on' if hashed else 'off'}")
        conn.execute(delete)
        barrier.wait()
        conn.execute(insert + _BY_KEY * by_key)
        barrier.wait()
        if number == 0:
            conn.execute(_CONSUME)

    return bench.timed(*(partial(job, number=number) for number in range(2))).figures


WORKERS: Final = Lever(
    "workers",
    "A refresh of a tenth of the keys, with the indexes there: by one worker, or by two, each with the keys of"
    " its hash?",
    (SECONDS, WAL),
    (Way("two (pglean)", _by_two), Way("one", _by_one)),
    "Two, from 2,000 records on and where processors are not busy with others: deletes by all, a barrier, inserts"
    " by all. It is half as fast again. Keys are divided by their hash, so that it needs no agreement who takes"
    " which.",
)


# ---- sorting


def _sorted(bench: Workbench, *, hashed: bool = False, by_key: bool = False, analyzed: bool = False) -> Figures:
    bench.fresh(CHANGED)
    begin, delete, insert, consume, commit = refresh(hashed=hashed)
    first = ["ANALYZE pglean.changes"] if analyzed else []
    insert += _BY_KEY * by_key
    return bench.timed(statements(*first, begin, delete, insert, consume, commit)).figures


SORTING: Final = Lever(
    "sorting",
    "Keys without statistics: told apart by sorting them (enable_hashagg = off), or as the planner likes, which expects"
    " 200 of them? With an ANALYZE of the change table first, or an INSERT … ORDER BY key? A tenth of the keys, with"
    " the indexes there.",
    (SECONDS, WAL),
    (
        Way("sorted (pglean)", _sorted, "one worker"),
        Way("sorted, ORDER BY key", partial(_sorted, by_key=True), "one worker"),
        Way("as the planner likes", partial(_sorted, hashed=True), "one worker"),
        Way("as it likes, ORDER BY key", partial(_sorted, hashed=True, by_key=True), "one worker"),
        Way("as it likes, ANALYZE first", partial(_sorted, hashed=True, analyzed=True), "one worker"),
        Way("as it likes, both", partial(_sorted, hashed=True, by_key=True, analyzed=True), "one worker"),
        Way("sorted (pglean)", _by_two, "two workers"),
        Way("sorted, ORDER BY key", partial(_by_two, by_key=True), "two workers"),
        Way("as the planner likes", partial(_by_two, hashed=True), "two workers"),
    ),
    "Sorted. Left to itself the planner tells keys apart by hash, looks them up one by one in that random order, and"
    " inserts them so into the indexes. Sorted, they lie side by side in the table and in the indexes. ORDER BY then"
    " changes little, for that is the order in which they come. ANALYZE gives less, costs something for few keys,"
    " and would have the next round, of few keys, read all of the table.",
)


# ---- in place

_IN_PLACE: Final = (
    f"UPDATE {SHADOW} AS s SET ({COLUMNS}) = ROW ({', '.join(f't.{name}' for name in COLUMNS.split(', '))})"
    " FROM public.orders AS t WHERE t.id = s.id AND EXISTS (SELECT FROM pglean.changes AS c WHERE t.id = c.k1)"
)


def _replaced(bench: Workbench, *, in_place: bool, fillfactor: int) -> Figures:
    bench.fresh(CHANGED)
    if fillfactor < 100:
        with bench.connect() as conn:
            conn.execute(f"ALTER TABLE {SHADOW} SET (fillfactor = {fillfactor})")
            conn.execute(f"VACUUM (FULL, FREEZE) {SHADOW}")
            conn.execute(f"VACUUM (FREEZE) {SHADOW}")
            conn.execute("CHECKPOINT")
    begin, *acts, consume, commit = refresh()
    cost = bench.timed(statements(begin, *([_IN_PLACE] if in_place else acts), consume, commit))
    return {**cost.figures, "size_mb": _shadow_mb(bench)}


IN_PLACE: Final = Lever(
    "in-place",
    "A row of which no indexed column was changed: deleted and inserted again, or updated in place? A tenth of"
    " the keys, with the three indexes there.",
    (SECONDS, WAL, _SIZE),
    (
        Way("DELETE and INSERT (pglean)", partial(_replaced, in_place=False, fillfactor=100), "full pages"),
        Way("UPDATE", partial(_replaced, in_place=True, fillfactor=100), "full pages"),
        Way("DELETE and INSERT (pglean)", partial(_replaced, in_place=False, fillfactor=85), "fillfactor 85"),
        Way("UPDATE", partial(_replaced, in_place=True, fillfactor=85), "fillfactor 85"),
    ),
    "DELETE and INSERT, so far. An UPDATE is faster only where there is room in the pages: then it leaves the indexes"
    " alone. But a copy has full pages unless the table has a fillfactor; rows that are new or gone need the other two"
    " statements still; and where unique values wander between rows an UPDATE fails in the middle, so that it would"
    " have to be known first that no indexed column has changed: a comparison of each row with its copy, and a third"
    " way through what must never be wrong.",
)


# ---- the change table

_TRIGGER: Final = (
    "CREATE FUNCTION pglean.record() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$BEGIN IF"
    " pg_catalog.pg_typeof(NEW.id)::pg_catalog.oid OPERATOR(pg_catalog.<>) 20::pg_catalog.oid THEN RETURN NULL;"
    " END IF; IF NEW.id OPERATOR(pg_catalog.<>) OLD.id THEN INSERT INTO pglean.changes VALUES {old}, {new}; ELSE"
    " INSERT INTO pglean.changes VALUES {new}; END IF; RETURN NULL; END$$",
    "CREATE TRIGGER record AFTER UPDATE ON public.orders FOR EACH ROW EXECUTE FUNCTION pglean.record()",
)
_KEYS: Final = tuple(text.format(old="(OLD.id)", new="(NEW.id)") for text in _TRIGGER)
#: As pg_repack has it: numbered rows, with a primary key.
_WHOLE: Final = (
    "DROP TABLE pglean.changes",
    "CREATE TABLE pglean.changes (k1 bigint, r public.orders, n bigserial PRIMARY KEY)",
    *(text.format(old="(OLD.id, NULL)", new="(NEW.id, NEW)") for text in _TRIGGER),
)
_INDEX: Final = "CREATE INDEX ON pglean.changes (k1)"
#: What whole rows save: the table is not read again.
_FROM_ROWS: Final = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ",
    halves()[0],
    f"INSERT INTO {SHADOW} SELECT (r).* FROM (SELECT DISTINCT ON (k1) r FROM pglean.changes ORDER BY k1, n DESC) AS c"
    " WHERE r IS NOT NULL",
    _CONSUME,
    "COMMIT",
)
_UPDATES: Final = 100_000


def _recorded(bench: Workbench, *, layout: tuple[str, ...], takes_over: tuple[str, ...]) -> Figures:
    bench.fresh(INDEXED)
    with bench.connect() as conn:
        for text in layout:
            conn.execute(text)
    count = min(_UPDATES, bench.rows // 10)
    ids = (
        f"SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM public.orders) AS o"
        f" WHERE n % {max(bench.rows // count, 1)} = 0 ORDER BY hashint8(id) LIMIT {count}"
    )
    with bench.connect() as conn:
        conn.execute(f"CREATE TABLE pglean.ids AS {ids}")
        conn.execute("CHECKPOINT")
    body = "UPDATE public.orders SET status = 'sent' WHERE public.orders.id = chosen"
    loop = f"DO $$DECLARE chosen bigint; BEGIN FOR chosen IN SELECT id FROM pglean.ids LOOP {body}; END LOOP; END$$"
    written = bench.timed(statements(loop), flushed=False)
    figures = {"us": written.seconds / count * 1e6, "bytes": written.wal_bytes / count}
    if takes_over:
        taken = bench.timed(statements(*takes_over))
        figures |= {"seconds": taken.seconds, "wal_mb": taken.wal_bytes / 1e6}
    return figures


CHANGES: Final = Lever(
    "changes",
    f"What should the change table hold, and with which index? {_UPDATES:,} updates of single rows in one transaction,"
    " each of another row, then one refresh.",
    (
        Metric("us", "an update, µs", 1),
        Metric("bytes", "WAL of an update, bytes", 0),
        Metric("seconds", "refresh, s", 2),
        Metric("wal_mb", "WAL of the refresh, MB", 1),
    ),
    (
        Way("keys, no index (pglean)", partial(_recorded, layout=_KEYS, takes_over=refresh())),
        Way("keys, with an index", partial(_recorded, layout=(*_KEYS, _INDEX), takes_over=refresh())),
        Way("whole rows, numbered, with a primary key", partial(_recorded, layout=_WHOLE, takes_over=_FROM_ROWS)),
        Way("nothing is recorded", partial(_recorded, layout=(), takes_over=())),
    ),
    "Keys alone, without an index. Every write of an application pays for what is recorded: an index on the key costs"
    " it WAL and time and the refresh, which reads all records, does not use it. Whole rows cost more still, twice the"
    " WAL, of each long value too, and they would have to be brought into the order of commits; their refresh, which"
    " does not read the table, is no faster for that.",
)
