"""Capture from the WAL: the keys of changed rows are taken from what a logical replication slot sends.

Nothing is added to the application's transactions. The publication is of this one table and, where the server has
column lists (15) and the replica identity is the key, of the key's columns only.

From which moment on nothing is missed: the slot is there, and sends, before `switch_on` locks the table. Whatever
commits after the slot's starting point is sent. What had its commit in the WAL before that, and was not visible yet
(it waits for a synchronous standby), still held its lock on the table: so whoever got `SHARE ROW EXCLUSIVE` sees it,
and so does every chunk that is copied after that lock.

A commit may be recorded before it is visible, and visible before it is recorded:

* Records bear their transaction (column ``x``), and a refresh consumes those that its snapshot sees, no others
  (`consumable`).
* Before it relies on its snapshot, a refresh has everything recorded that was committed before that was taken (`pull`),
  and what it cannot see of that put into its own transaction (`complete`).

A temporary slot, the default, belongs to the session that made it: a crashed client leaves nothing that retains WAL,
and no run that could be gone on with. A permanent one is watched (`--max-slot-wal`).

Identity: OID and xmin of the publication and of its entry for the table, the replica identity, and the key. As long as
the session of the stream lives, nobody else can read or drop the slot; that it has not been read by others meanwhile is
looked at when a run is gone on with. What the stream tells of the table's columns is compared as well (`pgoutput`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql

from pglean import catalog
from pglean.blockers import Mode
from pglean.capture import changes, requirements
from pglean.capture.decoder import Decoder
from pglean.capture.pgoutput import Shape
from pglean.capture.stream import Stream
from pglean.catalog import relation
from pglean.errors import CaptureGap, LockNotObtained, TableChanged
from pglean.locks import OverBudget, locked, patiently
from pglean.patience import Patience
from pglean.server import Server
from pglean.session import Connection, scalar, transaction
from pglean.sql import fragment, query
from pglean.table import Table

#: Since when publications have column lists.
COLUMN_LISTS = 150000
#: How long a slot may be in use by a session of ours that is about to end, in seconds.
_LAST_WORDS_S = 10.0


class WalCapture:
    """Implements `pglean.capture.ChangeCapture`."""

    def __init__(self, server: Server, table: Table, job_id: int, max_slot_wal_bytes: int | None) -> None:
        """`max_slot_wal_bytes`: how much WAL a permanent slot may retain; None for a temporary one."""
        self._server, self._table, self._job_id = server, table, job_id
        self._limit_bytes = max_slot_wal_bytes
        #: Either of them is empty.
        self._key = table.key.columns if table.key else ()
        self._image = table.stored_columns if table.key is None else ()
        self._recorded = {"oid": table.oid, "numbers": [column.number for column in self._key or self._image]}
        #: Types of which values are made.
        self._enums: list[int] | None = None
        self._publication = publication(job_id)
        self._sessions = contextlib.ExitStack()
        self._decoder: Decoder | None = None

    # ---- making and removing

    def prepare(self, conn: Connection) -> None:
        changes.create(conn, self._table, self._job_id, sql.SQL("x pg_catalog.xid8 NOT NULL"))

    def start(self, conn: Connection, patience: Patience, ours: Callable[[], None], identity: Any) -> None:
        if identity is not None:
            self._resume(conn)
            return
        # Of an earlier run of this number, whose schema was dropped.
        orphans(self._server, conn, patience, known=True, drop=True, only=self._job_id)
        # The publication comes first: what is published is looked up as of the change.
        while True:
            try:
                with locked(self._server, conn, self._table, Mode.SHARE_UPDATE_EXCLUSIVE, patience):
                    ours()
                    # A permanent slot is on the disk at once: a crash must not take back the row that tells of it.
                    conn.execute("SET LOCAL synchronous_commit = local")
                    self._publish(conn)
            except OverBudget as error:
                patience.pause(self._table, Mode.SHARE_UPDATE_EXCLUSIVE, str(error), ())
                continue
            break
        slot = str(scalar(conn, query("capture.slot_name"), {"job": str(self._job_id)}))
        stream = self._connect()
        lsn = self._create_slot(conn, stream, slot, patience)
        try:
            ours()
        except BaseException:
            # Whoever has ended the run did not find it.
            with contextlib.suppress(psycopg.Error):
                stream.execute(query("capture.drop_slot"), {"slot": slot})
            raise
        conn.execute(query("capture.decoded"), {"job": self._job_id, "lsn": lsn})
        self._stream(conn, stream, slot)

    def _publish(self, conn: Connection) -> None:
        """On entry: SHARE UPDATE EXCLUSIVE, under which the replica identity stays."""
        if not requirements.identifies(conn, self._table):
            raise TableChanged(f"the replica identity of {self._table.qualified_name} was changed by another session")
        columns = sql.Composed([])
        identity = self._found(conn)["replica identity"]
        if conn.info.server_version >= COLUMN_LISTS and identity[0] != "f":
            names = sql.SQL(", ").join(sql.Identifier(column.name) for column in self._key)
            columns = sql.SQL("({})").format(names)
        generated = ", publish_generated_columns = stored" if any(column.generated for column in self._image) else ""
        conn.execute(
            sql.SQL("CREATE PUBLICATION {} FOR TABLE ONLY {} {} WITH (publish = 'insert, update, delete'{})").format(
                sql.Identifier(self._publication), relation(self._table), columns, fragment(generated)
            )
        )
        slot = scalar(conn, query("capture.slot_name"), {"job": str(self._job_id)})
        temporary = self._limit_bytes is None
        conn.execute(query("capture.new_slot"), {"job": self._job_id, "slot": slot, "temporary": temporary})

    def _connect(self) -> Connection:
        purpose = f"{self._job_id} {self._table.name} stream"
        return self._sessions.enter_context(self._server.connect(purpose, replication=True))

    def _create_slot(self, conn: Connection, stream: Connection, slot: str, patience: Patience) -> str:
        """Returns from where on the slot sends. Waits for whoever is writing, anywhere in the cluster, to end."""
        since: datetime = scalar(conn, "SELECT pg_catalog.clock_timestamp()")
        limit_ms = max(int(patience.policy.wait_timeout_s * 1000), 1)
        patience.tell("all who are writing in the cluster, before there can be a replication slot")
        stream.execute(sql.SQL("SET statement_timeout = {}").format(sql.Literal(limit_ms)))
        parameters = {"slot": slot, "temporary": self._limit_bytes is None}
        try:
            lsn = scalar(stream, query("capture.create_slot"), parameters)
        except pg.QueryCanceled as error:
            self._server.check()
            blockers = tuple(row[0] for row in conn.execute(query("capture.writers"), {"since": since}))
            raise LockNotObtained(
                f"could not create a replication slot within {patience.policy.wait_timeout_s:g} s",
                blockers=blockers,
                detail=" ".join(
                    ["It waits for every transaction that was writing when it began.", *(f"{b}." for b in blockers)]
                ),
                hint="Wait for these to end, raise --wait-timeout, or let triggers capture the changes"
                " (--capture trigger).",
            ) from error
        stream.execute("SET statement_timeout = 0")
        return str(lsn)

    def _resume(self, conn: Connection) -> None:
        """Go on reading the slot of the run; raises `CaptureGap` where it is not what it was."""
        deadline = time.monotonic() + _LAST_WORDS_S
        while True:
            row = conn.execute(query("capture.slot"), {"job": self._job_id}).fetchone()
            if row is None or not row[3]:
                raise CaptureGap(f"the replication slot of run {self._job_id} is gone")
            _, _, slot, _, usable, active, unread = row
            if not usable:
                raise CaptureGap(f"the replication slot of run {self._job_id} was invalidated by the server")
            if not unread:
                raise CaptureGap(f"the replication slot of run {self._job_id} was read by somebody else")
            if not active:
                break
            if time.monotonic() > deadline:
                raise LockNotObtained(f'replication slot "{slot}" is in use by another session')
            self._server.rest(0.1)
        try:
            self._stream(conn, self._connect(), slot)
        except pg.ObjectInUse as error:
            raise LockNotObtained(f'replication slot "{slot}" is in use by another session') from error

    def _stream(self, conn: Connection, session: Connection, slot: str) -> None:
        """Let the slot send from where it was decoded, and record what it sends from now on."""
        decoded, number, *_ = conn.execute(query("capture.slot"), {"job": self._job_id}).fetchone() or ("0/0", 0)
        found = self._found(conn)
        rows = conn.execute(query("capture.slot_columns"), self._recorded)
        columns = tuple((bytes(row[0]), row[1]) for row in rows)
        shape = Shape(self._table.oid, found["replica identity"][0], columns, whole=not self._key)
        writer = self._sessions.enter_context(self._server.connect(f"{self._job_id} {self._table.name} decoder"))
        # Bytes as they are: no character is lost on the way, whatever the encoding of the database.
        session.execute("SET client_encoding TO 'SQL_ASCII'")
        # A client that stands still for a while (Ctrl-Z, a machine that is moved) does not lose its work.
        session.execute("SET wal_sender_timeout = '5min'")
        stream = Stream(session)
        stream.start(slot, self._publication, decoded)
        self._decoder = Decoder(self._server, writer, stream, shape, self._job_id, slot, int(number), self._limit_bytes)
        self._decoder.start()

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._sessions.close()

    # ---- what it says of itself

    def switch_on(self, conn: Connection) -> Any:
        return self._found(conn)

    def _found(self, conn: Connection) -> dict[str, Any]:
        if self._enums is None:
            self._enums = [int(row[0]) for row in conn.execute(query("capture.enums"), self._recorded)]
        parameters = {"oid": self._table.oid, "publication": self._publication, "enums": self._enums}
        row = conn.execute(query("capture.publication"), parameters).fetchone()
        publication_, publication_xmin, entry, entry_xmin, letter, columns, labels = row or (None,) * 7
        identity: dict[str, Any] = {
            "publication": [publication_, publication_xmin, entry, entry_xmin],
            "replica identity": [letter, columns],
            "key": [[column.number, column.name, column.type_oid] for column in self._key],
            "labels": labels,
        }
        return {**identity, "images": True} if self._image else identity

    def check(self, conn: Connection, identity: Any) -> None:
        if self._decoder is not None:
            self._decoder.check()
        self.look(conn, identity)

    def look(self, conn: Connection, identity: Any) -> None:
        if identity is None:
            # The table is published already, perhaps, and a slot is waited for.
            if not requirements.identifies(conn, self._table):
                raise CaptureGap(f"the replica identity of {self._table.qualified_name} was changed by another session")
            return
        found = self._found(conn)
        if found == identity:
            return
        changed = [part for part in identity if found.get(part) != identity[part]]
        verb = "were" if changed[1:] else "was"
        raise CaptureGap(
            f"the {' and the '.join(changed)} of {self._table.qualified_name} {verb} changed by another session",
            detail="What was written in between may not have been recorded.",
        )

    def fits(self, conn: Connection) -> bool:
        # `check` has compared the key.
        return True

    def switch_off(self, conn: Connection) -> None:
        if self._decoder is not None:
            self._decoder.expect_end()
        _drop(conn, self._publication)

    def silence(self, conn: Connection) -> None:
        if self._decoder is not None:
            self._decoder.quit()
        silence(conn, self._job_id)

    # ---- what a refresh needs

    @property
    def lags(self) -> bool:
        return True

    @property
    def consumable(self) -> sql.Composable:
        if self._image:
            # Whatever is recorded is applied, in the order of commits, once.
            return sql.SQL("true")
        return sql.SQL("pg_catalog.pg_visible_in_snapshot(c.x, (SELECT pg_catalog.pg_current_snapshot()))")

    def pull(self, within_ms: float | None = None, waiting: Callable[[str], None] = lambda _: None) -> None:
        assert self._decoder is not None
        self._decoder.pull(within_ms, waiting)

    def complete(self, conn: Connection, within_ms: float) -> None:
        assert self._decoder is not None
        if self._image:
            # Images must not be recorded twice. Without any, the copy is the table as of a commit that is not the last.
            return
        self._decoder.complete(conn, within_ms)


def publication(job_id: int) -> str:
    """The publication of a run."""
    return f"pglean_{job_id}"


def silence(conn: Connection, job_id: int) -> None:
    """Let the publication of a run publish nothing: no write of the application fails because of what it publishes.

    Takes no lock on the table. Raises psycopg's LockNotAvailable after a second.
    """
    name = publication(job_id)
    if scalar(conn, query("capture.own_publication"), {"job": job_id, "publication": name}):
        _silence(conn, name)


def _silence(conn: Connection, name: str) -> None:
    with transaction(conn):
        conn.execute("SET LOCAL lock_timeout = '1s'")
        conn.execute(sql.SQL("ALTER PUBLICATION {} SET (publish = '')").format(sql.Identifier(name)))


def _drop(conn: Connection, name: str) -> None:
    """On entry: nobody can write to the table; its next writer notices, when he gets his lock.

    Who were about to look at the publication that his relation has would fail where it is gone ("cache lookup failed").
    """
    conn.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))


def _drop_safely(server: Server, conn: Connection, name: str, patience: Patience) -> list[str]:
    """Drop a publication under a lock on its table (SHARE ROW EXCLUSIVE); returns what is told where that cannot be."""
    published = conn.execute(query("capture.published"), {"publication": name}).fetchall()
    try:
        if not published:
            with transaction(conn):
                conn.execute("SET LOCAL lock_timeout = '1s'")
                _drop(conn, name)
            return []
        ((oid,),) = published
        table = patiently(server, conn, oid, patience, lambda: catalog.load(conn, oid))
        with locked(server, conn, table, Mode.SHARE_ROW_EXCLUSIVE, patience):
            _drop(conn, name)
    except (LockNotObtained, TableChanged, OverBudget, pg.LockNotAvailable) as error:
        with contextlib.suppress(pg.LockNotAvailable):
            _silence(conn, name)
        return [f"publication {name}, which publishes nothing: {error}"]
    return []


def remove(server: Server, conn: Connection, job_id: int, patience: Patience, deadline: float) -> list[str]:
    """Drop publication and slot of a run, if there are any; returns what could not be removed, as phrases.

    A slot that a session of the run has in use, which is about to end, is waited for until `deadline` (of
    time.monotonic). Locks: SHARE ROW EXCLUSIVE on the table for a moment, where it is published still.
    """
    name = publication(job_id)
    remains: list[str] = []
    if scalar(conn, query("capture.own_publication"), {"job": job_id, "publication": name}):
        remains += _drop_safely(server, conn, name, patience)
    while slot := conn.execute(query("capture.own_slots"), {"job": str(job_id)}).fetchone():
        name, active, temporary = slot
        if not active and not temporary:
            with contextlib.suppress(pg.ObjectInUse, pg.UndefinedObject):
                conn.execute(query("capture.drop_slot"), {"slot": name})
            continue
        if time.monotonic() > deadline:
            remains.append(f"replication slot {name} (in use by another session)")
            break
        time.sleep(0.05)
    return remains


def orphans(
    server: Server, conn: Connection, patience: Patience, *, known: bool, drop: bool, only: int | None = None
) -> list[str]:
    """Slots and publications of runs that nobody knows any more, as phrases; dropped if wanted and not in use.

    So it is after somebody has dropped the schema pglean while a run was kept. `known`: whether there is a schema that
    knows of runs; `only`: those that bear the number of this run.
    """
    found = conn.execute(query("capture.orphans")).fetchall()
    # Read later: a run that has begun meanwhile had noted itself when it made them.
    ours = {int(row[0]) for row in conn.execute(query("capture.known"))} if known else set()
    left = [row for row in found if row[3] not in ours and only in (None, row[3])]
    for kind, name, active, _ in left:
        if drop and not active and kind == "publication":
            _drop_safely(server, conn, name, patience)
        elif drop and not active:
            conn.execute(query("capture.drop_slot"), {"slot": name})
    return [f"{kind} {name}" for kind, name, *_ in left]
