"""How long things take, estimated from sizes: as a rule within a factor of three, for deciding and not for planning.

    repack      rows that are left / copy rate + indexes that are left / build rate
    reindex     (table + index that is left) read / read rate + index that is left / build rate
    vacuum      (what is not all-visible + indexes * passes) / read rate
    analyze     30,000 pages of the table, or all of it / read rate

The rates are about half of what bench/RESULTS.md (a table of 240 MB with three indexes of 100 MB left in 4.9 s by two
workers) and the README's example (281 MB of rows copied in 2.2 s, 43 MB of index built within 3 s) amount to, since
that was done in memory: a disk, and whatever else the server does, take their share. A throttled run takes longer, and
autovacuum, which rests (autovacuum_vacuum_cost_delay), many times as long as a VACUUM by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

_COPY, _BUILD, _READ = 64 << 20, 16 << 20, 128 << 20
#: ANALYZE reads so many pages at the most, at the default statistics target.
_ANALYZED_PAGES = 30_000

#: The locks that are taken, in words.
VACUUM_LOCKS = (
    "SHARE UPDATE EXCLUSIVE: reading and writing go on; ACCESS EXCLUSIVE for a moment if empty pages are cut off"
)
REPACK_LOCKS = "reading and writing go on; ACCESS EXCLUSIVE at the end, for 1 s at most"
OFFLINE_LOCKS = "ACCESS EXCLUSIVE as long as it takes: nobody reads or writes"
REINDEX_LOCKS = "SHARE UPDATE EXCLUSIVE: reading and writing go on"
OFFLINE_INDEX_LOCKS = "SHARE on the table, ACCESS EXCLUSIVE on the index: nobody writes, nor reads by it"
SET_LOCKS = "SHARE UPDATE EXCLUSIVE for a moment"
ANALYZE_LOCKS = "SHARE UPDATE EXCLUSIVE: reading and writing go on"
DROP_LOCKS = "SHARE UPDATE EXCLUSIVE: reading and writing go on; transactions that use the table are waited for"


@dataclass(frozen=True, slots=True)
class Cost:
    """What an action costs."""

    #: Estimated; None where it takes no time to speak of, or that cannot be told.
    seconds: float | None = None
    #: That is needed meanwhile.
    disk_bytes: int = 0
    #: In words; empty where nothing is locked.
    locks: str = ""


def of_repack(heap_after: float, indexes_after: float) -> Cost:
    """By what is left."""
    disk = int(heap_after + indexes_after)
    return Cost(heap_after / _COPY + indexes_after / _BUILD, disk, REPACK_LOCKS)


def of_reindex(table_bytes: float, indexes_after: float, indexes: int) -> Cost:
    """The table is read for each index; only one of them is there twice at a time, but not which."""
    seconds = indexes * table_bytes / _READ + indexes_after / _BUILD
    return Cost(seconds, int(indexes_after), REINDEX_LOCKS)


def of_vacuum(unseen_bytes: float, indexes_bytes: float, passes: int) -> Cost:
    """By hand, without cost delay."""
    return Cost((unseen_bytes + indexes_bytes * passes) / _READ, 0, VACUUM_LOCKS)


def of_analyze(table_bytes: float, block_bytes: int) -> Cost:
    """Of a sample of pages."""
    return Cost(min(table_bytes, _ANALYZED_PAGES * block_bytes) / _READ, 0, ANALYZE_LOCKS)
