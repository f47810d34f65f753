"""The demo's database: a small shop whose table of orders has seen better days.

`shop.orders` is what such tables look like: an identity key, foreign keys from it and to it, a jsonb column, a note
that now and then is long enough for TOAST, a partial and an expression index, a view over it. Twice the rows are made
and half of them deleted, every other one, so that no page is empty and VACUUM can give nothing back; then some are
updated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg import errors as pg
from psycopg.rows import TupleRow

TABLE: Final = "shop.orders"

#: Two digests of a row are equal when it is the same in all columns; the same text serves the table and the view.
DIGEST: Final[LiteralString] = (
    "hashtextextended(ROW(o.id, o.customer_id, o.status, o.total, o.note, o.created_at, o.attributes)::text, 0)"
)
#: How many characters a long note has: with storage EXTERNAL all of them go to the TOAST table.
LONG_NOTE_CHARS: Final = 3200

_TABLES: Final[LiteralString] = """
CREATE SCHEMA shop;

CREATE TABLE shop.customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    city text NOT NULL
);

CREATE TABLE shop.orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL,
    status text NOT NULL CHECK (status IN ('new', 'paid', 'shipped', 'returned')),
    total numeric(10, 2) NOT NULL,
    note text,
    created_at timestamptz NOT NULL DEFAULT now(),
    attributes jsonb NOT NULL DEFAULT '{}'
);
ALTER TABLE shop.orders ALTER COLUMN note SET STORAGE EXTERNAL;

CREATE TABLE shop.order_items (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id bigint NOT NULL,
    article text NOT NULL,
    quantity int NOT NULL CHECK (quantity > 0)
);

CREATE VIEW shop.order_overview AS
    SELECT o.id, o.customer_id, c.name AS customer, o.status, o.total, o.note, o.created_at, o.attributes
      FROM shop.orders o JOIN shop.customers c ON c.id = o.customer_id;
"""

_CUSTOMERS: Final[LiteralString] = """
INSERT INTO shop.customers (name, city)
SELECT 'Customer ' || i, (ARRAY['Lisbon', 'Oslo', 'Graz', 'Łódź'])[1 + i %% 4]
  FROM generate_series(1, %(customers)s) AS i
"""

_ORDERS: Final[LiteralString] = """
INSERT INTO shop.orders (customer_id, status, total, note, created_at, attributes)
SELECT 1 + (i * 7919::bigint) %% %(customers)s,
       (ARRAY['shipped', 'shipped', 'shipped', 'paid', 'returned', 'shipped', 'new', 'shipped'])[1 + i %% 8],
       (i %% 9973) / 4.0,
       CASE WHEN i %% 50 < 2 THEN repeat(md5(i::text), %(long)s / 32)
            WHEN i %% 3 = 0 THEN 'Ring twice, ' || md5(i::text) END,
       timestamptz '2026-01-01 00:00:00+00' + i * interval '13 seconds',
       jsonb_build_object('channel', (ARRAY['web', 'app', 'phone'])[1 + i %% 3], 'coupon', 'C' || i %% 5000)
  FROM generate_series(1, %(rows)s) AS i
"""

_INDEXES: Final[LiteralString] = """
CREATE INDEX orders_customer_idx ON shop.orders (customer_id, created_at);
CREATE INDEX orders_open_idx ON shop.orders (created_at) WHERE status IN ('new', 'paid');
CREATE INDEX orders_coupon_idx ON shop.orders (lower(attributes ->> 'coupon'));
CREATE INDEX orders_status_idx ON shop.orders (status, total DESC);
"""

# Foreign keys come last: checked once for all rows, not row by row.
_BLOAT: Final[tuple[LiteralString, ...]] = (
    "DELETE FROM shop.orders WHERE id % 2 = 0",
    "UPDATE shop.orders SET status = 'shipped', total = total + 1 WHERE id % 20 = 1",
    "INSERT INTO shop.order_items (order_id, article, quantity)"
    " SELECT id, 'Article ' || id % 997, 1 + id % 3 FROM shop.orders WHERE id % 4 = 1",
    "CREATE INDEX order_items_order_idx ON shop.order_items (order_id)",
    "ALTER TABLE shop.orders ADD FOREIGN KEY (customer_id) REFERENCES shop.customers",
    "ALTER TABLE shop.order_items ADD FOREIGN KEY (order_id) REFERENCES shop.orders ON DELETE CASCADE",
    # The space of dead rows becomes free for new ones, as under autovacuum; the file stays as long as it is.
    "VACUUM (ANALYZE) shop.customers, shop.orders, shop.order_items",
    # So that writing all this to disk does not fall into the time that is measured.
    "CHECKPOINT",
)


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold after the repack."""

    name: str
    passed: bool
    #: What was found, for people.
    detail: str


def customers(rows: int) -> int:
    """How many customers there are to so many orders."""
    return max(rows // 20, 10)


def build(conn: psycopg.Connection[TupleRow], rows: int) -> None:
    """Make the shop, with `rows` orders alive and as many dead. On entry: autocommit."""
    parameters: dict[str, Any] = {"customers": customers(rows), "rows": 2 * rows, "long": LONG_NOTE_CHARS}
    conn.execute(_TABLES)
    conn.execute(_CUSTOMERS, parameters)
    conn.execute(_ORDERS, parameters)
    conn.execute(_INDEXES)
    for statement in _BLOAT:
        conn.execute(statement)


class Witness:
    """A session that was there before the repack, with what it remembers of the catalogs and a prepared statement."""

    _COUNT: Final[LiteralString] = "SELECT count(*), sum(total) FROM shop.orders WHERE customer_id BETWEEN %s AND %s"

    def __init__(self, conn: psycopg.Connection[TupleRow]) -> None:
        """On entry: `conn` is in autocommit mode, the shop is there."""
        self._conn = conn
        # A plan that names the old file's indexes is cached, not made anew for each execution.
        conn.execute("SET plan_cache_mode = force_generic_plan")
        conn.execute(self._COUNT, (1, 10), prepare=True).fetchall()
        self._identities = self._read(_IDENTITIES)
        self._files = self._read_files()
        self._view = self._read(_VIEW)
        self._triggers = self._read(_TRIGGERS)

    def testify(self) -> tuple[Check, ...]:
        """Look again. On entry: nobody writes."""
        return (self._oids(), self._prepared(), self._view_works(), self._foreign_keys(), self._no_remains())

    def _read(self, statement: LiteralString) -> list[TupleRow]:
        return self._conn.execute(statement).fetchall()

    def _read_files(self) -> dict[int, int]:
        return dict(self._read(_FILES))

    def _oids(self) -> Check:
        same = self._read(_IDENTITIES) == self._identities
        files = self._read_files()
        rewritten = sum(files[oid] != file for oid, file in self._files.items() if oid in files)
        return Check(
            "OIDs",
            same and rewritten == len(self._files),
            f"{len(self._identities)} of table, indexes, constraints and view "
            f"{'unchanged' if same else 'CHANGED'}, {rewritten} of {len(self._files)} files new",
        )

    def _prepared(self) -> Check:
        # The range differs from the first execution's: nothing can come from a cache of results.
        bounds = (5, 25)
        prepared = self._conn.execute(self._COUNT, bounds, prepare=True).fetchone()
        again = self._read(
            "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT count(*), sum(total)%'"
        )
        with self._conn.transaction():
            # Without indexes: were one of them wrong, this would tell.
            self._conn.execute("SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off")
            fresh = self._conn.execute(self._COUNT, bounds, prepare=False).fetchone()
        passed = prepared == fresh and again[0][0] == 1
        return Check("Prepared statement", passed, "of an older session goes on" if passed else f"{prepared} ≠ {fresh}")

    def _view_works(self) -> Check:
        ((through_view, direct),) = self._read(
            "SELECT (SELECT count(*) FROM shop.order_overview), (SELECT count(*) FROM shop.orders)"
        )
        passed = through_view == direct and self._read(_VIEW) == self._view
        return Check("View", passed, f"{through_view:,} of {direct:,} orders seen through it")

    def _foreign_keys(self) -> Check:
        ((orphans,),) = self._read(_ORPHANS)
        refused = [self._is_refused(statement) for statement in _VIOLATIONS]
        passed = orphans == 0 and all(refused)
        return Check(
            "Foreign keys",
            passed,
            f"{sum(refused)} of {len(refused)} violations refused in both directions, {orphans} orphans",
        )

    def _is_refused(self, statement: LiteralString) -> bool:
        try:
            with self._conn.transaction(force_rollback=True):
                self._conn.execute(statement)
        except pg.ForeignKeyViolation:
            return True
        return False

    def _no_remains(self) -> Check:
        ((tables,),) = self._read("SELECT count(*) FROM pg_class WHERE relname ~ '^(shadow|changes)_[0-9]+$'")
        passed = tables == 0 and self._read(_TRIGGERS) == self._triggers
        return Check(
            "Remains", passed, "no trigger, no helper table left" if passed else f"{tables} helper tables left"
        )


_IDENTITIES: Final[LiteralString] = """
SELECT 'table', oid, relname FROM pg_class
 WHERE oid IN ('shop.orders'::regclass, 'shop.order_overview'::regclass)
UNION ALL
SELECT 'index', indexrelid, indexrelid::regclass::name FROM pg_index WHERE indrelid = 'shop.orders'::regclass
UNION ALL
SELECT 'constraint', oid, conname FROM pg_constraint
 WHERE conrelid = 'shop.orders'::regclass OR confrelid = 'shop.orders'::regclass
ORDER BY 1, 2
"""

_FILES: Final[LiteralString] = """
SELECT oid, relfilenode FROM pg_class
 WHERE oid = 'shop.orders'::regclass
    OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = 'shop.orders'::regclass)
"""

_VIEW: Final[LiteralString] = "SELECT pg_get_viewdef('shop.order_overview'::regclass)"

_TRIGGERS: Final[LiteralString] = """
SELECT oid, tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'shop.orders'::regclass ORDER BY oid
"""

_ORPHANS: Final[LiteralString] = """
SELECT (SELECT count(*) FROM shop.order_items i WHERE NOT EXISTS (SELECT FROM shop.orders o WHERE o.id = i.order_id))
     + (SELECT count(*) FROM shop.orders o WHERE NOT EXISTS (SELECT FROM shop.customers c WHERE c.id = o.customer_id))
"""

_VIOLATIONS: Final[tuple[LiteralString, ...]] = (
    "INSERT INTO shop.orders (customer_id, status, total) VALUES (-1, 'new', 0)",
    "INSERT INTO shop.order_items (order_id, article, quantity) VALUES (-1, 'nothing', 1)",
    "DELETE FROM shop.customers WHERE id = (SELECT customer_id FROM shop.orders LIMIT 1)",
)


__all__ = ["DIGEST", "LONG_NOTE_CHARS", "TABLE", "Check", "Witness", "build", "customers"]
