"""The tables that are rewritten, and what applications do to them meanwhile.

Of each pair of neighbouring ids one row is left.  Which one is decided by a bit of a
multiplicative hash of the pair's number, which both SQL and pgbench can compute, so that the load
hits an existing row with every statement and needs no list of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: In pgbench's syntax, which in this is SQL's as well.
SURVIVOR: Final = "2 * {pair} + 1 + ((({pair} * 2654435761) >> 31) & 1)"

UNIFORM: Final = "uniform"
HOT: Final = "hot"
INSERT: Final = "insert"
ACCESSES: Final = (UNIFORM, HOT, INSERT)

_PAIRS: Final = {
    UNIFORM: "\\set pair random(0, :pairs - 1)",
    # One row in a hundred, all over the table, takes 99 of a hundred updates.
    HOT: "\\if random(1, 100) > 99\n\\set pair random(0, :pairs - 1)\n\\else\n"
    "\\set pair 100 * random(0, :pairs / 100 - 1)\n\\endif",
}
_UPDATE: Final = (
    "UPDATE {table} SET status = CASE status WHEN 'paid' THEN 'sent' ELSE 'paid' END, updated_at = now() WHERE id = :id"
)
_COLUMNS: Final = """
    id bigint NOT NULL,
    customer_id bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    status text NOT NULL,
    amount numeric(12, 2) NOT NULL,
    note text NOT NULL
"""
_VALUES: Final = """
    SELECT id,
           1 + floor(random() * {rows} / 20),
           to_timestamp(1704067200 + 7 * id),
           to_timestamp(1704067200 + 7 * id),
           'new',
           round((random() * 1000)::numeric, 2),
           substr(md5(random()::text) || md5(id::text), 1, 32 + (id % 21)::int)
"""
_INDEXES: Final = (
    "ALTER TABLE orders ADD PRIMARY KEY (id)",
    "CREATE INDEX orders_customer_id_idx ON orders (customer_id)",
    "CREATE INDEX orders_created_at_idx ON orders (created_at)",
)
PARTITIONS: Final = 100


@dataclass(frozen=True, slots=True)
class Workload:
    """A table, how it is filled, and how it is to be rewritten."""

    name: str
    #: For the results.
    about: str
    table: str
    #: At scale 1, before half of them are deleted.
    base_rows: int
    create: tuple[str, ...]
    #: The values of one row, from ``id``; with ``{rows}``.
    values: str
    indexes: tuple[str, ...]
    #: The order in which rows are inserted.
    inserted: str = "id"
    #: The order in which a rewrite is asked to lay them; none where it is to be left as it is.
    order_by: str | None = None
    #: Of the order that CLUSTER gives.
    order_index: str = "orders_pkey"
    partitions: tuple[str, ...] = ()

    @property
    def leaves(self) -> tuple[str, ...]:
        """The tables that have rows."""
        return self.partitions or (self.table,)

    def script(self, access: str) -> str:
        """What a client of pgbench does, again and again."""
        if access == INSERT:
            new = f"(SELECT nextval('{self.table}_new') AS id) AS new"
            return " ".join(f"INSERT INTO {self.table} {self.values.format(rows=':rows')} FROM {new};".split()) + "\n"
        return f"{_PAIRS[access]}\n\\set id {SURVIVOR.format(pair=':pair')}\n{_UPDATE.format(table=self.table)};\n"

    def fill(self, rows: int) -> str:
        """The statement that fills the table."""
        order = "" if self.inserted == "id" else f" ORDER BY {self.inserted}"
        series = f"generate_series(1::bigint, {rows}) AS id"
        return f"SELECT setseed(0.42); INSERT INTO {self.table} {self.values.format(rows=rows)} FROM {series}{order}"


def _with_autovacuum_off(table: str, columns: str) -> str:
    # Or the server would clean up what a run is to find.
    return f"CREATE TABLE {table} ({columns}) WITH (autovacuum_enabled = off)"


_PARTITIONS: Final = tuple(f"orders_{number:02}" for number in range(PARTITIONS))

WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        Workload(
            name="orders",
            about="narrow rows, three indexes, of which no update touches one",
            table="orders",
            base_rows=1_000_000,
            create=(_with_autovacuum_off("orders", _COLUMNS),),
            values=_VALUES,
            indexes=_INDEXES,
        ),
        Workload(
            name="documents",
            about="a text of 4 kB in every row, stored outside of it and not compressed; updates leave it alone",
            table="documents",
            base_rows=100_000,
            create=(
                _with_autovacuum_off(
                    "documents",
                    "id bigint NOT NULL, updated_at timestamptz NOT NULL, status text NOT NULL, title text NOT NULL,"
                    " body text NOT NULL",
                ),
                "ALTER TABLE documents ALTER body SET STORAGE EXTERNAL",
                "ALTER TABLE documents SET (toast.autovacuum_enabled = off)",
            ),
            values="SELECT id, to_timestamp(1704067200 + 7 * id), 'new', md5(id::text), repeat(md5(id::text), 128)",
            indexes=(
                "ALTER TABLE documents ADD PRIMARY KEY (id)",
                "CREATE INDEX documents_title_idx ON documents (title)",
            ),
            order_index="documents_pkey",
        ),
        Workload(
            name="many-indexes",
            about="narrow rows, twelve indexes; every update has to write to all of them, since one holds updated_at",
            table="orders",
            base_rows=1_000_000,
            create=(_with_autovacuum_off("orders", _COLUMNS),),
            values=_VALUES,
            indexes=(
                *_INDEXES,
                "CREATE INDEX orders_updated_at_idx ON orders (updated_at)",
                "CREATE INDEX orders_amount_idx ON orders (amount)",
                "CREATE INDEX orders_note_idx ON orders (note)",
                "CREATE INDEX orders_customer_created_idx ON orders (customer_id, created_at)",
                "CREATE INDEX orders_created_customer_idx ON orders (created_at DESC, customer_id)",
                "CREATE INDEX orders_customer_amount_idx ON orders (customer_id, amount)",
                "CREATE UNIQUE INDEX orders_created_id_idx ON orders (created_at, id) INCLUDE (amount)",
                "CREATE INDEX orders_note_prefix_idx ON orders (substr(note, 1, 8))",
                "CREATE INDEX orders_large_idx ON orders (created_at) WHERE amount > 500",
            ),
        ),
        Workload(
            name="partitions",
            about=f"{PARTITIONS} partitions by hash of the key, each with three indexes; rewritten one after the other",
            table="orders",
            base_rows=1_000_000,
            create=(
                f"CREATE TABLE orders ({_COLUMNS}) PARTITION BY HASH (id)",
                *(
                    f"CREATE TABLE {name} PARTITION OF orders"
                    f" FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number}) WITH (autovacuum_enabled = off)"
                    for number, name in enumerate(_PARTITIONS)
                ),
            ),
            values=_VALUES,
            indexes=_INDEXES,
            partitions=_PARTITIONS,
        ),
        Workload(
            name="ordered",
            about="narrow rows, three indexes; rows lie scattered, and are to be laid in the order of created_at",
            table="orders",
            base_rows=1_000_000,
            create=(_with_autovacuum_off("orders", _COLUMNS),),
            values=_VALUES,
            indexes=_INDEXES,
            inserted="hashint8(id)",
            order_by="created_at",
            order_index="orders_created_at_idx",
        ),
    )
}
