"""The order of things: the only orchestrator. Phases are data; it holds no SQL.

Each step runs in its phase, whose number is persisted on entry. A run that is resumed enters the same sequence further
down; a step that cannot be finished now (`GoBack`) sends it back up. Whatever ends a run, `ending` decides what becomes
of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import errors as pg

from pglean import capture, catalog, disk
from pglean.blockers import Mode
from pglean.claim import held
from pglean.engines import repair
from pglean.errors import CaptureGap, IndexesChanged, LockNotObtained, TableChanged, UsageError
from pglean.locks import OverBudget, locked, patiently
from pglean.options import Capture, InvalidIndexes, Options
from pglean.patience import Patience
from pglean.progress import Callback, Progress, Reporter
from pglean.result import RelationSize, Result
from pglean.rewrite import (
    adopt,
    catchup,
    cleanup,
    copy,
    ending,
    images,
    indexes,
    preflight,
    ready,
    refresh,
    schema,
    shadow,
    swap,
    verify,
)
from pglean.rewrite import job as jobs
from pglean.rewrite.courtesy import Courtesy
from pglean.rewrite.flush import Flush
from pglean.rewrite.phase import RESUMES_WITH, Phase
from pglean.rewrite.plan import Plan
from pglean.rewrite.run import GoBack, Run, Workers
from pglean.rewrite.watch import watching
from pglean.server import Server
from pglean.session import Connection, scalar, transaction
from pglean.sql import query
from pglean.throttle import Throttle
from pglean.version import __version__

#: How often a copy is begun again after somebody switched our triggers off for a moment.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Step:
    """A phase and what is done in it."""

    phase: Phase
    act: Callable[[Run], object]
    #: Whether much is written in it.
    writes: bool = False


# ---- what is done in each phase


def _capture(run: Run) -> None:
    """Shadow and change table first, with no lock on the table; then the triggers, under a moment's lock.

    The transaction that switches the triggers on enters phase `copying` itself.
    Locks: SHARE ROW EXCLUSIVE on the table. Killed: the row in pglean.job names whatever is there.
    """
    conn = run.control

    def prepare() -> None:
        with transaction(conn):
            # Nobody may end the run in the middle of this: what is made after that would never be found again.
            jobs.lock_ours(conn, run.job)
            run.capture.prepare(conn)
            shadow.create(conn, run.job)
            indexes.create(conn, run.job)

    run.again(prepare)
    _start_capture(run, None)
    run.reach("capture: prepared")
    patience = run.patience()
    while True:
        try:
            with locked(run.server, conn, run.table, Mode.SHARE_ROW_EXCLUSIVE, patience):
                catalog.check_fingerprint(conn, run.table, run.job.fingerprint)
                run.capture_identity = run.capture.switch_on(conn)
                # Read while no writer is under way: whatever is added behind the last block is recorded.
                sorting = run.job.order
                run.pieces = catalog.blocks(conn, run.table.oid) if sorting is None else sorting.pieces
                jobs.record_capture(conn, run.job.id, run.capture_identity, run.pieces)
                jobs.enter(conn, run.job, Phase.COPYING)
                run.reach("capture: before the commit")
        except OverBudget as error:
            patience.pause(run.table, Mode.SHARE_ROW_EXCLUSIVE, str(error), ())
            continue
        run.captured_at = time.monotonic()
        return


def _start_capture(run: Run, identity: object) -> None:
    run.capture.start(run.control, run.patience(), partial(jobs.lock_ours, run.control, run.job), identity)


def _index(run: Run) -> None:
    """Refresh while there are no indexes yet, freeze what is there, then build them."""
    if run.table.key is None:
        images.index(run)
    refresh.before_indexes(run)
    shadow.freeze(run)
    indexes.run(run)


def _verify(run: Run) -> None:
    refresh.round_(run, then=partial(verify.compare, run))


def _swap(run: Run) -> None:
    """Try until the rest fits the budget and the lock is there; enters phase `cleaning` itself, in its transaction."""
    patience = run.patience()

    def between() -> None:
        ready.check_window(run)
        catchup.once(run)

    while True:
        try:
            ready.wait_for_indexes(run, patience)
            ready.wait_for_snapshots(run, patience)
            swap.attempt(run, patience, between=between)
        except OverBudget as error:
            patience.pause(run.table, Mode.ACCESS_EXCLUSIVE, str(error), ())
            ready.check_window(run)
            with patience.elsewhere():
                catchup.drain(run)
            continue
        return


def _clean(run: Run) -> None:
    """Statistics, and drop the old files and all helpers; at the same time, for neither is in the way of the other.

    ANALYZE also tells autovacuum that no dead rows are left. Where one comes after the other it is the first: it is
    hardly felt, but was when it came upon all that had waited for the files to be truncated.
    """
    run.capture.close()
    tasks = [_analyze, _drop] if run.job.options.analyze else [_drop]
    take = run.workers.in_turn if run.crowded else run.workers.each
    take(tasks, lambda conn, _, task: task(run, conn))


def _drop(run: Run, conn: Connection) -> None:
    run.purpose(conn, "cleanup")

    def between() -> None:
        run.reach("cleanup: before a drop")
        run.give_way(conn)

    remains = cleanup.remove(run.server, conn, run.job.id, run.patience(), between=between)
    if remains:
        raise LockNotObtained(f"could not remove all that the run on {run.table.qualified_name} needed")


def _analyze(run: Run, conn: Connection) -> None:
    run.purpose(conn, "analyze")
    run.give_way(conn)
    run.reach("analyze")
    try:
        jobs.analyze(conn, run.table)
    except psycopg.Error as error:
        run.server.check()
        # The table is repacked; that its statistics are to come is told, and autovacuum will see to it.
        run.reporter.message(f"could not analyze {run.table.qualified_name}: {str(error).strip()}")


STEPS = (
    Step(Phase.CAPTURING, _capture),
    Step(Phase.COPYING, copy.run, writes=True),
    Step(Phase.INDEXING, _index, writes=True),
    Step(Phase.CATCHING_UP, catchup.run),
    Step(Phase.VERIFYING, _verify),
    Step(Phase.READY, ready.run),
    Step(Phase.SWAPPING, _swap),
    Step(Phase.CLEANING, _clean),
)

_POSITION: Final = {step.phase: position for position, step in enumerate(STEPS)}


# ---- a run


def repack(
    server: Server, oid: int, options: Options, on_progress: Callback | None = None, *, only: int | None = None
) -> Result:
    """Rewrite one table online; a run on it that was interrupted or kept is gone on with.

    With `only`, that run is all that was asked for: where it cannot be gone on with because the table is another now,
    it is undone, and no other is begun.

    Locks taken on it: ACCESS SHARE per chunk and refresh; SHARE ROW EXCLUSIVE and ACCESS EXCLUSIVE for a moment each.
    Raises the errors of `pglean.errors`, which say what has become of the run (`ending`).
    """
    if only is not None:
        # What has become invalid since the run began is none of what its options were given for.
        options = replace(options, invalid_indexes=InvalidIndexes.REFUSE)
    if options.invalid_indexes is not InvalidIndexes.REFUSE:
        # Whatever else refuses the run does so before an index is touched.
        preflight.plan(server, oid, options)
        repair.repair(server, oid, options, on_progress)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _repack(server, oid, options, on_progress, only)
        except (CaptureGap, IndexesChanged) as gap:
            # What was copied is worth nothing; what remains to be done is the same as before.
            if attempt == _ATTEMPTS:
                raise
            if on_progress is not None:
                on_progress(Progress(0, "", "planned", message=f"{gap.message}: the run begins again"))
    raise AssertionError("unreachable")


def resume(
    server: Server, job_id: int, changes: dict[str, Any] | None = None, on_progress: Callback | None = None
) -> Result | None:
    """Go on with a run that was interrupted or kept; None where it only had to be finished.

    With its own options, but for `changes`, which are the run's from then on.
    Raises `UsageError` where there is no such run, or it is over; else what `repack` raises.
    """
    with server.connect("resume") as conn:
        stored = jobs.load(conn, job_id) if schema.present(conn) else None
        if stored is None or stored.phase.over:
            raise UsageError(
                f"there is no run {job_id} to be resumed",
                hint=f"{server.command('status')} lists those that are not over, {server.command('log')} the others.",
            )
        if stored.phase.swapped:
            _finish(server, conn, job_id)
            return None
        if not stored.options.outlives_process:
            raise UsageError(
                f"run {job_id} cannot be gone on with: it read a replication slot that ended with its process",
                hint=f"`pglean repack` begins anew; {server.command('cleanup')} undoes it."
                " With --max-slot-wal such runs are kept.",
            )
        if stored.state == "remains":
            raise UsageError(
                f"run {job_id} was undone, but for what could not be removed", hint=f"Run {server.command('cleanup')}."
            )
        if not scalar(conn, query("catalog.exists"), {"oid": stored.relation}):
            _finish(server, conn, job_id)
            raise TableChanged(f"table {stored.table} was dropped: run {job_id} is undone")
    return repack(server, stored.relation, replace(stored.options, **(changes or {})), on_progress, only=job_id)


def _finish(server: Server, conn: Connection, job_id: int) -> None:
    swept = cleanup.sweep(server, conn, ending.patience(server, Options()), lambda run: run.id == job_id)
    if not swept and jobs.state_of(conn, job_id) not in ("done", "undone"):
        raise LockNotObtained(f"a session still works on run {job_id}", hint=f"See {server.command('status')}.")
    for status, remains in swept:
        if remains:
            raise LockNotObtained(
                f"could not remove all that run {status.id} needed", detail=f"Still there: {'; '.join(remains)}."
            )


def _repack(server: Server, oid: int, options: Options, on_progress: Callback | None, only: int | None) -> Result:
    started = time.monotonic()
    with server.connect("watch") as keeper, held(keeper, oid) as ours, server.connect("run") as control:
        plan = preflight.make(server, keeper, oid, options, busy=not ours)
        if schema.ensure(control):
            plan = preflight.make(server, keeper, oid, options, busy=False)
        space = disk.of_tablespaces(control, plan.disk_bytes_by_tablespace)
        sizes_before = _sizes(server, control, oid, ending.patience(server, options))
        wal_before = int(scalar(control, query("report.wal_bytes")))
        job, first, identity, pieces = _begin(server, keeper, control, plan, on_progress, only)
        reporter = Reporter(job.id, job.table.qualified_name, on_progress)
        for warning in plan.warnings:
            reporter.message(f"warning: {warning}")
        if plan.capture_reason:
            reporter.message(plan.capture_reason)
        try:
            with _workers(server, job, control, reporter) as run:
                run.capture_identity, run.pieces = identity, pieces
                phases = _walk(run, keeper, Throttle(options, space), first)
            result = Result(
                job=job.id,
                table=job.table.qualified_name,
                rows=run.rows,
                sizes=_compare(sizes_before, _sizes(server, control, oid, run.patience())),
                exclusive_lock_ms=round(run.exclusive_lock_ms, 1),
                wal_bytes=int(scalar(control, query("report.wal_bytes"))) - wal_before,
                changes_applied=reporter.state.changes_applied,
                frozen=run.frozen,
                elapsed_s=round(time.monotonic() - started, 3),
                phases={name: round(seconds, 3) for name, seconds in phases.items()},
                verify=options.verify.value,
                capture=(job.options.capture or Capture.TRIGGER).value,
            )
            jobs.finish(control, job.id, "done", result=result.as_json())
        except BaseException as error:
            # Whatever state an interruption has left the sessions in, their locks must be gone before undoing.
            control.close()
            keeper.close()
            told = ending.end(server, job, error)
            if told is error:
                raise
            raise told from error
    reporter.phase("done")
    return result


def _begin(
    server: Server,
    keeper: Connection,
    control: Connection,
    plan: Plan,
    on_progress: Callback | None,
    only: int | None,
) -> tuple[jobs.Job, Phase, object, int]:
    """A new run, or the one that is there already: the job, its first phase, its capture, the pieces to be copied.

    On entry: `keeper` has the claim on the table, so nobody else works on it.
    """
    table = plan.table

    def tell(text: str, *, informational: bool = False) -> None:
        if on_progress is not None:
            on_progress(Progress(0, table.qualified_name, "planned", message=text, informational=informational))

    if (kept := plan.kept) is not None:
        try:
            epoch = jobs.revive(keeper, control, kept, plan.options, __version__)
        except pg.LockNotAvailable as error:
            raise LockNotObtained(f"a session of run {kept.id} is still at work") from error
        tell(f"goes on with run {kept.id}, which had come to {kept.phase.label}", informational=True)
        # Its own order, by which the rest is copied as well.
        job = jobs.Job(kept.id, table, plan.options, kept.fingerprint, kept.order, epoch)
        return job, RESUMES_WITH[kept.phase], kept.capture, kept.pieces or 0
    changed: list[str] = []
    found = jobs.resumable(control, table.oid)
    if found is not None and (stored := jobs.load(control, found)) is not None:
        changed = catalog.changed_parts(stored.fingerprint, plan.fingerprint)
        if changed:
            tell(f"run {found} is undone, for the table was changed since ({', '.join(changed)})")
    patience = ending.patience(server, plan.options)
    cleanup.sweep(server, keeper, patience, lambda run: run.relation == table.oid)
    if found is not None and found == only and changed:
        raise TableChanged(
            f"run {found} cannot be gone on with: its table was changed since, or is another now",
            detail=f"Changed: {', '.join(changed)}.",
            hint="What it had done is undone; `pglean repack` begins anew.",
        )
    job = jobs.create(control, table, plan.options, plan.fingerprint, plan.order, __version__)
    return job, Phase.CAPTURING, None, 0


@contextlib.contextmanager
def _workers(server: Server, job: jobs.Job, control: Connection, reporter: Reporter) -> Iterator[Run]:
    with contextlib.ExitStack() as stack:
        conns = [
            stack.enter_context(server.connect(f"{job.id} {job.table.name} worker")) for _ in range(job.options.jobs)
        ]
        run: Run | None = None

        def tick() -> None:
            if run is not None:
                run.tick()

        def halt() -> None:
            if run is not None:
                run.halt()

        workers = Workers(server, conns, tick, halt)
        stack.callback(workers.close)
        recording = capture.of(server, job.table, job.id, job.options)
        stack.callback(recording.close)
        run = Run(server, job, control, workers, recording, reporter)
        yield run


def _walk(run: Run, keeper: Connection, throttle: Throttle, first: Phase) -> dict[str, float]:
    """All steps in their order, from `first` on; returns the seconds of each."""
    seconds: dict[str, float] = {}
    if first is not Phase.CAPTURING:
        first = _revive(run, first)
    position = _POSITION[first]
    watched = False
    purpose = f"{run.job.id} {run.table.name} flush"
    flushing = Flush(run.server, purpose, throttled=lambda: run.gate.reason, tell=run.reporter.message)
    with flushing as flush, contextlib.ExitStack() as watch:
        while position < len(STEPS):
            step = STEPS[position]
            if step.phase is Phase.CLEANING:
                watch.close()
                # There is no way back, and what is left is no work to be paused.
                run.pause = None
            elif (step.phase.worth_keeping or run.capture.lags) and not watched:
                watch.enter_context(watching(run, keeper, throttle))
                watched = True
            started = time.monotonic()
            (flush.busy.set if step.writes else flush.busy.clear)()
            position = _take(run, step)
            seconds[step.phase.label] = seconds.get(step.phase.label, 0.0) + time.monotonic() - started
    return seconds


def _revive(run: Run, first: Phase) -> Phase:
    """What a run that is gone on with must know; returns the phase in which it does."""
    run.captured_at = time.monotonic()
    run.twins = jobs.twins(run.control, run.job.id)
    _start_capture(run, run.capture_identity)
    if news := adopt.revive(run):
        run.reporter.message(news)
    # Made meanwhile, or taken up by a run that was killed before it came to building it.
    missing = any(index.oid not in run.twins for index in run.table.indexes)
    return min(first, Phase.INDEXING) if missing else first


def _take(run: Run, step: Step) -> int:
    """Do a step; returns the position of the one that comes next."""
    if step.phase is not Phase.CLEANING:
        jobs.enter(run.control, run.job, step.phase)
    run.courtesy = Courtesy(run.server)
    run.reporter.phase(step.phase.label)
    run.reach(f"phase: {step.phase.label}")
    try:
        run.halt()
        step.act(run)
    except GoBack as back:
        run.reporter.message(str(back))
        return _POSITION[back.phase]
    except IndexesChanged:
        if step.phase is Phase.CAPTURING:
            raise
        run.reporter.message(adopt.take_up(run))
        return min(_POSITION[step.phase], _POSITION[Phase.INDEXING])
    return _POSITION[step.phase] + 1


# ---- figures


def _sizes(server: Server, conn: Connection, oid: int, patience: Patience) -> list[tuple[str, str, int]]:
    def read() -> list[tuple[str, str, int]]:
        return [(kind, name, int(size)) for kind, name, size in conn.execute(query("report.sizes"), {"oid": oid})]

    return patiently(server, conn, oid, patience, read)


def _compare(before: list[tuple[str, str, int]], after: list[tuple[str, str, int]]) -> tuple[RelationSize, ...]:
    def by_name(rows: list[tuple[str, str, int]]) -> dict[tuple[str, str], int]:
        return {(kind, "" if kind == "toast" else name): size for kind, name, size in rows}

    old, new = by_name(before), by_name(after)
    return tuple(
        RelationSize(kind, name, old.get((kind, name), 0), new.get((kind, name), 0))
        for kind, name in dict.fromkeys([*old, *new])
    )
