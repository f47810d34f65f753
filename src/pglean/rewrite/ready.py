"""Ready: the copy is whole, verified and kept in sync; the swap waits for what it was told to wait for.

On entry and exit of all functions: no transaction. Locks: ACCESS SHARE per refresh. Killed: nothing is lost.
"""

from __future__ import annotations

from datetime import datetime

from pglean.blockers import Blocker, Mode
from pglean.patience import Patience
from pglean.rewrite import catchup, snapshots
from pglean.rewrite.phase import Phase
from pglean.rewrite.run import GoBack, Run

#: How often the copy is brought up to date while the swap waits, in seconds.
_SYNC_S = 1.0


def run(run: Run) -> None:
    """Catch up; then, with `--hold` or `--swap-window`, stay in sync until it is time. Raises `Paused`."""
    catchup.drain(run)
    if not _reason(run):
        return
    while reason := _reason(run):
        run.waiting(reason)
        run.server.rest(_SYNC_S)
        catchup.once(run)
    # What was taken over meanwhile is to be frozen as well.
    catchup.run(run)


def _reason(run: Run) -> str:
    """What the swap waits for; empty where it may begin."""
    options = run.job.options
    if run.swap_asked.is_set():
        return ""
    if options.hold:
        return run.server.command(f"swap {run.job.id}")
    if options.swap_window is not None and datetime.now().astimezone().time() not in options.swap_window:
        return f"the time of the swap, {options.swap_window}"
    return ""


def check_window(run: Run) -> None:
    """Raise `GoBack` where the window has closed before the lock was to be had."""
    if reason := _reason(run):
        raise GoBack(Phase.READY, f"no lock in time: kept in sync, waits for {reason}")


def wait_for_indexes(run: Run, patience: Patience) -> None:
    """Wait while another session builds an index: the table cannot be swapped without it. It is taken up then.

    Raises `LockNotObtained` at the end of the patience, `IndexesChanged` as soon as there is news.
    """
    while building := [index.name for index in run.table.indexes if not index.valid]:
        reason = f"Index {', '.join(building)} is invalid, or being built by another session."
        patience.pause(run.table, Mode.ACCESS_EXCLUSIVE, reason, ())
        check_window(run)
        with patience.elsewhere():
            catchup.once(run)


def wait_for_snapshots(run: Run, patience: Patience) -> None:
    """With `--mvcc-safe`: wait until the snapshots that are held now are gone, with no lock on the table.

    Only short ones are left to be waited for under the lock. Raises `LockNotObtained` at the end of the patience.
    """
    if not run.job.options.mvcc_safe:
        return
    catchup.once(run)
    older = snapshots.Older(run, run.control)
    while left := older.left():
        blockers = tuple(Blocker(phrase) for phrase in left.values())
        patience.pause(run.table, Mode.ACCESS_EXCLUSIVE, "Older snapshots are held.", blockers)
        check_window(run)
        with patience.elsewhere():
            catchup.once(run)
