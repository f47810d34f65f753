"""Levers of what comes between the copy and the swap, and after it: index builds, VACUUM, ANALYZE."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Final

from copying import builds, copies
from lever import SECONDS, WAL, Figures, Lever, Way
from refreshing import refresh
from result import Metric
from workbench import COPIED, FROZEN, INDEXES, ORDERS, RECORDED, SHADOW, Workbench, build, statements

_FREEZE: Final = f"VACUUM (FREEZE, TRUNCATE false) {SHADOW}"


# ---- builds


def _at_once(bench: Workbench, *, memory: str) -> Figures:
    bench.again(FROZEN)
    return bench.timed(*builds(), settings={"maintenance_work_mem": memory}).figures


def _in_turn(bench: Workbench, *, memory: str, helpers: int) -> Figures:
    bench.again(FROZEN)
    settings = {"maintenance_work_mem": memory, "max_parallel_maintenance_workers": str(helpers)}
    return bench.timed(statements(*map(build, INDEXES)), settings=settings).figures


BUILDS: Final = Lever(
    "builds",
    "Three indexes: several builds at once, or one after the other with helpers? How much does memory give?",
    (SECONDS, WAL),
    tuple(
        Way(name, partial(way, memory=memory), f"maintenance_work_mem {memory}")
        for memory in ("64MB", "256MB")
        for name, way in (
            ("two at once, without helpers (pglean)", _at_once),
            ("in turn, two helpers", partial(_in_turn, helpers=2)),
            ("in turn, without helpers", partial(_in_turn, helpers=0)),
        )
    ),
    "Several at once, the one with most work first, without helpers: sorting and loading the tree are one"
    " process's work, helpers only read and sort their parts. A single index gets helpers, as the server is"
    " configured. Memory is left to the user's maintenance_work_mem: here both amounts hold all that is sorted;"
    " several builds at once take as many times of it.",
)


# ---- freeze


def _frozen(bench: Workbench, *, when: str, refreshed: bool) -> Figures:
    bench.fresh(RECORDED if refreshed else COPIED)
    if refreshed:
        bench.timed(statements(*refresh()))
    with bench.full_pages() if when == _MUCH_LATER else contextlib.nullcontext():
        vacuum, build_all = partial(bench.timed, statements(_FREEZE)), partial(bench.timed, *builds())
        if when == _BEFORE:
            vacuumed, built = vacuum(), build_all()
        else:
            built = build_all()
            if when == _MUCH_LATER:
                bench.checkpoint()
            vacuumed = vacuum()
    return {
        "seconds": vacuumed.seconds + built.seconds,
        "vacuum_s": vacuumed.seconds,
        "wal_mb": (vacuumed.wal_bytes + built.wal_bytes) / 1e6,
    }


_BEFORE, _LATER, _MUCH_LATER = "before (pglean)", "later", "later, after a checkpoint"

FREEZE: Final = Lever(
    "freeze",
    "VACUUM (FREEZE) of the copy before its indexes are built, or, as a server does after pg_repack, later?",
    (Metric("seconds", "VACUUM and builds, s", 2), Metric("vacuum_s", "VACUUM alone, s", 2), WAL),
    tuple(
        Way(when, partial(_frozen, when=when, refreshed=refreshed), case)
        for case, refreshed in (("nothing was written meanwhile", False), ("a tenth of the keys was refreshed", True))
        for when in (_BEFORE, _LATER, _MUCH_LATER)
    ),
    "Before: what is dead in the copy goes while there are no indexes that would have to be read for it, and the"
    " swap leaves a table whose index-only scans need no heap. Where nothing was written it saves no time. Later"
    " it takes longer where rows were refreshed, and after the next checkpoint each page is logged as a whole,"
    " which is more WAL than all indexes are. With two workers a part of it is done while the last third is"
    " copied.",
)


# ---- analyze


def _rest(bench: Workbench) -> Figures:
    bench.again(ORDERS)
    costs = [bench.timed(*copies(bench, 2)), bench.timed(statements(_FREEZE)), bench.timed(*builds())]
    return {
        "seconds": sum(cost.seconds for cost in costs),
        "wal_mb": sum(cost.wal_bytes for cost in costs) / 1e6,
    }


def _analyzed(bench: Workbench, *, target: int) -> Figures:
    bench.again(FROZEN)
    return bench.timed(
        statements(f"ANALYZE {SHADOW}"), flushed=False, settings={"default_statistics_target": str(target)}
    ).figures


ANALYZE: Final = Lever(
    "analyze",
    "What is the share of ANALYZE in a run, and can it be spared?",
    (SECONDS, WAL),
    (
        Way("copy, VACUUM (FREEZE), index builds", _rest),
        Way("ANALYZE, default_statistics_target 100", partial(_analyzed, target=100)),
        Way("ANALYZE, default_statistics_target 1000", partial(_analyzed, target=1000)),
    ),
    "Always done, at the end, beside the removal of the old files: columns keep their statistics through the"
    " swap, but correlations of a sorted rewrite, and the numbers of pages and rows, are new, and autovacuum"
    " learns that nothing is dead. No rule spares it after a recent ANALYZE: it reads a sample, so that its share"
    " shrinks as tables grow, save where somebody has raised the statistics target. The applications have the new"
    " table before it begins. -Z skips it.",
)
