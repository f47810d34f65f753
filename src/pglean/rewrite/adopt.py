"""Taking up what others do to the table's indexes while a run goes on: one made is built too, one dropped forgotten.

What the fingerprint does not hold (GRANT, COMMENT, statistics targets, triggers, defaults, …) needs no taking up: it
lives in catalog entries of the table, which stay. Everything else ends the run.

Between the fingerprint of the old state and that of the new nothing can slip through: the new one is read before the
indexes are, and compared again, under the lock, at every later step.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from pglean import catalog
from pglean.catalog import Fingerprint
from pglean.errors import TableChanged
from pglean.locks import patiently
from pglean.rewrite import checks, indexes
from pglean.rewrite import job as jobs
from pglean.rewrite.run import Run
from pglean.table import Table

#: Entries of an index in the fingerprint that change without it becoming another: its file, and whether it is valid,
#: ready and live.
_OF_NO_MATTER = frozenset({1, 6, 7, 8})


def take_up(run: Run) -> str:
    """Go on with the indexes that the table has now; returns what has changed, for people.

    On entry and exit: no transaction. Twins of indexes that are gone, or have become others, are dropped; missing ones
    are built by the next `indexes.run`. Killed: the job's row still has the old fingerprint, and it is done again.
    Raises `TableChanged` where the run cannot go on.
    """
    conn = run.control
    found = catalog.fingerprint(conn, run.table.oid)
    old = run.job.fingerprint
    if found is None or catalog.changed_parts(old, found) not in ([], ["indexes"]):
        catalog.check_fingerprint(conn, run.table, old)
        raise TableChanged(f"table {run.table.qualified_name} was changed by another session")
    oid = run.table.oid
    table = patiently(run.server, conn, oid, run.patience(), lambda: catalog.load(conn, oid))
    _check(run.table, table)
    before, after = _by_oid(old), _by_oid(found)
    for oid in before:
        if before[oid] != after.get(oid):
            run.again(partial(indexes.forget, run, conn, oid))
    jobs.adopt(conn, run.job.id, found)
    # A run without a key goes on without, whatever was made.
    key = run.table.key and table.key
    run.job = replace(run.job, table=replace(run.table, indexes=table.indexes, key=key), fingerprint=found)
    run.twins = jobs.twins(conn, run.job.id)
    return _told(before, after)


def revive(run: Run) -> str:
    """The same for a run that is gone on with, whose table was just read anew; empty where nothing has changed.

    Its key may be another since the run began, without any index being so: one of several was made the primary key, or
    the replica identity. What was recorded are values of the old one.
    Raises `CaptureGap` as well; what holds here is looked at again, under a lock, by every step.
    """
    if run.table.key is None and not run.capture_identity.get("images"):
        raise _other_key(run.table)
    run.capture.check(run.control, run.capture_identity)
    if not run.capture.fits(run.control):
        raise _other_key(run.table)
    if catalog.fingerprint(run.control, run.table.oid) == run.job.fingerprint:
        return ""
    return take_up(run)


def _other_key(table: Table) -> TableChanged:
    return TableChanged(
        f"the key of {table.qualified_name} was changed by another session",
        detail="A row is recognised by its primary key or unique index; another one has taken its place, or none.",
    )


def _check(before: Table, after: Table) -> None:
    if before.key is not None and (after.key is None or before.key.columns != after.key.columns):
        raise _other_key(before)
    for finding in checks.of_indexes(after):
        raise TableChanged(finding.message, detail=finding.detail, hint=finding.hint)


def _by_oid(fingerprint: Fingerprint) -> dict[int, list[Any]]:
    return {
        int(entry[0]): [value for position, value in enumerate(entry) if position not in _OF_NO_MATTER]
        for entry in fingerprint["indexes"] or []
    }


def _told(before: dict[int, list[Any]], after: dict[int, list[Any]]) -> str:
    made, dropped = len(after.keys() - before.keys()), len(before.keys() - after.keys())
    changed = sum(1 for oid in before.keys() & after.keys() if before[oid] != after[oid])
    parts = [
        f"{number} {'index' if number == 1 else 'indexes'} {what}"
        for number, what in ((made, "made"), (dropped, "dropped"), (changed, "changed"))
        if number
    ]
    return f"{' and '.join(parts) or 'an index was rebuilt'} by another session: taken up"
