"""The rules of `pglean.advice`, by figures: where each gives an action, and where it just does not."""

from __future__ import annotations

import datetime
import re
from dataclasses import replace
from typing import Any

import pytest

from pglean.advice import cost, dropping, rewriting, vacuuming
from pglean.advice.advice import Action, ActionKind, Age, Hold, words
from pglean.advice.figures import Activity, Case, IndexUse, Settings, Vacuum
from pglean.bloat.finding import Method, RelationBloat, TableBloat
from pglean.horizon import Holder, Holding

_MB = 1 << 20
_NOW = datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC)

_SETTINGS = Settings(
    version=160000,
    database="shop",
    connection="-h prod -p 5433 -d shop",
    block_bytes=8192,
    superuser=True,
    autovacuum=True,
    vacuum_threshold=50,
    vacuum_scale_factor=0.2,
    vacuum_max_threshold=None,
    maintenance_bytes=64 * _MB,
    autovacuum_bytes=64 * _MB,
    autovacuum_workers=3,
    busy_workers=0,
    now=_NOW,
    counted_since=_NOW - datetime.timedelta(days=100),
    standbys=0,
    in_recovery=False,
    timeline=1,
    transactions_per_s=0.1,
    cost_limit=200,
    cost_delay_ms=2.0,
)
#: A million rows of 100 bytes.
_ACTIVITY = Activity(
    oid=1,
    kind="r",
    persistence="p",
    rows=1e6,
    live_rows=1e6,
    dead_rows=0.0,
    updated=0,
    deleted=0,
    hot_updated=0,
    moved=0,
    fetched_by_index=0,
    scans=1,
    visible_share=0.5,
    fillfactor=100,
    options={},
    vacuumed=_NOW - datetime.timedelta(hours=5),
    autovacuumed=_NOW - datetime.timedelta(hours=5),
)


def relation(kind: str, name: str, size: int, after: int, dead: int = 0) -> RelationBloat:
    live = min(after, size)
    return RelationBloat(kind, name, size, Method.ESTIMATE, live, dead, size - live - dead, 0, after)


def case(
    *,
    heap: tuple[int, int] = (100 * _MB, 100 * _MB),
    index: tuple[int, int] = (20 * _MB, 20 * _MB),
    indexes: tuple[IndexUse, ...] = (),
    settings: dict[str, Any] | None = None,
    kept_by: str | None = None,
    in_vacuum: bool = False,
    **activity: Any,
) -> Case:
    """A table whose heap and index are so large, and would be so large after a repack."""
    found = TableBloat(
        20_000,
        "public",
        "orders",
        relation("heap", "orders", *heap),
        None,
        (relation("index", "orders_pkey", *index),),
    )
    return Case(
        found,
        replace(_ACTIVITY, **activity),
        indexes,
        replace(_SETTINGS, **(settings or {})),
        8 * _MB,
        kept_by,
        in_vacuum,
    )


def only(actions: Any) -> Action:
    (action,) = actions
    assert isinstance(action, Action)
    return action


def none(actions: Any) -> bool:
    return list(actions) == []


def test_vacuum() -> None:
    action = only(vacuuming.vacuum(case(dead_rows=250_000)))
    assert action.kind is ActionKind.VACUUM
    assert "250,000 of 1,250,000 rows are dead (20%), autovacuum comes from 200,050 on" in action.reason
    assert "last vacuumed 5 hours ago (autovacuum)" in action.reason
    assert none(vacuuming.vacuum(case(dead_rows=200_000)))
    assert none(vacuuming.vacuum(case(dead_rows=250_000, kept_by="pid 1")))
    assert none(vacuuming.vacuum(case(dead_rows=250_000, in_vacuum=True)))
    # 18: however large the table is, autovacuum waits for no more than this.
    assert only(vacuuming.vacuum(case(dead_rows=150_000, settings={"vacuum_max_threshold": 100_000}))).notes
    assert only(vacuuming.vacuum(case(dead_rows=110_000, options={"autovacuum_vacuum_scale_factor": "0.1"}))).notes


@pytest.mark.parametrize(
    ("dead", "memory", "passes"), [(11_000_000, 64, 0), (12_000_000, 64, 2), (60_000_000, 64, 6), (1e9, 1024, 0)]
)
def test_memory(dead: float, memory: int, passes: int) -> None:
    given: dict[str, Any] = {"maintenance_bytes": memory * _MB, "autovacuum_bytes": memory * _MB}
    actions = list(vacuuming.memory(case(dead_rows=dead, settings=given)))
    if not passes:
        # 1 GB is all that VACUUM uses.
        assert actions == []
        return
    action = only(actions)
    assert f"up to {passes} passes" in action.reason
    assert action.steps[0].startswith("SET maintenance_work_mem = '")
    assert (action.command, action.commands) == ("", action.steps)
    assert none(vacuuming.memory(case(dead_rows=dead, settings={**given, "version": 170000})))


def test_memory_is_raised_and_never_more_than_helps() -> None:
    enough: dict[str, Any] = {"maintenance_bytes": 2048 * _MB}
    action = only(vacuuming.memory(case(dead_rows=60_000_000, settings=enough)))
    assert action.steps == ("ALTER SYSTEM SET autovacuum_work_mem = '412MB';", "SELECT pg_reload_conf();")
    assert none(vacuuming.memory(case(dead_rows=6e7, settings=enough, options={"autovacuum_enabled": "off"})))
    capped = only(vacuuming.memory(case(dead_rows=1e9)))
    assert capped.steps[0] == "SET maintenance_work_mem = '1024MB';"
    assert capped.gain == "84 passes less"
    for most in (1024, 2048):
        same: dict[str, Any] = {"maintenance_bytes": most * _MB, "autovacuum_bytes": most * _MB}
        assert none(vacuuming.memory(case(dead_rows=1e9, settings=same)))


def test_autovacuum_is_off_or_late_or_busy() -> None:
    written: dict[str, Any] = {"updated": 1, "deleted": 0}
    off = case(options={"autovacuum_enabled": "false"}, dead_rows=100_000, **written)
    assert only(vacuuming.autovacuum(off)).command.endswith("RESET (autovacuum_enabled);")
    assert none(vacuuming.autovacuum(case(options={"autovacuum_enabled": "off"})))
    late: dict[str, Any] = {"heap": (150 * _MB, 100 * _MB), "dead_rows": 150_000, **written}
    assert "SET (autovacuum_vacuum_scale_factor = 0.02)" in only(vacuuming.autovacuum(case(**late))).command
    others: tuple[dict[str, Any], ...] = (
        {"kept_by": "pid 1"},
        {"options": {"autovacuum_vacuum_scale_factor": "0.02"}},
        {"heap": (110 * _MB, 100 * _MB), "dead_rows": 0},
        {"settings": {"autovacuum": False}},
    )
    for other in others:
        assert none(vacuuming.autovacuum(case(**{**late, **other})))
    busy: dict[str, Any] = {**late, "dead_rows": 300_000, "settings": {"busy_workers": 3}}
    action = only(vacuuming.autovacuum(case(**busy)))
    assert "all of its 3 workers are busy" in action.reason
    assert action.steps[0] == "ALTER SYSTEM SET autovacuum_vacuum_cost_limit = 2000;"
    for more, told in (({"cost_limit": 5000}, "5,000 all together"), ({"cost_delay_ms": 0.0}, "they do not rest")):
        action = only(vacuuming.autovacuum(case(**{**busy, "settings": {"busy_workers": 3, **more}})))
        assert (action.commands, action.gain) == ((), "")
        assert told in action.notes[0]
    assert none(vacuuming.autovacuum(case(**{**busy, "in_vacuum": True})))


def test_repack() -> None:
    # 200,050 rows are what dies between two autovacuums: 20 MB.
    assert none(rewriting.repack(case(heap=(120 * _MB, 100 * _MB))))
    assert none(rewriting.repack(case(heap=(140 * _MB, 100 * _MB))))
    action = only(rewriting.repack(case(heap=(160 * _MB, 100 * _MB))))
    assert (action.kind, action.gain_bytes) == (ActionKind.REPACK, 60 * _MB)
    assert action.command == "pglean repack -h prod -p 5433 -d shop -t public.orders"
    assert action.cost.disk_bytes == 120 * _MB
    # What is dead VACUUM makes free.
    assert none(rewriting.repack(case(heap=(160 * _MB, 100 * _MB), dead_rows=400_000)))
    # What pglean does not repack.
    view = only(rewriting.repack(case(heap=(200 * _MB, 100 * _MB), kind="m")))
    assert view.command == "VACUUM FULL public.orders;"
    assert "REFRESH MATERIALIZED VIEW public.orders does it as well (not CONCURRENTLY)" in view.notes[-1]
    unlogged = only(rewriting.repack(case(heap=(200 * _MB, 100 * _MB), persistence="u")))
    assert unlogged.command == "VACUUM FULL public.orders;"
    assert unlogged.cost.locks == view.cost.locks == "ACCESS EXCLUSIVE as long as it takes: nobody reads or writes"
    (note,) = only(rewriting.repack(case(heap=(200 * _MB, 100 * _MB), kept_by="pid 1"))).notes
    assert "dead rows are not copied" in note


def test_reindex() -> None:
    action = only(rewriting.reindex(case(index=(50 * _MB, 30 * _MB))))
    assert action.command == "pglean reindex -h prod -p 5433 -d shop -i public.orders_pkey"
    assert action.gain_bytes == 20 * _MB
    assert none(rewriting.reindex(case(index=(49 * _MB, 30 * _MB))))
    assert none(rewriting.reindex(case(index=(10 * _MB, 3 * _MB))))
    # A repack does it as well; VACUUM removes the entries of dead rows.
    assert none(rewriting.reindex(case(heap=(200 * _MB, 100 * _MB), index=(50 * _MB, 20 * _MB))))
    assert none(rewriting.reindex(case(index=(50 * _MB, 30 * _MB), dead_rows=500_000)))
    exclusion = replace(_index("orders_pkey"), exclusion=True)
    assert none(rewriting.reindex(case(index=(50 * _MB, 20 * _MB), indexes=(exclusion,))))


def test_fillfactor() -> None:
    moving: dict[str, Any] = {"updated": 400_000, "hot_updated": 250_000, "moved": 150_000}
    assert "150,000 of 400,000 updates found no room" in only(rewriting.fillfactor(case(**moving))).reason
    assert none(rewriting.fillfactor(case(**{**moving, "moved": 50_000})))
    assert none(rewriting.fillfactor(case(**{**moving, "updated": 190_000})))
    assert none(rewriting.fillfactor(case(**moving, fillfactor=80)))
    # Those that have found room are not HOT: indexed columns change.
    assert none(rewriting.fillfactor(case(**{**moving, "hot_updated": 100_000})))
    assert "none tells" in only(rewriting.fillfactor(case(**{**moving, "hot_updated": 0, "moved": 400_000}))).notes[0]
    before: dict[str, Any] = {**moving, "moved": None}
    assert none(rewriting.fillfactor(case(**before)))
    assert only(rewriting.fillfactor(case(**{**before, "hot_updated": 100_000}))).notes


def _index(name: str, *columns: str, **attributes: Any) -> IndexUse:
    keys = tuple((column, "1978", "0", "0") for column in columns)
    index = IndexUse(
        oid=hash(name),
        table_oid=1,
        schema="public",
        name=name,
        method="btree",
        columns=columns,
        keys=keys,
        expressions="",
        predicate="",
        unique=False,
        nulls_not_distinct=False,
        deferrable=False,
        exclusion=False,
        constraint=False,
        replica_identity=False,
        clustered=False,
        owned=False,
        valid=True,
        in_build=False,
        age_transactions=1_000_000,
        made=None,
        scans=1,
        tuples_read=1,
        correlation=None,
    )
    return replace(index, **attributes)


def _dropped(*indexes: IndexUse, **others: Any) -> set[str]:
    given = case(indexes=indexes, **others)
    parts = tuple(relation("index", index.name, 20 * _MB, 20 * _MB) for index in indexes)
    given = replace(given, bloat=replace(given.bloat, indexes=parts))
    return {action.command.removeprefix("DROP INDEX CONCURRENTLY public.")[:-1] for action in dropping.drop(given)}


def test_indexes_that_are_there_twice() -> None:
    assert _dropped(_index("a", "x"), _index("b", "x")) == {"b"}
    assert _dropped(_index("a", "x"), _index("b", "x", scans=9)) == {"a"}
    assert _dropped(_index("a", "x", unique=True), _index("b", "x", scans=9)) == {"b"}
    assert _dropped(_index("a", "x", unique=True, constraint=True), _index("b", "x", unique=True)) == {"b"}
    for bound in ("constraint", "replica_identity", "clustered", "owned"):
        assert _dropped(_index("a", "x", constraint=True), _index("b", "x", **{bound: True})) == set()
    others: tuple[dict[str, Any], ...] = (
        {"predicate": "p"},
        {"expressions": "e"},
        {"method": "hash"},
        {"valid": False},
    )
    for other in others:
        assert _dropped(_index("a", "x"), _index("b", "x", **other)) == set()
    assert _dropped(_index("a", "x"), _index("b", "y")) == set()


def test_indexes_whose_columns_begin_another() -> None:
    assert _dropped(_index("a", "x"), _index("b", "x", "y")) == {"a"}
    assert _dropped(_index("a", "y"), _index("b", "x", "y")) == set()
    assert _dropped(_index("a", "x", unique=True), _index("b", "x", "y")) == set()
    assert _dropped(_index("a", "x", predicate="p"), _index("b", "x", "y")) == set()
    assert _dropped(_index("a", "x", method="hash"), _index("b", "x", "y")) == set()


def test_of_a_pair_of_indexes_one_stays() -> None:
    # The longer one is the reason why the other goes; the planner could need it from then on.
    assert _dropped(_index("a", "x", scans=0), _index("b", "x", "y", scans=0)) == {"a"}
    assert _dropped(_index("a", "x", scans=0), _index("b", "x", scans=0)) == {"b"}
    # Here it is the longer one that nobody uses.
    assert _dropped(_index("a", "x", scans=1_000_000), _index("b", "x", "y", scans=0)) == {"b"}
    young: dict[str, Any] = {"counted_since": _NOW}
    assert _dropped(_index("a", "x", scans=9), _index("b", "x", "y", scans=0), settings=young) == set()
    # Of those that begin with it, the one that is used is told.
    three = (_index("a", "x", scans=9), _index("b", "x", "y", scans=0), _index("c", "x", "z", scans=9))
    assert _dropped(*three) == {"a", "b"}


def test_what_another_index_does_not_promise_stays() -> None:
    clustered = _index("a", "x", clustered=True)
    assert _dropped(clustered, _index("b", "x", unique=True)) == set()
    assert _dropped(clustered, _index("b", "x")) == {"b"}
    unique = _index("a", "x", unique=True, constraint=True)
    assert _dropped(unique, _index("b", "x", unique=True, nulls_not_distinct=True)) == set()
    assert _dropped(replace(unique, deferrable=True), _index("b", "x", unique=True)) == set()
    assert _dropped(replace(unique, deferrable=True), _index("b", "x")) == {"b"}


def test_indexes_that_nobody_uses() -> None:
    unused = _index("a", "x", scans=0)
    assert _dropped(unused) == {"a"}
    assert _dropped(unused, scans=0) == set()
    assert _dropped(replace(unused, unique=True)) == set()
    assert _dropped(replace(unused, age_transactions=10)) == set()
    young: dict[str, Any] = {"counted_since": _NOW - datetime.timedelta(days=30)}
    assert _dropped(unused, settings=young) == set()


def test_since_when_an_index_was_not_used() -> None:
    def told(index: IndexUse, **settings: Any) -> Action | None:
        given = case(indexes=(index,), settings=settings)
        parts = (relation("index", index.name, 20 * _MB, 20 * _MB),)
        found = list(dropping.drop(replace(given, bloat=replace(given.bloat, indexes=parts))))
        return found[0] if found else None

    unused = _index("a", "x", scans=0)
    action = told(unused)
    assert action is not None
    assert action.reason.endswith("was not used once since 2025-02-21")
    assert not any("promoted" in note or "standby" in note for note in action.notes)
    # A thousand transactions a second: it may have been made ten minutes ago.
    busy = told(unused, transactions_per_s=1000.0)
    assert busy is not None
    assert busy.reason.endswith("since it was made, or since 2025-02-21: when it was made is not known")
    made = told(replace(unused, made=_NOW - datetime.timedelta(days=40)), transactions_per_s=1000.0)
    assert made is not None
    assert made.reason.endswith("was not used once since 2025-04-22")
    assert told(replace(unused, made=_NOW - datetime.timedelta(days=30))) is None
    promoted = told(unused, timeline=2)
    assert promoted is not None
    assert "was promoted or restored (timeline 2)" in promoted.notes[-1]
    standby = told(unused, timeline=None, in_recovery=True)
    assert standby is not None
    assert "read on this standby alone" in standby.notes[-1]


def test_invalid_indexes() -> None:
    broken = _index("a", "x", valid=False)
    action = only(dropping.invalid(case(indexes=(broken,))))
    assert action.kind is ActionKind.INVALID_INDEX
    assert action.command == "REINDEX INDEX CONCURRENTLY public.a;"
    assert action.notes == ("if nobody needs it: DROP INDEX CONCURRENTLY public.a",)
    assert none(dropping.invalid(case(indexes=(replace(broken, in_build=True), _index("b", "x")))))
    exclusion = only(dropping.invalid(case(indexes=(replace(broken, exclusion=True),))))
    assert (exclusion.command, exclusion.notes) == ("REINDEX INDEX public.a;", ())
    left = replace(broken, name="a_ccnew1")
    action = only(dropping.invalid(case(indexes=(left, _index("a", "x")))))
    assert action.command == "DROP INDEX CONCURRENTLY public.a_ccnew1;"
    assert only(dropping.invalid(case(indexes=(left,)))).command == "REINDEX INDEX CONCURRENTLY public.a_ccnew1;"
    # A repack would be refused.
    action = only(rewriting.repack(case(heap=(160 * _MB, 100 * _MB), indexes=(broken,))))
    assert action.command == ""
    assert action.notes[-1].startswith("invalid: a; see to that first")


def test_a_repack_needs_a_superuser() -> None:
    bloated: dict[str, Any] = {"heap": (160 * _MB, 100 * _MB)}
    assert only(rewriting.repack(case(**bloated))).notes == ()
    (note,) = only(rewriting.repack(case(**bloated, settings={"superuser": False}))).notes
    assert note == "pglean repack needs a superuser, which the role is not"


def test_catalogs_are_left_to_the_server() -> None:
    def catalog(**given: Any) -> Case:
        found = case(**given)
        return replace(found, bloat=replace(found.bloat, oid=1259, schema="pg_catalog", name="pg_class"))

    action = only(rewriting.repack(catalog(heap=(160 * _MB, 100 * _MB), settings={"superuser": False})))
    assert action.command == "VACUUM FULL pg_catalog.pg_class;"
    assert action.cost.locks == cost.OFFLINE_LOCKS
    assert len(action.notes) == 1
    action = only(rewriting.reindex(catalog(index=(50 * _MB, 20 * _MB))))
    assert action.command == "REINDEX INDEX pg_catalog.orders_pkey;"
    assert action.cost.locks == cost.OFFLINE_INDEX_LOCKS
    # Nor can they be altered.
    moving: dict[str, Any] = {"updated": 400_000, "hot_updated": 250_000, "moved": 150_000}
    assert none(rewriting.fillfactor(catalog(**moving)))
    assert none(vacuuming.autovacuum(catalog(options={"autovacuum_enabled": "false"}, dead_rows=100_000, updated=1)))
    assert none(dropping.drop(catalog(indexes=(_index("orders_pkey", "x", scans=0),))))


def test_order() -> None:
    ranged = _index("orders_at_idx", "at", scans=100, tuples_read=50_000, correlation=0.1)
    action = only(rewriting.repack(case(indexes=(ranged,), fetched_by_index=50_000)))
    assert action.kind is ActionKind.REPACK_ORDER
    assert action.command == "pglean repack -h prod -p 5433 -d shop -t public.orders -o at"
    for other in (
        replace(ranged, correlation=-0.9),
        replace(ranged, correlation=None),
        replace(ranged, scans=9),
        replace(ranged, tuples_read=4_000),
        replace(ranged, method="gin"),
        replace(ranged, predicate="p"),
        replace(ranged, columns=(None,)),
    ):
        assert none(rewriting.repack(case(indexes=(other,), fetched_by_index=50_000)))
    # Index-only scans, and an index that is used more and whose order the rows have.
    assert none(rewriting.repack(case(indexes=(ranged,), fetched_by_index=100)))
    more = _index("orders_pkey", "id", scans=100, tuples_read=60_000, correlation=1.0)
    assert none(rewriting.repack(case(indexes=(ranged, more), fetched_by_index=110_000)))
    quoted = replace(ranged, columns=("Odd At", "id"))
    both = only(rewriting.repack(case(heap=(200 * _MB, 100 * _MB), indexes=(quoted,), fetched_by_index=50_000)))
    assert both.command.endswith("""-o '"Odd At", id'""")
    assert "are bloat" in both.reason


def test_freezing() -> None:
    age = Age("public.orders", 1, True, "transactions", 220_000_000, 200_000_000, 1_600_000_000, _MB)
    action = only(vacuuming.freezing([age], None))
    assert "the oldest row of its TOAST table is 220,000,000 transactions old" in action.reason
    assert not action.urgent
    assert only(vacuuming.freezing([replace(age, age=300_000_000)], None)).urgent
    assert none(vacuuming.freezing([replace(age, age=199_000_000)], None))
    assert none(vacuuming.freezing([replace(age, in_vacuum=True)], None))
    assert none(vacuuming.freezing([replace(age, oid=None)], None))
    holder = replace(_SLOT, age_transactions=210_000_000)
    (note,) = only(vacuuming.freezing([age], Hold(holder))).notes
    assert "replication slot old (210000000 transactions behind)" in note
    multixacts = only(vacuuming.freezing([replace(age, of="multixacts")], Hold(holder)))
    assert multixacts.notes == ()
    assert "the server makes no new ones" in multixacts.reason
    temporary = only(vacuuming.freezing([replace(age, temporary=True, pid=7)], Hold(holder)))
    assert (temporary.kind, temporary.command) == (ActionKind.END_HOLDER, "SELECT pg_terminate_backend(7);")
    assert only(vacuuming.freezing([replace(age, temporary=True)], None)).command == ""


_SESSION = Holder(
    Holding.SESSION, 7, "", "app", "", "shop", "active", "SELECT 1", 9, _NOW, 900.0, True, False, "client backend"
)
_PREPARED = Holder(Holding.PREPARED, None, "x", "app", "", "shop", "", None, 9, _NOW, 900.0, False, False)
_SLOT = Holder(Holding.SLOT, None, "old", None, "", None, "physical", None, 9, None, None, False, False)


def test_only_a_session_of_this_database_is_ended_by_a_command() -> None:
    action = vacuuming.ended(Hold(_SESSION), "shop", 0)
    assert action.command == "SELECT pg_terminate_backend(7);"
    assert action.notes == ("look first whose it is: what was not committed is lost",)
    elsewhere = vacuuming.ended(Hold(_SESSION), "other", 0)
    assert (elsewhere.command, elsewhere.notes) == ("", action.notes)
    assert "to end it: end its transaction in database shop" in elsewhere.reason
    for holder in (_PREPARED, _SLOT, replace(_SLOT, state="logical"), replace(_SLOT, active=True)):
        action = vacuuming.ended(Hold(holder), "shop", 0)
        assert action.command == ""
        assert f"; to end it: {holder.end('shop')}" in action.reason
        assert not holder.end("shop").endswith(";")


@pytest.mark.parametrize(
    ("session", "words"),
    [
        ({"backend_type": "autovacuum worker"}, "until autovacuum is done"),
        ({"application_name": "pglean copy"}, "until that run of pglean is done"),
        ({"application_name": "pg_dump"}, "until the dump is done"),
        ({"query": "create unique index  concurrently i on t (x)"}, "until the index is built"),
        ({"query": "REINDEX (VERBOSE) TABLE CONCURRENTLY t"}, "until the index is built"),
        ({"query": "REINDEX TABLE t"}, ""),
        ({"query": "REINDEX TABLE CONCURRENTLY t", "state": "idle in transaction"}, ""),
    ],
)
def test_who_is_better_waited_for(session: dict[str, Any], words: str) -> None:
    holder = replace(_SESSION, **session)
    action = vacuuming.ended(Hold(holder), "shop", 0)
    assert (action.command == "") == bool(words)
    assert words in action.reason
    assert bool(action.notes) != bool(words)


_VACUUM = Vacuum(
    pid=7,
    database="shop",
    table="public.orders",
    oid=1,
    automatic=True,
    to_prevent_wraparound=True,
    elapsed_s=12.0,
    phase="scanning heap",
    heap_bytes=100 * _MB,
    scanned_bytes=25 * _MB,
    removed_bytes=0,
    passes=0,
    indexes=0,
    indexes_done=0,
    dead_rows=0,
    dead_bytes=32 * _MB,
    max_dead_rows=None,
    max_dead_bytes=64 * _MB,
)


def test_a_running_vacuum_in_words() -> None:
    assert words(_VACUUM) == (
        "autovacuum of public.orders (pid 7), to prevent wraparound: scanning heap, 25% of the heap scanned;"
        " its memory for dead rows is 50% full; 2 passes are to be expected"
    )
    second = replace(_VACUUM, passes=1, scanned_bytes=75 * _MB)
    assert "pass 1 over the indexes done" in words(second)
    assert words(second).endswith("each pass reads all indexes: with more memory one would do")
    assert second.too_little_memory
    vacuuming_indexes = replace(_VACUUM, phase="vacuuming indexes", indexes=5, indexes_done=2)
    assert "2 of 5 indexes done; in pass 1 over the indexes" in words(vacuuming_indexes)
    assert not vacuuming_indexes.too_little_memory
    assert words(replace(_VACUUM, phase="", table="", automatic=False, to_prevent_wraparound=False)) == (
        "VACUUM of a table of database shop (pid 7): what it does the role may not see"
    )
    array = replace(_VACUUM, max_dead_bytes=None, max_dead_rows=100, dead_rows=25)
    assert array.memory_share == 0.25
    seen = only(vacuuming.seen(case(), second))
    assert "is at pass 2" in seen.reason
    assert seen.steps[0] == "ALTER SYSTEM SET autovacuum_work_mem = '154MB';"


def test_a_running_vacuum_is_given_more_memory_than_it_has() -> None:
    second = replace(_VACUUM, automatic=False, passes=1, scanned_bytes=75 * _MB)
    assert only(vacuuming.seen(case(), second)).steps == (
        "SET maintenance_work_mem = '154MB';",
        "VACUUM public.orders;",
    )
    # Its own session has set less than the server.
    more = only(vacuuming.seen(case(settings={"maintenance_bytes": 512 * _MB}), second))
    assert more.commands == ("VACUUM public.orders;",)
    assert "512 MB by now" in more.notes[-1]
    array = replace(second, max_dead_bytes=None, max_dead_rows=(1 << 30) // 6, passes=3)
    assert none(vacuuming.seen(case(), array))
    large = replace(second, max_dead_bytes=3 << 30, passes=5)
    capped = only(vacuuming.seen(case(settings={"version": 170000}), large))
    assert capped.steps[0] == "SET maintenance_work_mem = '4096MB';"
    assert re.fullmatch(r"about \d passes instead of \d", capped.gain)
    assert none(vacuuming.seen(case(settings={"version": 170000}), replace(large, max_dead_bytes=4 << 30)))


def test_no_more_rows_are_dead_than_the_file_holds() -> None:
    assert replace(_ACTIVITY, dead_rows=1e6).within(28_000).dead_rows == 1000
    assert replace(_ACTIVITY, dead_rows=10.0).within(28_000).dead_rows == 10


def test_costs() -> None:
    assert cost.of_repack(64 * _MB, 16 * _MB).seconds == 2
    assert cost.of_vacuum(128 * _MB, 128 * _MB, 3).seconds == 4
    assert cost.of_reindex(128 * _MB, 32 * _MB, 2).seconds == 4
    assert cost.of_analyze(1 << 40, 8192).seconds == pytest.approx(1.83, abs=0.01)


def test_the_most_urgent_comes_first() -> None:
    given = [
        Action(ActionKind.NOTHING, "a", ""),
        Action(ActionKind.DROP_INDEX, "b", "", gain_bytes=9),
        Action(ActionKind.VACUUM, "c", "", gain_bytes=1),
        Action(ActionKind.REPACK, "d", "", gain_bytes=2),
        Action(ActionKind.END_HOLDER, "", ""),
        Action(ActionKind.FREEZE, "e", "", urgent=True),
    ]
    assert [action.kind for action in sorted(given, key=lambda action: action.rank)] == [
        ActionKind.FREEZE,
        ActionKind.END_HOLDER,
        ActionKind.REPACK,
        ActionKind.VACUUM,
        ActionKind.DROP_INDEX,
        ActionKind.NOTHING,
    ]
