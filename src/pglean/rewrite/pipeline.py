"""The order of things: the only orchestrator. Phases are data; it holds no SQL.

Each step runs in its phase, whose number is persisted on entry. Whatever ends a run (an error, Ctrl-C, a lost
connection), the same `undo` follows: it finds what the run has made by the run's number, in a session of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psycopg

from pglean import catalog, pausepoint
from pglean.capture.trigger import TriggerCapture
from pglean.errors import CaptureGap, ConnectionLost, LockNotObtained, PgleanError, Refused
from pglean.locks import Mode, OverBudget, Patience, Policy, claim, claimed, locked
from pglean.options import Options
from pglean.progress import Callback, Progress, Reporter
from pglean.result import RelationSize, Result
from pglean.rewrite import catchup, checks, cleanup, copy, indexes, refresh, shadow, swap, verify
from pglean.rewrite import job as jobs
from pglean.rewrite.phase import Phase
from pglean.rewrite.plan import Plan
from pglean.rewrite.run import Run, Workers
from pglean.rewrite.watch import watching
from pglean.server import Connection, Server, scalar, transaction, translate
from pglean.sql import query
from pglean.version import __version__

#: How often a copy is begun again after somebody switched our triggers off for a moment.
_ATTEMPTS = 3
#: How long an undo tries to reach a server that is restarting, and to get the lock for dropping triggers, in seconds.
_RECONNECT_S, _UNDO_WAIT_S = 30.0, 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """A phase and what is done in it."""

    phase: Phase
    act: Callable[[Run], object]


# ---- what is done in each phase


def _capture(run: Run) -> None:
    """Shadow and change table first, with no lock on the table; then the triggers, under a moment's lock.

    Locks: SHARE ROW EXCLUSIVE on the table. Killed: the row in pglean.job names whatever is there.
    """
    conn = run.control

    def prepare() -> None:
        with transaction(conn):
            run.capture.prepare(conn)
            shadow.create(conn, run.job)
            indexes.create(conn, run.job)

    run.again(prepare)
    run.reach("capture: prepared")
    patience = run.patience()
    while True:
        try:
            with locked(run.server, conn, run.table, Mode.SHARE_ROW_EXCLUSIVE, patience):
                catalog.check_fingerprint(conn, run.table, run.job.fingerprint)
                run.capture_identity = run.capture.switch_on(conn)
                # Read while no writer is under way: whatever is added behind this block is recorded.
                run.blocks = catalog.blocks(conn, run.table.oid)
                jobs.record_capture(conn, run.job.id, run.capture_identity, run.blocks)
                run.reach("capture: before the commit")
        except OverBudget as error:
            patience.pause(run.table, Mode.SHARE_ROW_EXCLUSIVE, str(error), ())
            continue
        run.captured_at = time.monotonic()
        return


def _index(run: Run) -> None:
    """Refresh while there are no indexes yet, freeze what is there, then build them."""
    refresh.before_indexes(run)
    shadow.freeze(run)
    indexes.run(run)


def _verify(run: Run) -> None:
    refresh.round_(run, then=partial(verify.compare, run))


def _swap(run: Run) -> None:
    """Try until the rest fits the budget and the lock is there; enters phase `cleaning` itself, in its transaction."""
    patience = run.patience()
    while True:
        try:
            swap.attempt(run, patience, between=lambda: catchup.once(run))
        except OverBudget as error:
            patience.pause(run.table, Mode.ACCESS_EXCLUSIVE, str(error), ())
            catchup.drain(run)
            continue
        return


def _clean(run: Run) -> None:
    """Drop the old files and all helpers; at the same time statistics, which neither is in the way of.

    ANALYZE also tells autovacuum that no dead rows are left.
    """
    tasks = [_drop, _analyze] if run.job.options.analyze else [_drop]
    take = run.workers.in_turn if run.crowded else run.workers.each
    take(tasks, lambda conn, _, task: task(run, conn))


def _drop(run: Run, conn: Connection) -> None:
    run.purpose(conn, "cleanup")
    remains = cleanup.remove(run.server, conn, run.job.id, run.patience())
    if remains:
        raise LockNotObtained(f"could not remove all that the run on {run.table.qualified_name} needed")


def _analyze(run: Run, conn: Connection) -> None:
    run.purpose(conn, "analyze")
    run.reach("analyze")
    try:
        jobs.analyze(conn, run.table)
    except psycopg.Error as error:
        run.server.check()
        # The table is repacked; that its statistics are to come is told, and autovacuum will see to it.
        run.reporter.message(f"could not analyze {run.table.qualified_name}: {str(error).strip()}")


STEPS = (
    Step(Phase.CAPTURING, _capture),
    Step(Phase.COPYING, copy.run),
    Step(Phase.INDEXING, _index),
    Step(Phase.CATCHING_UP, catchup.run),
    Step(Phase.VERIFYING, _verify),
    Step(Phase.READY, catchup.drain),
    Step(Phase.SWAPPING, _swap),
    Step(Phase.CLEANING, _clean),
)


# ---- a run


def preflight(server: Server, oid: int, options: Options) -> Plan:
    """What would be done; raises `Refused` with all findings where something stands in the way. Touches nothing."""
    with server.connect("preflight") as conn:
        return _plan(server, conn, oid, options, busy=claimed(conn, oid))


def _plan(server: Server, conn: Connection, oid: int, options: Options, *, busy: bool) -> Plan:
    # The fingerprint comes first: what is changed after it will be noticed.
    fingerprint = catalog.fingerprint(conn, oid)
    table = catalog.load(conn, oid)
    findings = checks.run(checks.gather(conn, server.capabilities, table, busy=busy))
    fatal = [finding for finding in findings if finding.fatal]
    if fatal or fingerprint is None:
        raise Refused(table.qualified_name, fatal)
    return Plan(table, options, fingerprint, tuple(finding for finding in findings if not finding.fatal))


def repack(server: Server, oid: int, options: Options, on_progress: Callback | None = None) -> Result:
    """Rewrite one table online.

    Locks taken on it: ACCESS SHARE per chunk and refresh; SHARE ROW EXCLUSIVE and ACCESS EXCLUSIVE for a moment each.
    Raises the errors of `pglean.errors`; whatever is raised, nothing of the run is left but its row, or the error
    says what is.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _repack(server, oid, options, on_progress)
        except CaptureGap as gap:
            # What was copied is worth nothing; what remains to be done is the same as before.
            if attempt == _ATTEMPTS:
                raise
            if on_progress is not None:
                on_progress(Progress(0, "", "planned", message=f"{gap.message}: the run begins again"))
    raise AssertionError("unreachable")


def _repack(server: Server, oid: int, options: Options, on_progress: Callback | None) -> Result:
    started = time.monotonic()
    with server.connect("watch") as keeper, server.connect("run") as control:
        plan = _plan(server, keeper, oid, options, busy=not claim(keeper, oid))
        table = plan.table
        jobs.ensure_schema(control)
        cleanup.sweep(server, keeper, _patience(server, options), relation=oid)
        sizes_before = _sizes(control, oid)
        wal_before = int(scalar(control, query("report.wal_bytes")))
        job = jobs.create(control, table, options, plan.fingerprint, __version__)
        reporter = Reporter(job.id, table.qualified_name, on_progress)
        for warning in plan.warnings:
            reporter.message(f"warning: {warning}")
        try:
            with _workers(server, job, control, reporter) as run:
                phases = _walk(run, keeper)
            result = Result(
                job=job.id,
                table=table.qualified_name,
                rows=run.rows,
                sizes=_compare(sizes_before, _sizes(control, oid)),
                exclusive_lock_ms=round(run.exclusive_lock_ms, 1),
                wal_bytes=int(scalar(control, query("report.wal_bytes"))) - wal_before,
                changes_applied=reporter.state.changes_applied,
                frozen=run.frozen,
                elapsed_s=round(time.monotonic() - started, 3),
                phases={name: round(seconds, 3) for name, seconds in phases.items()},
                verify=options.verify.value,
            )
            jobs.finish(control, job.id, "done", result=result.as_json())
        except BaseException as error:
            # Whatever state an interruption has left the sessions in, their locks must be gone before undoing.
            control.close()
            keeper.close()
            told = _end(server, job, error, options)
            if told is error:
                raise
            raise told from error
        reporter.phase("done")
        return result


def _patience(server: Server, options: Options, limit_s: float | None = None) -> Patience:
    policy = Policy.of(options)
    if limit_s is not None:
        policy = replace(policy, wait_timeout_s=min(policy.wait_timeout_s, limit_s), kill_backend=False)
    return Patience(server, policy, lambda _: None)


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

        workers = Workers(server, conns, tick)
        stack.callback(workers.close)
        run = Run(server, job, control, workers, TriggerCapture(job.table, job.id), reporter)
        yield run


def _walk(run: Run, keeper: Connection) -> dict[str, float]:
    """All steps in their order; returns the seconds of each."""
    phases: dict[str, float] = {}

    def take(steps: Sequence[Step]) -> None:
        for step in steps:
            if step.phase is not Phase.CLEANING:
                jobs.enter(run.control, run.job.id, step.phase)
            run.reporter.phase(step.phase.label)
            run.reach(f"phase: {step.phase.label}")
            started = time.monotonic()
            step.act(run)
            phases[step.phase.label] = time.monotonic() - started

    # The swap changes itself what is watched, and looks at it under the lock.
    phases_of = [step.phase for step in STEPS]
    begin, end = phases_of.index(Phase.COPYING), phases_of.index(Phase.SWAPPING)
    take(STEPS[:begin])
    with watching(run, keeper):
        take(STEPS[begin:end])
    take(STEPS[end:])
    return phases


def _end(server: Server, job: jobs.Job, error: BaseException, options: Options) -> BaseException:
    """Undo (or, after the swap, finish) the run; returns what is to be told."""
    told: BaseException = server.translate(error) if isinstance(error, Exception) else error
    with server.shielded():
        pausepoint.reach("undo")
        try:
            remains, swapped = _undo(server, job, options, str(getattr(told, "message", told)))
        except (PgleanError, psycopg.Error) as second:
            _add_hint(told, f"Undoing failed as well ({translate(second).message}): `pglean cleanup` undoes it.")
            return told
    if swapped:
        _add_hint(told, "The files had been exchanged already: the table is repacked, and what was left is removed.")
    if remains:
        _add_hint(told, f"Still there: {'; '.join(remains)}. `pglean cleanup` removes them.")
    return told


def _add_hint(error: BaseException, text: str) -> None:
    if isinstance(error, PgleanError):
        error.hint = f"{error.hint} {text}" if error.hint else text
    else:
        error.add_note(text)


def _undo(server: Server, job: jobs.Job, options: Options, reason: str) -> tuple[list[str], bool]:
    """Remove what the run has made; returns what could not be removed, and whether the swap had been committed."""
    with _reach_again(server) as conn:
        if not _claim_again(server, conn, job.table.oid):
            if any(run.id == job.id for run in jobs.unfinished(conn)):
                raise LockNotObtained(f"a session of run {job.id} still lives on the server")
            # Another run has taken the table: it removed what this one had left before it began.
            return [], _swapped(conn, job)
        try:
            remains = cleanup.remove(server, conn, job.id, _patience(server, options, _UNDO_WAIT_S))
        except psycopg.Error as error:
            # An event trigger that forbids DROP, for one. Whether the table was swapped must be told all the same.
            if conn.closed:
                raise
            remains = [str(error).strip().splitlines()[0]]
        # Asked only now: a COMMIT whose connection was lost may have been under way, and its locks were waited for.
        swapped = _swapped(conn, job)
        state = "remains" if remains else "done" if swapped else "undone"
        jobs.finish(conn, job.id, state, error="; ".join([reason, *remains]))
        return remains, swapped


def _swapped(conn: Connection, job: jobs.Job) -> bool:
    phase = jobs.phase_of(conn, job.id)
    return phase is not None and phase.swapped


def _claim_again(server: Server, conn: Connection, oid: int) -> bool:
    """Take the claim that the run's closed session is about to lose."""
    deadline = time.monotonic() + _UNDO_WAIT_S
    while not claim(conn, oid):
        if time.monotonic() > deadline:
            return False
        server.rest(0.05)
    return True


@contextlib.contextmanager
def _reach_again(server: Server) -> Iterator[Connection]:
    """A session for undoing; a server that is restarting is waited for."""
    deadline = time.monotonic() + _RECONNECT_S
    while True:
        try:
            connection = server.connect("undo", cancellable=False)
            conn = connection.__enter__()
        except ConnectionLost:
            if time.monotonic() > deadline:
                raise
            server.rest(0.5)
            continue
        break
    try:
        yield conn
    finally:
        connection.__exit__(None, None, None)


# ---- figures


def _sizes(conn: Connection, oid: int) -> list[tuple[str, str, int]]:
    return [(kind, name, int(size)) for kind, name, size in conn.execute(query("report.sizes"), {"oid": oid})]


def _compare(before: list[tuple[str, str, int]], after: list[tuple[str, str, int]]) -> tuple[RelationSize, ...]:
    def by_name(rows: list[tuple[str, str, int]]) -> dict[tuple[str, str], int]:
        return {(kind, "" if kind == "toast" else name): size for kind, name, size in rows}

    old, new = by_name(before), by_name(after)
    return tuple(
        RelationSize(kind, name, old.get((kind, name), 0), new.get((kind, name), 0))
        for kind, name in dict.fromkeys([*old, *new])
    )


__all__: list[Any] = ["preflight", "repack"]
