"""The table that random writers work on, and its model: what the table must hold."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

Connection = psycopg.Connection[TupleRow]
KeyKind = Literal["int", "composite", "text", "deferrable"]

_KEY_COLUMNS: dict[KeyKind, LiteralString] = {
    "int": "id int NOT NULL, PRIMARY KEY (id)",
    "composite": "a int NOT NULL, b text NOT NULL, PRIMARY KEY (b, a)",
    "text": "id text COLLATE caseless NOT NULL, PRIMARY KEY (id)",
    "deferrable": "id int NOT NULL, PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED",
}

# They use the unique column to find the row again, and nothing that differs between two runs.
_MEDDLING: tuple[LiteralString, ...] = (
    """
    CREATE FUNCTION meddle_before() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' AND NEW.n % 17 = 5 THEN RETURN NULL; END IF;
        IF NEW.n % 5 = 0 THEN NEW.note := left('!' || NEW.note, 30); END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE FUNCTION meddle_after() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF pg_trigger_depth() > 1 THEN RETURN NULL; END IF;
        IF NEW.n % 7 = 3 THEN
            EXECUTE format('UPDATE %I SET n = n + 1, note = ''after'' WHERE u = $1', TG_TABLE_NAME) USING NEW.u;
        ELSIF NEW.n % 11 = 4 THEN
            EXECUTE format('DELETE FROM %I WHERE u = $1', TG_TABLE_NAME) USING NEW.u;
        END IF;
        RETURN NULL;
    END $$
    """,
)


@dataclass(frozen=True, slots=True)
class Spec:
    """The table that is written to."""

    #: Its name; that of the model is the same with ``_model`` behind it.
    table: str = "t"
    #: How its rows are told apart; "text" has a collation in which ``a`` equals ``A`` and needs a server with ICU.
    key: KeyKind = "int"
    #: Keys are drawn from so many numbers; half of them are there at the beginning.
    numbers: int = 400
    #: Rows with other keys that nobody writes to, so that there is something to copy.
    bystanders: int = 2000
    #: The role that owns the table, made where it is not there; empty for the one that connects.
    owner: str = ""
    #: Put triggers on it that change rows, drop rows, and change or delete a row once it is written.
    meddling: bool = False

    @property
    def model(self) -> str:
        """The name of the model."""
        return f"{self.table}_model"

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The names of the columns of the key."""
        return ("a", "b") if self.key == "composite" else ("id",)

    def key_of(self, number: int, rng: random.Random) -> tuple[Any, ...]:
        """The key that belongs to a number; where several values are the same key, any of them."""
        match self.key:
            case "composite":
                return number // 7, f"b{number % 7}"
            case "text":
                return ("".join(rng.choice((c.lower(), c.upper())) for c in f"key-{number}"),)
            case _:
                return (number,)

    def create(self, conn: Connection) -> None:
        """Make table and model, with their first rows. `conn` is a superuser's."""
        if self.key == "text":
            conn.execute(
                "CREATE COLLATION IF NOT EXISTS caseless"
                " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
        deferrable = sql.SQL("DEFERRABLE" if self.key == "deferrable" else "")
        table, model = sql.Identifier(self.table), sql.Identifier(self.model)
        conn.execute(
            sql.SQL(
                "CREATE TABLE {table} ({key}, u int NOT NULL, n int NOT NULL DEFAULT 0, gone int, note text, big text,"
                " CONSTRAINT {unique} UNIQUE (u) {deferrable})"
            ).format(
                table=table,
                key=sql.SQL(_KEY_COLUMNS[self.key]),
                unique=sql.Identifier(f"{self.table}_u"),
                deferrable=deferrable,
            )
        )
        for statement in (
            sql.SQL("ALTER TABLE {} ALTER big SET STORAGE EXTERNAL"),
            sql.SQL("ALTER TABLE {} DROP COLUMN gone"),
            sql.SQL("CREATE INDEX ON {} (lower(note), n) INCLUDE (u) WHERE n % 2 = 0"),
            sql.SQL("CREATE INDEX ON {} USING brin (n) WITH (pages_per_range = 2)"),
            sql.SQL("CREATE INDEX ON {} USING hash (note)"),
        ):
            conn.execute(statement.format(table))
        conn.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(model, table))
        if self.meddling:
            for function in _MEDDLING:
                conn.execute(function)
        rng = random.Random(0)
        numbers = [*range(0, self.numbers, 2), *range(self.numbers, self.numbers + self.bystanders)]
        columns = sql.SQL(", ").join(map(sql.Identifier, (*self.key_columns, "u", "n", "note", "big")))
        for name in (table, model):
            rng.seed(0)
            with conn.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN").format(name, columns)) as copy:
                for number in numbers:
                    copy.write_row((*self.key_of(number, rng), number, number, f"Note {number % 50}", big(rng, 20)))
            # Something to gain: half of the pages are dead rows.
            conn.execute(sql.SQL("UPDATE {} SET n = n + 2").format(name))
            if self.meddling:
                for trigger in (
                    sql.SQL(
                        "CREATE TRIGGER meddle_before BEFORE INSERT OR UPDATE ON {}"
                        " FOR EACH ROW EXECUTE FUNCTION meddle_before()"
                    ),
                    # Before ours by its name.
                    sql.SQL(
                        "CREATE TRIGGER a_meddle_after AFTER INSERT OR UPDATE ON {}"
                        " FOR EACH ROW EXECUTE FUNCTION meddle_after()"
                    ),
                ):
                    conn.execute(trigger.format(name))
        if self.owner:
            owner = sql.Identifier(self.owner)
            if not conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (self.owner,)).fetchall():
                conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(owner))
            conn.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(table, owner))

    def differences(self, conn: Connection) -> list[str]:
        """Rows that only one of table and model holds, a few of them, as text; compared byte by byte."""
        table, model = sql.Identifier(self.table), sql.Identifier(self.model)
        rows: list[str] = []
        for one, other in ((table, model), (model, table)):
            found = conn.execute(
                sql.SQL(
                    "SELECT left(r, 120) FROM"
                    " (SELECT x::text AS r FROM {one} AS x EXCEPT ALL SELECT y::text FROM {other} AS y) AS d"
                    " ORDER BY 1 LIMIT 5"
                ).format(one=one, other=other)
            )
            rows += [f"only in {one.as_string(conn)}: {row}" for (row,) in found]
        return rows


def big(rng: random.Random, least: int) -> str:
    """A text that does not compress well, long enough for TOAST every now and then."""
    return rng.randbytes(rng.choice((least, least, least, 1500, 4000))).hex()
