"""The persisted run: its row in pglean.job, its checkpoints, the names of its objects.

Everything that a run makes is named after its job's number and stands in the schema `pglean`, except the
triggers on the table, whose functions stand there. So whoever finds a job's row finds all that belongs to it.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from pglean.catalog import Fingerprint, relation
from pglean.errors import PgleanError, TakenOver
from pglean.options import Options
from pglean.rewrite.layout import Layout
from pglean.rewrite.order import Order
from pglean.rewrite.phase import FOLLOWS, Phase
from pglean.session import Connection, scalar
from pglean.sql import query
from pglean.table import Table

SCHEMA = "pglean"

#: First half of the advisory locks of a run's sessions ("pgle"; the claim on a table is one of another kind).
_NAMESPACE = 0x70676C65
#: How long an earlier session of a run may take to end what it does.
_LAST_WORDS = "30s"


@dataclass(frozen=True, slots=True)
class Job:
    """Which run this is. Its state is in the database, not here."""

    id: int
    table: Table
    options: Options
    fingerprint: Fingerprint
    #: By what the rows of the copy are sorted; None: they lie as in the table.
    order: Order | None = None
    #: How often the run was resumed.
    epoch: int = 0

    @property
    def layout(self) -> Layout:
        """Of the files that the table gets."""
        return Layout(self.table, self.options)

    @property
    def shadow(self) -> sql.Identifier:
        """The table that is filled and then exchanged."""
        return sql.Identifier(SCHEMA, self.shadow_name)

    @property
    def shadow_name(self) -> str:
        return f"shadow_{self.id}"

    @property
    def changes(self) -> sql.Identifier:
        """The table of what was recorded: keys, or images of rows."""
        return sql.Identifier(*self.changes_name.split("."))

    @property
    def changes_name(self) -> str:
        """The same, as text for regclass: nothing in it needs quotes."""
        return f"{SCHEMA}.changes_{self.id}"

    def twin_name(self, index_oid: int) -> str:
        """The shadow's index that stands for an index of the table."""
        return f"twin_{self.id}_{index_oid}"


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database has of a run."""

    id: int
    relation: int
    phase: Phase
    #: running, paused, done, undone, remains.
    state: str
    options: Options
    fingerprint: Fingerprint
    order: Order | None
    #: What identifies the capture; None before it was switched on.
    capture: Any
    #: So many pieces the copy is divided into.
    pieces: int | None
    #: Qualified name of the table when the run began.
    table: str
    #: How often the run was resumed.
    epoch: int

    @property
    def by_images(self) -> bool:
        """Whether it was begun while the table had no key: it goes on without one, whatever there is by now."""
        return bool(self.capture and self.capture.get("images"))


# ---- the row


def create(
    conn: Connection, table: Table, options: Options, fingerprint: Fingerprint, order: Order | None, version: str
) -> Job:
    """A new run in phase `planned`."""
    job_id = scalar(
        conn,
        query("job.create"),
        {
            "relation": table.oid,
            "schema": table.schema,
            "name": table.name,
            "options": _exactly(options.as_json()),
            "fingerprint": _exactly(fingerprint),
            "ordering": None if order is None else _exactly(order.as_json()),
            "client": _client(),
            "version": version,
        },
    )
    return Job(int(job_id), table, options, fingerprint, order)


def _client() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def load(conn: Connection, job_id: int) -> Stored | None:
    """What the database has of a run; None where there is no such run."""
    row = conn.execute(query("job.load"), {"job": job_id}).fetchone()
    if row is None:
        return None
    (number, relation_oid, phase, state, options, fingerprint, ordering, *rest) = row
    order = None if ordering is None else Order.from_json(ordering)
    return Stored(number, relation_oid, Phase(phase), state, Options.from_json(options), fingerprint, order, *rest)


def resumable(conn: Connection, oid: int) -> int | None:
    """The run on a table that is neither over nor swapped, whether anybody works on it or not."""
    found: int | None = scalar(conn, query("job.resumable"), {"relation": oid})
    return found


def revive(keeper: Connection, conn: Connection, stored: Stored, options: Options, version: str) -> int:
    """Take the run over, with these options; returns the new epoch.

    What the run's earlier sessions have under way is waited for, psycopg's LockNotAvailable after `_LAST_WORDS`; what
    they begin later (a client that hung, and came back) is refused, as long as the session `keeper` lives.
    """
    keeper.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(_LAST_WORDS)))
    try:
        keeper.execute(query("job.supersede"), {"namespace": _NAMESPACE, "key": _epoch_key(stored.id, stored.epoch)})
    finally:
        keeper.execute("SET lock_timeout = 0")
    conn.execute(
        query("job.revive"),
        {
            "job": stored.id,
            "epoch": stored.epoch + 1,
            "options": _exactly(options.as_json()),
            "client": _client(),
            "version": version,
        },
    )
    return stored.epoch + 1


def check_current(conn: Connection, job: Job) -> None:
    """Raise `TakenOver` where another session goes on with the run; if not, it cannot before the transaction ends."""
    parameters = {"namespace": _NAMESPACE, "key": _epoch_key(job.id, job.epoch), "job": job.id, "epoch": job.epoch}
    if not scalar(conn, query("job.current"), parameters):
        raise _taken_over(job)


def is_ours(conn: Connection, job: Job) -> bool:
    """Whether nobody else has gone on with the run, or ended it, since."""
    return bool(scalar(conn, query("job.ours"), {"job": job.id, "epoch": job.epoch}))


def _epoch_key(job_id: int, epoch: int) -> int:
    return (job_id * 4096 + epoch % 4096) % (1 << 31)


def keep(conn: Connection, job_id: int, error: str) -> None:
    """Note that nobody works on the run for now, and why; all of it stays."""
    conn.execute(query("job.keep"), {"job": job_id, "error": _plain(error)})


def adopt(conn: Connection, job_id: int, fingerprint: Fingerprint) -> None:
    """Persist what the table is now."""
    conn.execute(query("job.adopt"), {"job": job_id, "fingerprint": _exactly(fingerprint)})


def request(conn: Connection, job_id: int, command: str) -> bool:
    """Ask whoever works on the run to pause, to swap or to abort it; False where the run is over or paused."""
    return conn.execute(query("job.request"), {"job": job_id, "command": command}).rowcount == 1


def command(conn: Connection, job_id: int) -> str | None:
    """What the run was asked for."""
    asked: str | None = scalar(conn, query("job.command"), {"job": job_id})
    return asked


def enter(conn: Connection, job: Job, phase: Phase) -> None:
    """Persist that the run is in `phase`, in the caller's transaction if there is one.

    Raises `TakenOver` where the run is not this session's any more, `PgleanError` where the transition table does not
    know the step: a bug, better found before it commits.
    """
    before = [int(earlier) for earlier, following in FOLLOWS.items() if earlier is phase or phase in following]
    parameters = {"job": job.id, "epoch": job.epoch, "phase": int(phase), "before": before}
    if conn.execute(query("job.enter"), parameters).rowcount != 1:
        if not is_ours(conn, job):
            raise _taken_over(job)
        raise PgleanError(f"run {job.id} cannot go from {phase_of(conn, job.id)!r} to {phase!r}")


def lock_ours(conn: Connection, job: Job) -> None:
    """Until the end of the open transaction nobody else ends the run, or goes on with it. Raises `TakenOver`."""
    if conn.execute(query("job.lock_ours"), {"job": job.id, "epoch": job.epoch}).fetchone() is None:
        raise _taken_over(job)


def _taken_over(job: Job) -> TakenOver:
    return TakenOver(f"another session has gone on with run {job.id}, or ended it")


def phase_of(conn: Connection, job_id: int) -> Phase | None:
    """The phase of a run as the database has it; None where there is no such run."""
    value = scalar(conn, query("job.phase"), {"job": job_id})
    return None if value is None else Phase(value)


def state_of(conn: Connection, job_id: int) -> str | None:
    """The state of a run as the database has it; None where there is no such run."""
    value: str | None = scalar(conn, query("job.state"), {"job": job_id})
    return value


def beat(conn: Connection, job: Job, progress: dict[str, Any]) -> None:
    """Persist the heartbeat with the latest progress."""
    conn.execute(query("job.beat"), {"job": job.id, "epoch": job.epoch, "progress": _json(progress)})


def record_capture(conn: Connection, job_id: int, identity: Any, pieces: int) -> None:
    """Persist what identifies the capture, and the pieces to be copied, in the transaction that switched it on."""
    conn.execute(query("job.capture"), {"job": job_id, "capture": _exactly(identity), "pieces": pieces})


def record_chunk(conn: Connection, job_id: int, first: int, end: int, rows: int) -> None:
    """Persist that a range of pieces is copied, in the transaction that copied it."""
    conn.execute(query("job.chunk"), {"job": job_id, "first": first, "end": end, "rows": rows})


def record_twin(conn: Connection, job_id: int, index_oid: int, twin_oid: int) -> None:
    """Persist which empty index of the shadow stands for which of the table, in the transaction that made it."""
    conn.execute(query("job.twin"), {"job": job_id, "index": index_oid, "twin": twin_oid})


def record_built(conn: Connection, job_id: int, index_oid: int) -> None:
    """Persist that a twin is built, in the transaction that built it."""
    conn.execute(query("job.built"), {"job": job_id, "index": index_oid})


def twins(conn: Connection, job_id: int) -> dict[int, int]:
    """Index of the table -> its twin, for all that are built."""
    return {row[0]: row[1] for row in conn.execute(query("job.twins"), {"job": job_id})}


def unbuilt(conn: Connection, job_id: int) -> set[int]:
    """The indexes of the table that have an empty twin."""
    return {row[0] for row in conn.execute(query("job.all_twins"), {"job": job_id}) if not row[2]}


def forget_twin(conn: Connection, job_id: int, index_oid: int) -> None:
    """Drop the checkpoint of a twin, in the transaction that drops it."""
    conn.execute(query("job.forget_twin"), {"job": job_id, "index": index_oid})


def chunks(conn: Connection, job_id: int) -> list[tuple[int, int, int]]:
    """The ranges of pieces that are copied, in order: first piece, end (exclusive), rows."""
    return [(row[0], row[1], row[2]) for row in conn.execute(query("job.chunks"), {"job": job_id})]


def forget_copy(conn: Connection, job_id: int) -> None:
    """Drop the checkpoints of all chunks and twins, in the transaction that drops the shadow."""
    conn.execute(query("job.forget_copy"), {"job": job_id})


def finish(
    conn: Connection,
    job_id: int,
    state: str,
    *,
    error: str | None = None,
    result: dict[str, Any] | None = None,
) -> None:
    """Close the row and drop its checkpoints: `done`, `undone`, or `remains` where something could not be removed.

    A row that `remains` keeps its phase: it tells whether what remains is to be undone or is left of a success.
    """
    conn.execute(
        query("job.finish"),
        {
            "job": job_id,
            "phase": None if state == "remains" else int(Phase.DONE if state == "done" else Phase.UNDONE),
            "state": state,
            "error": None if error is None else _plain(error),
            "result": None if result is None else _json(result),
        },
    )


def analyze(conn: Connection, table: Table) -> None:
    """ANALYZE, as the table's owner (the server sees to that). SHARE UPDATE EXCLUSIVE, waited for a second at most."""
    conn.execute("SET lock_timeout = '1s'")
    try:
        conn.execute(sql.SQL("ANALYZE {}").format(relation(table)))
    finally:
        conn.execute("SET lock_timeout = 0")


def _plain(text: str) -> str:
    """Without what a database in another encoding than UTF-8 could not store of our own texts."""
    return text.replace("…", "...")


def _json(value: Any) -> Jsonb:
    """What we tell people, as jsonb: progress and results. Nobody reads it back to act on it.

    Characters as they are, not as escapes, of which a database in another encoding than UTF-8 has no use; those of our
    own that such a database lacks are written plainly, and what JSON does not know as text.
    """
    return Jsonb(value, dumps=lambda v: _plain(json.dumps(v, default=str, ensure_ascii=False)))


def _exactly(value: Any) -> Jsonb:
    """What a run that is resumed goes by, as jsonb: options, order, fingerprint, the capture's identity.

    It must come back as it was: without its ellipsis, a name or a bound of a range would be another one. So no
    character is exchanged for another, and what JSON does not know is an error.
    """
    return Jsonb(value, dumps=lambda v: json.dumps(v, ensure_ascii=False))
