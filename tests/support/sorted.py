"""Whether the rows of a table lie in an order, by the heap itself."""

from __future__ import annotations

from pglean.rewrite import order
from tests.servers import Database
from tests.support.oracle import name


def out_of_place(db: Database, table: str, order_by: str) -> int:
    """How many rows do not lie where this order wants them; rows that are equal by it may lie anyhow."""
    return int(
        db.scalar(
            name(
                f"SELECT count(*) FROM (SELECT row_number() OVER (ORDER BY {order_by}, ctid) AS wanted,"
                f" row_number() OVER (ORDER BY ctid) AS found FROM ONLY {table}) AS r WHERE wanted <> found"
            )
        )
    )


def correlation(db: Database, table: str, column: str) -> float:
    """What ANALYZE finds."""
    db.execute(name(f"ANALYZE {table}"))
    return float(
        db.scalar(
            "SELECT correlation FROM pg_stats WHERE tablename = %s AND attname = %s AND NOT inherited", (table, column)
        )
    )


#: Whatever the statistics say, by ranges; small ones, and many, by several workers.
RANGES = ((order, "_NEARLY_SORTED", 0.0), (order, "_PIECE_BYTES", 4096), (order, "_ALONE_BELOW", 0))
