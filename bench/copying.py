"""Levers of the copy: what is written to the shadow before it has indexes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Final

from lever import SECONDS, WAL, Figures, Lever, Way
from pglean.session import Connection
from result import Metric
from workbench import COLUMNS, DELETED, FROZEN, INDEXES, ORDERS, SHADOW, Job, Workbench, build, statements, value

_NO_HELPERS: Final = "SET max_parallel_maintenance_workers = 0"
_CLIENT: Final = Metric("client_s", "client, processor time, s", 2)
_SHARES: Final = Metric("chunks", "chunks", 0, compared=False)


def copy_range(first: int, end: int) -> str:
    """The statement that copies some blocks."""
    return (
        f"INSERT INTO {SHADOW} SELECT {COLUMNS} FROM public.orders AS t"
        f" WHERE t.ctid >= '({first},0)'::tid AND t.ctid < '({end},0)'::tid"
    )


def blocks(bench: Workbench) -> int:
    """Of the table."""
    with bench.connect() as conn:
        return int(value(conn, "SELECT pg_relation_size('public.orders') / current_setting('block_size')::int"))


def copies(bench: Workbench, workers: int) -> list[Job]:
    """The whole table, in as many parts at once."""
    count = blocks(bench)
    edges = [count * number // workers for number in range(workers + 1)]
    return [statements(copy_range(first, end)) for first, end in pairwise(edges)]


def builds(*, first: tuple[str, ...] = (_NO_HELPERS,)) -> list[Job]:
    """All indexes, by two sessions: the one with most work in one of them, the others one by one in the other."""
    return [statements(*first, build(INDEXES[0])), statements(*first, *map(build, INDEXES[1:]))]


# ---- flush


def _flush_copy(bench: Workbench, *, workers: int, flushed: bool) -> Figures:
    bench.again(ORDERS)
    return bench.timed(*copies(bench, workers), flushed=flushed).figures


def _flush_cleaning(bench: Workbench, *, workers: int, flushed: bool) -> Figures:
    bench.fresh(DELETED)
    with bench.full_pages():
        return bench.timed(*copies(bench, workers), flushed=flushed).figures


def _flush_builds(bench: Workbench, *, flushed: bool) -> Figures:
    bench.again(FROZEN)
    return bench.timed(*builds(), flushed=flushed).figures


_FLUSHED: Final = (("flushed (pglean)", True), ("left to the server", False))

FLUSH: Final = Lever(
    "flush",
    "WAL brought to the disk as it gathers, by a session of its own that commits, or left to the server? Of a"
    " table that nobody has vacuumed since rows were deleted, the copy cleans up the pages, and logs each as a"
    " whole.",
    (SECONDS, WAL),
    tuple(
        Way(name, partial(copy, workers=workers, flushed=flushed), f"{table}, {workers} worker{'s'[: workers - 1]}")
        for table, copy in (("vacuumed", _flush_copy), ("not vacuumed", _flush_cleaning))
        for workers in (1, 2)
        for name, flushed in _FLUSHED
    )
    + tuple(
        Way(name, partial(_flush_builds, flushed=flushed), "three index builds, two at once")
        for name, flushed in _FLUSHED
    ),
    "Flushed, in the copy and while indexes are built. Workers that fill the WAL buffers stand in a queue for writing"
    " them out, and two more than one; what is in the buffers when an application commits is what it waits for, and"
    " that becomes less as well. How much it gives depends on the disk: two workers were 1.1 times as fast where a"
    " durable write takes 0.09 ms, 1.4 times where it took 0.18 ms. It costs a session that looks at the WAL every few"
    " milliseconds, which one worker on a table that was vacuumed pays for nothing.",
)


# ---- wal_compression


def _compressed(bench: Workbench, *, method: str) -> Figures:
    bench.again(ORDERS)
    settings = {"wal_compression": method}
    copied = bench.timed(*copies(bench, 2), settings=settings)
    built = bench.timed(*builds(), settings=settings)
    return {
        "seconds": copied.seconds + built.seconds,
        "copy_mb": copied.wal_bytes / 1e6,
        "build_mb": built.wal_bytes / 1e6,
        "wal_mb": (copied.wal_bytes + built.wal_bytes) / 1e6,
    }


COMPRESSION: Final = Lever(
    "wal-compression",
    "Does wal_compression in our sessions pay, for the copy and the index builds?",
    (SECONDS, WAL, Metric("copy_mb", "of that the copy, MB", 1), Metric("build_mb", "the index builds, MB", 1)),
    tuple(
        Way(name, partial(_compressed, method=method))
        for name, method in (("off (pglean)", "off"), ("lz4", "lz4"), ("pglz", "pglz"))
    ),
    "Off, that is, left as the server has it. Only the pages of new indexes are compressed: what the copy writes"
    " are rows. lz4 saves a tenth of the WAL of a run in about the same time; but a standby that was built without"
    " lz4 could not replay it, which we cannot see from here. pglz takes longer. Whoever wants it sets"
    " PGOPTIONS='-c wal_compression=lz4' for `pglean repack`, which needs the right to set it.",
)


# ---- COPY


def _inserted(bench: Workbench, *, workers: int) -> Figures:
    bench.again(ORDERS)
    cost = bench.timed(*copies(bench, workers))
    return {**cost.figures, "client_s": cost.client_s}


def _through_client(bench: Workbench) -> Figures:
    bench.again(ORDERS)

    def job(conn: Connection) -> None:
        with bench.connect() as reader:
            rows = f"COPY (SELECT {COLUMNS} FROM public.orders) TO STDOUT (FORMAT binary)"
            with (
                reader.cursor().copy(rows.encode()) as source,
                conn.cursor().copy(f"COPY {SHADOW} FROM STDIN (FORMAT binary)".encode()) as target,
            ):
                for data in source:
                    target.write(data)

    cost = bench.timed(job)
    return {**cost.figures, "client_s": cost.client_s}


COPY: Final = Lever(
    "copy",
    "INSERT … SELECT, or COPY through the client (binary, out of one session, into another)?",
    (SECONDS, WAL, _CLIENT),
    (
        Way("INSERT … SELECT, one worker (pglean)", partial(_inserted, workers=1)),
        Way("INSERT … SELECT, two workers (pglean)", partial(_inserted, workers=2)),
        Way("COPY through the client, two sessions", _through_client),
    ),
    "INSERT … SELECT. COPY writes less WAL, a record per page instead of one per row, but all rows pass through"
    " the client, which needs a processor for them, and the network: the time is that of the client. Values would"
    " also pass through the functions of their types in our sessions, outside of what guards them.",
)


# ---- chunks


def _chunked(bench: Workbench, *, size: int | None, checkpoint: bool) -> Figures:
    bench.again(ORDERS)
    count = blocks(bench)
    ranges = list(_ranges(count, size or count))
    copied = threading.Event()

    def job(conn: Connection) -> None:
        try:
            for first, end in ranges:
                with conn.transaction():
                    rows = conn.execute(copy_range(first, end)).rowcount
                    conn.execute(f"INSERT INTO pglean.chunks VALUES ({first}, {end}, {rows})")
        finally:
            copied.set()

    def halfway(conn: Connection) -> None:
        # About half of the rows are left of the table: half of that is a quarter of it.
        while value(conn, f"SELECT pg_relation_size('{SHADOW}') < pg_relation_size('public.orders') / 4"):
            if copied.wait(0.002):
                return
        conn.execute("CHECKPOINT")

    with bench.full_pages() if checkpoint else contextlib.nullcontext():
        cost = bench.timed(job, beside=halfway if checkpoint else None)
    return {**cost.figures, "chunks": len(ranges)}


def _ranges(count: int, size: int) -> Iterator[tuple[int, int]]:
    yield from ((first, min(first + size, count)) for first in range(0, count, size))


_SIZES: Final[Mapping[str, int | None]] = {
    "512 blocks (pglean's first)": 512,
    "64 blocks": 64,
    "4,096 blocks": 4096,
    "16,384 blocks": 16384,
    "whole": None,
}

CHUNK: Final = Lever(
    "chunk",
    "How large should a chunk of the copy be, each in a transaction of its own? Does a checkpoint in the middle"
    " cost more WAL?",
    (SECONDS, WAL, _SHARES),
    tuple(
        Way(name, partial(_chunked, size=size, checkpoint=checkpoint), case)
        for case, checkpoint in (("no checkpoint", False), ("CHECKPOINT in the middle", True))
        for name, size in _SIZES.items()
        if size != 16384 or not checkpoint
    ),
    "By time, not by size: pglean begins with 512 blocks and at most doubles that until a chunk takes"
    " --chunk-time. From some thousand blocks on the size changes neither time nor WAL, and chunks of half a"
    " second hold no snapshot for long; in small ones transactions and plans begin to cost, of which pglean has"
    " more per chunk than is imitated here. A checkpoint in the middle costs nothing: the copy writes pages that"
    " are new, and has no index whose pages it would have to log whole.",
)


# ---- scans


def _scanned(bench: Workbench, *, workers: int, settings: Mapping[str, str]) -> Figures:
    bench.fresh(ORDERS, cold=True)
    return bench.timed(*copies(bench, workers), settings=settings).figures


SCANS: Final = Lever(
    "scans",
    "Do synchronize_seqscans or effective_io_concurrency change a copy of a table that is in no memory?",
    (SECONDS,),
    tuple(
        Way(name, partial(_scanned, workers=workers, settings=settings), f"{workers} worker{'s'[: workers - 1]}")
        for workers in (1, 2)
        for name, settings in (
            ("as the server has it (pglean)", {}),
            ("synchronize_seqscans = off", {"synchronize_seqscans": "off"}),
            ("effective_io_concurrency = 64", {"effective_io_concurrency": "64"}),
        )
    ),
    "Left alone. A scan of a range of blocks takes no part in synchronized scans, and on this server it asks for"
    " no block ahead: the operating system notices that it reads on and on, and does. What is left between the"
    " ways is the noise of the disk, which from run to run is larger.",
)
