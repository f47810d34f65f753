"""The Python interface: a database, and what can be done to its tables."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg

from pglean import catalog, selection
from pglean.advice import survey as _advice
from pglean.advice.advice import Advice
from pglean.bloat import density, survey
from pglean.bloat.density import Density
from pglean.bloat.finding import Bloat, Method
from pglean.capture import wal
from pglean.engines import plan as _reindex_plan
from pglean.engines import reindex as _reindex
from pglean.engines.plan import Choice, ReindexPlan
from pglean.errors import NotBegun, PgleanError, UsageError
from pglean.options import Capture, Compression, InvalidIndexes, Options, Verify, Window
from pglean.patience import Patience, Policy
from pglean.progress import Callback, Progress
from pglean.result import ReindexResult, Result
from pglean.rewrite import cleanup as _cleanup
from pglean.rewrite import pipeline, preflight, schema, steering
from pglean.rewrite import status as runs
from pglean.rewrite.plan import Plan
from pglean.rewrite.status import Finished, Status
from pglean.selection import Chosen, Selection
from pglean.server import Server

_WAIT_TIMEOUT_S = Options().wait_timeout_s


class Database:
    """One database of a running server; made by `pglean.connect`. Safe to use from one thread at a time.

    What looks into the schema `pglean` raises `Refused` for whoever is not a superuser, where there is that schema.
    """

    def __init__(self, server: Server) -> None:
        self.server = server

    def select(
        self,
        *,
        tables: Sequence[str] = (),
        parents: Sequence[str] = (),
        schemas: Sequence[str] = (),
        without_extensions: Sequence[str] = (),
    ) -> list[Chosen]:
        """The tables that are meant by these, with their sizes; without any, every ordinary table of the database.

        `tables` are names as in SQL, and patterns as psql's ``\\dt`` takes them; `parents` stand for all that inherits
        from them, and for their partitions; of `schemas` (names or patterns) all tables are meant. Those of
        `without_extensions` are left out; one that does not exist has none. Whether a table can be repacked is not
        looked at: `plan` says that. The largest gain comes first, names come in the order in which they are given.

        Locks: ACCESS SHARE on each, for the moment in which its size is read; nobody is waited for.
        Raises `UsageError` where something means nothing, or they exclude each other.
        """
        wanted = Selection(tuple(tables), tuple(parents), tuple(schemas), tuple(without_extensions))
        with _told(self.server), self.server.connect("preflight") as conn:
            return selection.select(self.server, conn, wanted)

    def bloat(
        self,
        tables: Sequence[str] = (),
        *,
        schemas: Sequence[str] = (),
        method: str = survey.AUTO,
        min_bytes: int = 0,
        min_bloat: float = 0.0,
        top: int | None = None,
        max_scan_bytes: int = survey.MAX_SCAN_BYTES,
        partitions: bool = False,
        on_table: survey.Callback | None = None,
    ) -> Bloat:
        """How much of tables, TOAST tables and indexes is bloat, and what a repack would leave; the largest gain first.

        `tables` and `schemas` as for `select`; a partitioned table means its partitions, which are added up unless
        `partitions` lists them. `method`: ``estimate`` reads no table; ``approx`` and ``exact`` need the extension
        pgstattuple, and do not read relations larger than `max_scan_bytes`; ``auto`` estimates all of them, and looks
        closer at those where much could be gained, or nothing is known: by ``approx``, else by a sample of blocks.
        `min_bytes`, `min_bloat` (a share: 0.3) and `top` leave out the rest. `on_table` is told what is looked at.
        Any role may do this; what it may not see is None, and said in `notes`. Nothing is written.

        Locks: ACCESS SHARE on a relation while it is read; SHARE UPDATE EXCLUSIVE on a table of another role, no
        superuser, while it is sampled. Each is waited for at most 200 ms; what is locked is skipped, which is noted.
        Raises `UsageError`, and `Refused` where the method is not to be had.
        """
        request = survey.Request(
            tables=tuple(tables),
            schemas=tuple(schemas),
            method=method,
            min_bytes=min_bytes,
            min_bloat=min_bloat,
            top=top,
            max_scan_bytes=max_scan_bytes,
            partitions=partitions,
        )
        with _told(self.server), self.server.connect("bloat") as conn:
            return survey.look(self.server, conn, request, on_table or (lambda _: None))

    def advise(
        self,
        tables: Sequence[str] = (),
        *,
        schemas: Sequence[str] = (),
        method: str = Method.ESTIMATE,
        min_bytes: int = 0,
        min_gain_bytes: int = _advice.MIN_GAIN_BYTES,
        top: int | None = None,
        on_table: survey.Callback | None = None,
    ) -> Advice:
        """What to do about bloat, in which order, and what stands in the way: horizon, wraparound, running VACUUMs.

        `tables`, `schemas` and `method` as for `bloat`; partitions are looked at one by one. Of tables that are named
        it is also said that there is nothing to do. `min_bytes` leaves out smaller tables, `min_gain_bytes` actions
        that are about less, `top` all but the first actions.
        Any role may do this; what it may not see is said. Nothing is written.

        Locks: those of `bloat`. Raises what `bloat` raises.
        """
        looked_at = survey.Request(
            tables=tuple(tables), schemas=tuple(schemas), method=method, min_bytes=min_bytes, partitions=True
        )
        request = _advice.Request(looked_at, min_gain_bytes, top)
        with _told(self.server), self.server.connect("advise") as conn:
            return _advice.look(self.server, conn, request, on_table or (lambda _: None))

    def density(self, tables: Sequence[str] = (), *, schemas: Sequence[str] = (), cells: int = 400) -> list[Density]:
        """How full tables are along their files, in at most so many ranges of pages each; in the order of their names.

        From the free-space map, where the extension pg_freespacemap is there and VACUUM has written one, else from a
        sample of blocks; `why` of each says what was in the way. Tables and locks as for `bloat`.
        """
        request = survey.Request(tables=tuple(tables), schemas=tuple(schemas))
        with _told(self.server), self.server.connect("bloat") as conn:
            found = survey.figures_of(self.server, conn, request)
            found.sort(key=lambda figures: (figures.schema, figures.name))
            return [density.look(self.server, conn, figures, cells) for figures in found]

    def databases(self) -> list[str]:
        """The databases of the server, in order, that allow connections and are no templates. Takes no lock."""
        with _told(self.server), self.server.connect("preflight") as conn:
            return selection.databases(conn)

    def in_database(self, name: str) -> Database:
        """Another database of the same server, with the same credentials. Raises `ConnectionLost`, `UsageError`."""
        with _told(self.server):
            return Database(self.server.clone(name))

    def plan(self, table: str, options: Options | None = None, **changes: Any) -> Plan:
        """What `repack` would do, with sizes. Touches nothing.

        Locks: ACCESS SHARE on catalogs and, where the rows are to be sorted, for a moment on the table.

        Raises `Refused` with all findings, `UsageError` where there is no such table or option.
        """
        with _told(self.server):
            return preflight.plan(self.server, self._oid(table), _options(options, changes))

    def repack(
        self,
        table: str,
        options: Options | None = None,
        *,
        on_progress: Callback | None = None,
        **changes: Any,
    ) -> Result:
        """Rewrite a table while applications read and write it; a run on it that was kept is gone on with.

        `table` is read as in SQL, by the role's search path. Options are those of `Options`, as an object, by keyword,
        or both. `on_progress` is called with a `Progress`, from any thread of the run, at most a few times a second.

        Locks: ACCESS SHARE per chunk (`chunk_ms`) and refresh; SHARE ROW EXCLUSIVE once, for a moment; ACCESS EXCLUSIVE
        at the end, at most `max_lock_ms`; each waited for at most `lock_timeout_ms` at a time.
        Raises the errors of `pglean.errors`; the table is then as it was. Where work was lost to nothing but
        a lock, a connection, the disk or a pause, the run is kept (see `resume`); else nothing of it is left, or
        the error's hint says what is.
        """
        with _told(self.server), self.server.kept():
            return pipeline.repack(self.server, self._oid(table), _options(options, changes), on_progress)

    def repack_all(
        self,
        tables: Sequence[str],
        options: Options | None = None,
        *,
        at_once: int = 1,
        on_progress: Callback | None = None,
        **changes: Any,
    ) -> dict[str, Result | PgleanError]:
        """Rewrite several tables, `at_once` of them at the same time; returns what came of each, in their order.

        Each takes `jobs` workers and four sessions more; all of them together must be free on the server.
        `on_progress` is called from any thread.
        After an interruption, or a lost connection, no other table is begun; after `pglean pause` or `abort` of one,
        the others are.
        Raises `Refused` where so many connections are not free; the errors of single tables are returned.
        """
        given = _options(options, changes)
        if at_once > 1:
            # A run looks for itself alone.
            with _told(self.server):
                preflight.check_connections(self.server, given, min(at_once, len(tables)))
        ended: list[PgleanError] = []
        waiting = set(tables)

        def work(table: str) -> Result | PgleanError:
            outcome: Result | PgleanError
            waiting.discard(table)
            if ended:
                outcome = NotBegun(ended[0])
            else:
                try:
                    # One at a time needs no clone, and keeps to the connection that was asked for a password.
                    database = self if at_once == 1 else Database(self.server.clone())
                    outcome = database.repack(table, given, on_progress=on_progress)
                except PgleanError as error:
                    outcome = error
                    if error.ends_batch:
                        ended.append(error)
            if not waiting and at_once > 1:
                # What is under way beside it may take hours, in which the sessions of this one would wait for nothing.
                self.server.keep_no_more()
            return outcome

        with self.server.kept():
            if at_once == 1:
                return {table: work(table) for table in tables}
            with ThreadPoolExecutor(at_once, thread_name_prefix="pglean table") as pool:
                return dict(zip(tables, pool.map(work, tables), strict=True))

    def plan_reindex(
        self,
        tables: Sequence[str] = (),
        *,
        parents: Sequence[str] = (),
        indexes: Sequence[str] = (),
        tablespace: str | None = None,
        jobs: int = 1,
        wait_timeout_s: float = _WAIT_TIMEOUT_S,
    ) -> ReindexPlan:
        """What `reindex` would do, and what it could not. Touches nothing, takes ACCESS SHARE on indexes for a moment.

        Raises `Refused`, `UsageError` or `Incomplete` where nothing at all could be done.
        """
        options = _options(None, {"tablespace": tablespace, "jobs": jobs, "wait_timeout_s": wait_timeout_s})
        with _told(self.server):
            return _reindex_plan.plan(self.server, Choice(tuple(tables), tuple(parents), tuple(indexes)), options)

    def reindex(
        self,
        tables: Sequence[str] = (),
        *,
        parents: Sequence[str] = (),
        indexes: Sequence[str] = (),
        tablespace: str | None = None,
        jobs: int = 1,
        wait_timeout_s: float = _WAIT_TIMEOUT_S,
        on_progress: Callback | None = None,
    ) -> ReindexResult:
        """Rebuild all indexes of tables, of `parents` with their inheritors or partitions, and single ones.

        REINDEX INDEX CONCURRENTLY does the work; what earlier ones that failed have left of these tables is dropped.
        `tablespace`: where the indexes are moved to. `jobs`: so many tables at the same time; the indexes of one are
        rebuilt one after the other. `wait_timeout_s`: how long the first lock of each rebuild is waited for;
        transactions that use the table are waited for as long as they last, which `on_progress` is told.
        The role must own the tables, or have MAINTAIN on them (PostgreSQL 17); superuser is not needed.

        Locks: SHARE UPDATE EXCLUSIVE on a table while its indexes are rebuilt; readers and writers go on.
        Returns what was done; what was not, with its error, is in `failures` of the result (`error` sums it up).
        Raises `Refused`, `UsageError` or `Incomplete` where nothing at all could be done.
        """
        plan = self.plan_reindex(
            tables, parents=parents, indexes=indexes, tablespace=tablespace, jobs=jobs, wait_timeout_s=wait_timeout_s
        )
        with _told(self.server):
            for finding in plan.warnings:
                if on_progress is not None:
                    on_progress(Progress(0, "", "planned", message=f"warning: {finding}"))
            return _reindex.run(self.server, plan, on_progress)

    def resume(
        self,
        job: int,
        *,
        wait_timeout_s: float | None = None,
        kill_backend: bool | None = None,
        on_progress: Callback | None = None,
    ) -> Result | None:
        """Go on with a run that was interrupted or kept, in this process.

        With its own options, but for those of locks that are given here; they are the run's from then on.
        None where its files had been exchanged already and only what was left had to be removed.
        Raises `UsageError` where there is no such run, or it is over; else what `repack` raises.
        """
        with _told(self.server):
            self._check_primary()
            given = {"wait_timeout_s": wait_timeout_s, "kill_backend": kill_backend}
            changes = {name: value for name, value in given.items() if value is not None}
            return pipeline.resume(self.server, job, changes, on_progress)

    def pause(self, job: int, *, wait_s: float = 3600.0) -> None:
        """Ask a run of another process to stop after what it has begun, and wait for that; `resume` continues.

        Raises `UsageError` where nobody works on it, `LockNotObtained` where it goes on for longer than `wait_s`.
        """
        with _told(self.server):
            self._check_primary()
            steering.pause(self.server, job, wait_s)

    def swap(self, job: int) -> None:
        """Let a run of another process swap, which holds (`hold`) or waits for its window; returns at once.

        Raises `UsageError` where nobody works on it.
        """
        with _told(self.server):
            self._check_primary()
            steering.swap(self.server, job)

    def abort(self, job: int, *, wait_s: float = 60.0) -> tuple[str, list[str]]:
        """Undo a run, whether anybody works on it or not: its final state, and what could not be removed.

        A run whose files had been exchanged is finished instead (``done``).
        Locks: ACCESS EXCLUSIVE for a moment on the table, to drop the triggers.
        Raises `UsageError` where there is no such run, `LockNotObtained` where its process does not react.
        """
        with _told(self.server):
            self._check_primary()
            return steering.abort(self.server, job, wait_s)

    def status(self) -> list[Status]:
        """Runs that are not over: in progress, paused, interrupted, or with something left. Takes no lock."""
        with _told(self.server), self.server.connect("status") as conn:
            return runs.with_sizes(conn, runs.unfinished(conn))

    def log(self, limit: int = 50) -> list[Finished]:
        """The latest runs that are over, newest first. Takes no lock."""
        with _told(self.server), self.server.connect("log") as conn:
            return runs.history(conn, limit)

    def cleanup(self, options: Options | None = None, *, paused: bool = False) -> list[tuple[Status, list[str]]]:
        """Finish or undo what interrupted runs have left; each with what could not be removed (empty: all was).

        Runs that are kept on purpose (paused, or ended by what will pass) only with `paused`.
        Locks: ACCESS EXCLUSIVE for a moment on a table that still has triggers of ours.
        """
        policy = Policy.of(options or Options())
        self._check_primary()
        with _told(self.server), self.server.connect("cleanup") as conn:
            patience = Patience(self.server, policy, lambda _: None)
            return _cleanup.sweep(
                self.server,
                conn,
                patience,
                lambda run: paused or run.state != "paused" or run.swapped,
                time.monotonic() + policy.wait_timeout_s,
            )

    def orphans(self, *, drop: bool = False) -> list[str]:
        """Replication slots and publications of runs that nobody knows any more, as phrases; dropped if wanted.

        They are left where somebody drops the schema `pglean` while a run is kept that captures changes from the WAL.
        """
        with _told(self.server), self.server.connect("orphans") as conn:
            patience = Patience(self.server, Policy.of(Options()), lambda _: None)
            return wal.orphans(self.server, conn, patience, known=schema.present(conn), drop=drop)

    def uninstall(self) -> bool:
        """Drop the schema `pglean` with the history of runs; False where there is none.

        Raises `PgleanError` where a run is not over, `LockNotObtained` where somebody has its tables locked.
        """
        self._check_primary()
        with _told(self.server), self.server.connect("uninstall") as conn:
            if left := runs.unfinished(conn):
                raise PgleanError(
                    f"{len(left)} {'run is' if len(left) == 1 else 'runs are'} not over",
                    detail="; ".join(f"{run.id} on {run.schema}.{run.table}: {run.state}" for run in left),
                    hint=f"Wait for those that are running; {self.server.command('cleanup')} undoes those that were"
                    f" interrupted, {self.server.command('abort JOB')} those that are paused.",
                )
            return schema.drop(conn)

    def _check_primary(self) -> None:
        if self.server.capabilities.in_recovery:
            raise UsageError(
                "the server is a standby",
                hint="Connect to its primary: what stands here is that one's, only to be read.",
            )

    def _oid(self, table: str) -> int:
        with self.server.connect("preflight") as conn:
            return catalog.resolve(self.server, conn, table)


@contextlib.contextmanager
def _told(server: Server) -> Iterator[None]:
    """Errors of the driver leave as those of `pglean.errors`."""
    try:
        yield
    except psycopg.Error as error:
        raise server.translate(error) from error


def _options(options: Options | None, changes: dict[str, Any]) -> Options:
    try:
        if "verify" in changes:
            changes["verify"] = Verify(changes["verify"])
        if "invalid_indexes" in changes:
            changes["invalid_indexes"] = InvalidIndexes(changes["invalid_indexes"])
        if changes.get("capture") is not None:
            changes["capture"] = Capture(changes["capture"])
        if changes.get("compression") is not None:
            changes["compression"] = Compression(changes["compression"])
        if isinstance(changes.get("swap_window"), str):
            changes["swap_window"] = Window.parse(changes["swap_window"])
        return replace(options or Options(), **changes)
    except (TypeError, ValueError) as error:
        raise UsageError(f"invalid option: {error}") from error


@contextlib.contextmanager
def connect(conninfo: str = "") -> Iterator[Database]:
    """A database, by a connection string or URI as libpq takes it; empty for what the PG* environment says.

    Raises `ConnectionLost` where the server cannot be reached. Holds no connection while nothing is done.
    """
    yield Database(Server(conninfo))
