"""Capture by row triggers: three functions of fixed text that write the key, and nothing else, to the change table.

* AFTER ROW: they see what was really stored, after all BEFORE triggers and ON CONFLICT. Whether other AFTER triggers
  run earlier or later, or change the same row again, is of no matter: that a key was touched is true in any order.
* ENABLE ALWAYS: replication workers and sessions with session_replication_role = replica are seen too.
* SECURITY DEFINER, owned by us: the application needs no right on the change table. All names in the text are
  qualified, down to the operators, so no search path can bend it; a SET clause on the function for the same purpose
  would cost the application more than the rest of the trigger does.
* An UPDATE records the old key only where it differs. Differences are taken by image (``*<>``), which calls no code of
  the type's owner, or by ``<>`` of the server itself for its own types. An image that differs while the key is equal
  records both: harmless.
* The text names columns, and somebody may put a column of another type under such a name while the run goes on. Then
  nothing is recorded: an INSERT of that type would look for a cast to ours, and a cast is the owner's code, run with
  our rights. (The fingerprint ends such a run.) plpgsql does not look at a statement before it gets there.
* Keys are recorded without their domain: no domain's check runs with our rights, ALTER DOMAIN is not in the way.
* Of a table without a key whole rows are recorded instead (`images`), with their domains: ALTER DOMAIN finds them.

Identity: OID and xmin of the rows of each trigger, of its function, and of each key column. ALTER TABLE … DISABLE
TRIGGER and ENABLE again leaves everything as it was, except the xmin; so does renaming columns, or giving one another
type, there and back in one transaction, in which what is written is recorded wrongly, or not at all. (What else changes
the row of a key column, such as SET STATISTICS, makes the run begin again.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg import sql

from pglean.capture import changes, images
from pglean.catalog import relation
from pglean.errors import CaptureGap
from pglean.patience import Patience
from pglean.session import Connection, scalar
from pglean.sql import fragment, query
from pglean.table import KeyColumn, Table

SCHEMA = changes.SCHEMA
EVENTS = ("insert", "update", "delete")


class TriggerCapture:
    """Implements `pglean.capture.ChangeCapture`."""

    def __init__(self, table: Table, job_id: int) -> None:
        self._table = table
        #: Either of them is empty.
        self._key = table.key.columns if table.key else ()
        self._image = table.stored_columns if table.key is None else ()
        self._job_id = job_id
        self._changes = changes.name(job_id)

    def _function(self, event: str) -> sql.Identifier:
        return sql.Identifier(SCHEMA, f"capture_{self._job_id}_{event}")

    def prepare(self, conn: Connection) -> None:
        changes.create(conn, self._table, self._job_id)
        for event, body in self._bodies().items():
            conn.execute(
                sql.SQL("CREATE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS {}").format(
                    self._function(event), sql.Literal(body.as_string(conn))
                )
            )
            conn.execute(sql.SQL("REVOKE ALL ON FUNCTION {}() FROM PUBLIC").format(self._function(event)))

    def _bodies(self) -> dict[str, sql.Composed]:
        if self._image:
            return images.bodies(self._changes, self._image)

        def row(record: str) -> sql.Composed:
            return sql.SQL("({})").format(
                sql.SQL(", ").join(
                    sql.SQL("{}.{}").format(fragment(record), sql.Identifier(column.name)) for column in self._key
                )
            )

        def retyped(record: str) -> sql.Composed:
            return sql.SQL(" OR ").join(
                sql.SQL(
                    "pg_catalog.pg_typeof({}.{})::pg_catalog.oid OPERATOR(pg_catalog.<>) {}::pg_catalog.oid"
                ).format(fragment(record), sql.Identifier(column.name), sql.Literal(column.type_oid))
                for column in self._key
            )

        parts = {
            "changes": self._changes,
            "old": row("OLD"),
            "new": row("NEW"),
            "moved": sql.SQL(" OR ").join(_differs(column) for column in self._key),
            "old_retyped": retyped("OLD"),
            "new_retyped": retyped("NEW"),
        }
        return {
            event: sql.SQL(text).format(**parts)
            for event, text in {
                "insert": "BEGIN IF {new_retyped} THEN RETURN NULL; END IF;"
                " INSERT INTO {changes} VALUES {new}; RETURN NULL; END",
                "update": "BEGIN IF {new_retyped} THEN RETURN NULL; END IF;"
                " IF {moved} THEN INSERT INTO {changes} VALUES {old}, {new};"
                " ELSE INSERT INTO {changes} VALUES {new}; END IF; RETURN NULL; END",
                "delete": "BEGIN IF {old_retyped} THEN RETURN NULL; END IF;"
                " INSERT INTO {changes} VALUES {old}; RETURN NULL; END",
            }.items()
        }

    def start(self, conn: Connection, patience: Patience, ours: Callable[[], None], identity: Any) -> None:
        """Triggers need no session."""

    def close(self) -> None:
        """Nothing is open."""

    def switch_on(self, conn: Connection) -> Any:
        for event in EVENTS:
            name = sql.Identifier(self._free_name(conn, f"pglean_{self._job_id}_{event}"))
            conn.execute(
                sql.SQL("CREATE TRIGGER {} AFTER {} ON {} FOR EACH ROW EXECUTE FUNCTION {}()").format(
                    name, fragment(event.upper()), relation(self._table), self._function(event)
                )
            )
            conn.execute(sql.SQL("ALTER TABLE ONLY {} ENABLE ALWAYS TRIGGER {}").format(relation(self._table), name))
        return self._identity(conn)

    def _free_name(self, conn: Connection, name: str) -> str:
        while scalar(conn, query("capture.trigger_exists"), {"oid": self._table.oid, "name": name}):
            name += "_"
        return name

    def _identity(self, conn: Connection) -> Any:
        # By function, never by name: a trigger of the user's may bear any name.
        rows = conn.execute(
            query("capture.triggers"),
            {
                "oid": self._table.oid,
                "functions": [f"capture_{self._job_id}_{event}" for event in EVENTS],
            },
        )
        columns = conn.execute(
            query("capture.key_columns"),
            {"oid": self._table.oid, "numbers": [column.number for column in self._key or self._image]},
        )
        identity = {"triggers": [list(row) for row in rows], "key": [list(row) for row in columns]}
        return {**identity, "images": True} if self._image else identity

    def check(self, conn: Connection, identity: Any) -> None:
        found = self._identity(conn)
        if found == identity:
            return
        if found["triggers"] == identity["triggers"]:
            raise CaptureGap(
                f"a{' key' if self._key else ''} column of {self._table.qualified_name} was changed by another session",
                detail="What was written while it had another name or type was not recorded.",
            )
        raise CaptureGap(
            f"the triggers of pglean on {self._table.qualified_name} were changed by another session",
            detail="What was written while they were off (ALTER TABLE … DISABLE TRIGGER) was not recorded.",
            hint="Run pglean again when the bulk load is over.",
        )

    def switch_off(self, conn: Connection) -> None:
        for name, *_ in self._identity(conn)["triggers"]:
            conn.execute(sql.SQL("DROP TRIGGER {} ON {}").format(sql.Identifier(name), relation(self._table)))

    def look(self, conn: Connection, identity: Any) -> None:
        """Triggers that were tampered with fail nobody's write; the next step finds them."""

    @property
    def lags(self) -> bool:
        return False

    @property
    def consumable(self) -> sql.Composable:
        # Whoever sees a record sees what its transaction did.
        return sql.SQL("true")

    def pull(self, within_ms: float | None = None, waiting: Callable[[str], None] = lambda _: None) -> None:
        """Every change is recorded by its own transaction."""

    def complete(self, conn: Connection, within_ms: float) -> None:
        """A snapshot sees a record if it sees the change."""

    def fits(self, conn: Connection) -> bool:
        # The text names the columns, in the order of the change table's.
        functions = {f"capture_{self._job_id}_{event}": body for event, body in self._bodies().items()}
        rows = conn.execute(query("capture.bodies"), {"functions": list(functions)}).fetchall()
        found: dict[str, str] = dict(rows)
        return found == {name: body.as_string(conn) for name, body in functions.items()}

    def silence(self, conn: Connection) -> None:
        silence(conn, self._job_id)


def silence(conn: Connection, job_id: int) -> None:
    """Empty the functions of a run's triggers, of whose table nothing need be known."""
    for event in EVENTS:
        name = f"capture_{job_id}_{event}"
        # CREATE OR REPLACE locks no table; where the function is not there, neither is its trigger.
        if scalar(conn, query("capture.function_exists"), {"name": name}):
            conn.execute(
                sql.SQL(
                    "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
                ).format(sql.Identifier(SCHEMA, name))
            )


def _differs(column: KeyColumn) -> sql.Composed:
    text = (
        "NEW.{name} OPERATOR(pg_catalog.<>) OLD.{name}"
        if column.builtin and column.collation_sql is None
        else "ROW(NEW.{name})::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW(OLD.{name})::pg_catalog.record"
    )
    return sql.SQL(text).format(name=sql.Identifier(column.name))
