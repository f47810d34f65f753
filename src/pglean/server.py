"""Connections: the only module that opens any. Each is named by its purpose and made safe (`session`) before its use.

`Server` also is the switch for Ctrl-C: `Server.cancel` makes every session of a run stop, whatever it is doing, and
every later step raise `Interrupted`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import tuple_row

from pglean.conninfo import connection_words, invalid_conninfo
from pglean.errors import ConnectionLost, DiskFull, Interrupted, PgleanError, UsageError
from pglean.session import (
    Connection,
    Cursor,
    PlainCursor,
    Session,
    application_name,
    set_purpose,
    set_up,
    settable,
)
from pglean.spares import Spares


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this server is and what our role may do there."""

    #: server_version_num, e.g. 150020.
    version: int
    database: str
    role: str
    #: The role that logged in: another one where `role` was set for it, or for the database.
    login_role: str
    is_superuser: bool
    login_is_superuser: bool
    in_recovery: bool
    block_bytes: int
    max_connections: int
    #: The search path that the role has by itself: by it, `-t orders` is resolved.
    search_path: str
    has_plpgsql: bool


class Server:
    """One database of one server, as `conninfo` names it.

    Raises `ConnectionLost` where it cannot be reached, `UsageError` where the connection string is wrong.
    """

    def __init__(self, conninfo: str = "", *, like: Server | None = None) -> None:
        """`like`: another of the same database, whose knowledge and spare sessions it shares."""
        self._conninfo = conninfo
        self._open: set[Connection] = set()
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._reason: PgleanError = Interrupted("interrupted")
        self._postponed: PgleanError | None = None
        self._shielded = False
        self._clones: list[Server] = []
        #: Of those that each session sets, what this server has and lets our role set; empty until that is known.
        self._settings: dict[str, str] = {}
        self._spares = Spares()
        self.capabilities: Capabilities
        if like is not None:
            self._settings, self._spares, self.capabilities = like._settings, like._spares, like.capabilities
            return
        try:
            with self.connect("preflight") as conn:
                self.capabilities = _capabilities(conn)
        except ConnectionLost as error:
            error.hint = "Nothing was begun. Look whether the server runs, and at -h, -p, -U and -d."
            raise

    def command(self, words: str) -> str:
        """What to type to have pglean do something in this database: ``resume 17``, say, as `pglean resume 17 -d shop`.

        With what was given of where the server is and as whom to connect, but never with a password. What came from the
        environment is not repeated: it is still there.
        """
        return f"`pglean {words} {self.words}`"

    @property
    def words(self) -> str:
        """Options of the command line that lead here, without what is secret; quoted for a shell."""
        return connection_words(self._conninfo, self.capabilities.database)

    # ---- connections

    @contextlib.contextmanager
    def connect(self, purpose: str, *, cancellable: bool = True, replication: bool = False) -> Iterator[Connection]:
        """A session in autocommit mode, closed at the end of the block, or kept for whoever asks for one next (`kept`).

        Raises `ConnectionLost`, `UsageError`, `Interrupted`.
        `cancellable=False` is for undoing: its statements survive the `cancel` that made it necessary. It is a new one:
        to find out that one which was kept is lost may take as long as the network likes.
        `replication`: a session in which logical replication can be started as well.
        """
        conn: Connection | None = None
        if cancellable:
            self.check()
            conn = None if replication else self._take(purpose)
        conn = conn or self._connect(purpose, replication=replication)
        if cancellable:
            with self._lock:
                self._open.add(conn)
        spare = False
        try:
            if cancellable:
                # A `cancel` of this moment may have looked at the open sessions before this one was among them.
                self.check()
            yield conn
            spare = not replication
        finally:
            with self._lock:
                self._open.discard(conn)
            if not spare or not self._spare(conn):
                conn.close()

    def kept(self) -> contextlib.AbstractContextManager[None]:
        """In the block sessions that have done their work are kept for whatever asks for one next.

        One that is new to a table's catalog entries, and to the server, takes several times as long for what is
        to be done with a small table.
        """
        return self._spares.kept()

    def keep_no_more(self) -> None:
        """What was begun needs no other session: from here to the end of `kept`, each is closed after its work."""
        self._spares.enough()

    @property
    def spare_pids(self) -> list[int]:
        """Of the sessions that wait for work, so that they can be told from those of others."""
        return self._spares.pids

    def _take(self, purpose: str) -> Connection | None:
        conn = self._spares.take()
        if conn is None:
            return None
        try:
            set_purpose(conn, purpose)
        except psycopg.Error:
            # Somebody has ended it, or the way to the server is lost, which would be found out of each anew.
            conn.close()
            self._spares.drop()
            return None
        except BaseException:
            conn.close()
            raise
        return conn

    def _spare(self, conn: Connection) -> bool:
        """Keep it, as it was when it was new; False where it is not wanted, or is not what it should be."""
        # One that may have been sent a request to cancel might act on it in its next life. Where a role was set for
        # the login, there is no way back to it but to log in again.
        asked = self.cancelled or (isinstance(conn, Session) and conn.asked)
        if asked or self.capabilities.role != self.capabilities.login_role or not self._spares.wants(conn):
            return False
        try:
            # Locks, temporary tables, settings, prepared statements: all that a session can have of its own.
            conn.execute("DISCARD ALL")
            self._make_safe(conn)
            set_purpose(conn, "spare")
        except (psycopg.Error, UsageError):
            return False
        except BaseException:
            conn.close()
            raise
        return self._spares.put(conn)

    @property
    def connections(self) -> list[Connection]:
        """All that are open now."""
        with self._lock:
            return list(self._open)

    def _connect(self, purpose: str, *, replication: bool = False) -> Connection:
        try:
            conn = Session.connect(
                make_conninfo(self._conninfo, replication="database") if replication else self._conninfo,
                autocommit=True,
                # Plans of chunk statements are never reused, and a pooler in between may not know prepared ones.
                prepare_threshold=None,
                row_factory=tuple_row,
                cursor_factory=PlainCursor if replication else Cursor,
                # A name in another encoding must reach the server as it was read from it.
                client_encoding="UTF8",
                application_name=application_name(purpose),
            )
        except psycopg.ProgrammingError as error:
            raise invalid_conninfo(error, self._conninfo) from error
        except psycopg.OperationalError as error:
            if "connection option" in str(error):
                raise invalid_conninfo(error, self._conninfo) from error
            raise ConnectionLost(str(error).strip()) from error
        try:
            self._make_safe(conn)
        except psycopg.Error as error:
            conn.close()
            raise translate(error) from error
        except UsageError:
            conn.close()
            raise
        return conn

    def _make_safe(self, conn: Connection) -> None:
        try:
            self._settings = self._settings or settable(conn)
            pid = set_up(conn, self._settings)
        except psycopg.errors.InsufficientPrivilege:
            # The role is not any more what it was.
            self._settings = settable(conn)
            pid = set_up(conn, self._settings)
        if pid != conn.info.backend_pid:
            raise UsageError(
                "the connection goes through a pooler",
                detail="Settings, locks and snapshots of a session must stay with one server process.",
                hint="Connect to the server itself.",
            )

    def clone(self, database: str | None = None) -> Server:
        """Another of the same database, for a run at the same time: what ends that run does not end the others.

        Or of another `database` of the same server, with the same credentials.
        A `cancel` of this one is one of that, too. Raises what `Server` raises.
        """
        if database is None:
            other = Server(self._conninfo, like=self)
        else:
            other = Server(make_conninfo(self._conninfo, dbname=database))
        with self._lock:
            self._clones.append(other)
        if self._cancelled.is_set():
            other.abort(self._reason)
        return other

    # ---- interruption

    def cancel(self, reason: str) -> None:
        """End whatever sessions of ours do, now and later: the user wants it. Returns at once.

        Not to be called from a signal handler: it takes locks that the interrupted thread may hold.
        A cancel request that arrives while a session is between two statements has no effect, so it is repeated.
        """
        # In this order: a clone that is just being made looks at this one, or is among those that are looked at here.
        self.abort(Interrupted(f"interrupted by {reason}"))
        with self._lock:
            clones = list(self._clones)
        for clone in clones:
            clone.cancel(reason)

    def abort(self, error: PgleanError) -> None:
        """The same, for another reason: `error` is what every later step raises."""
        with self._lock:
            if self._shielded:
                # What is being undone goes on; what would come after it does not begin.
                self._postponed = self._postponed or error
                return
            if self._cancelled.is_set():
                return
            self._reason = error
            self._cancelled.set()
        threading.Thread(target=self._keep_cancelling, name="pglean cancel", daemon=True).start()

    def _keep_cancelling(self) -> None:
        pause = threading.Event()
        while self._cancelled.is_set():
            with self._lock:
                conns = list(self._open)
            if not conns:
                return
            for conn in conns:
                with contextlib.suppress(psycopg.Error):
                    conn.cancel_safe(timeout=2)
            pause.wait(0.1)

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """For undoing: an earlier `cancel` is over, a later one takes effect at the end of the block."""
        with self._lock:
            self._shielded = True
            self._cancelled.clear()
        try:
            yield
        finally:
            with self._lock:
                self._shielded = False
                postponed, self._postponed = self._postponed, None
            if postponed is not None:
                self.abort(postponed)

    @property
    def cancelled(self) -> bool:
        """Whether `check` would raise."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise `Interrupted` once `cancel` was called, or what `abort` was called with."""
        if self._cancelled.is_set():
            raise copy(self._reason)

    def translate(self, error: Exception) -> PgleanError:
        """What an error means to the user: a statement that we cancelled ended for the reason that we had."""
        if isinstance(error, psycopg.Error) and self._cancelled.is_set():
            return copy(self._reason)
        return translate(error)

    def rest(self, seconds: float) -> None:
        """Wait with no transaction open; raises `Interrupted` as soon as `cancel` is called."""
        if self._cancelled.wait(seconds):
            self.check()


def _capabilities(conn: Connection) -> Capabilities:
    row = conn.execute(
        """
        SELECT pg_catalog.current_database(), current_user, session_user,
               (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user),
               (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user),
               pg_catalog.pg_is_in_recovery(),
               pg_catalog.current_setting('block_size')::int,
               pg_catalog.current_setting('max_connections')::int,
               (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'search_path'),
               EXISTS (SELECT FROM pg_catalog.pg_language WHERE lanname = 'plpgsql')
        """
    ).fetchone()
    assert row is not None
    database, role, login_role, is_superuser, login_is_superuser, *others = row
    in_recovery, block_bytes, max_connections, search_path, has_plpgsql = others
    return Capabilities(
        version=conn.info.server_version,
        database=database,
        role=role,
        login_role=login_role,
        is_superuser=is_superuser,
        login_is_superuser=login_is_superuser,
        in_recovery=in_recovery,
        block_bytes=block_bytes,
        max_connections=max_connections,
        search_path=search_path,
        has_plpgsql=has_plpgsql,
    )


#: SQLSTATEs with which the server ends a session: shutdown, crash, database dropped, idle or transaction timeouts.
_ENDED = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"})


def translate(error: BaseException) -> PgleanError:
    """What an error of the driver means to the user; ours pass unchanged."""
    if isinstance(error, PgleanError):
        return error
    if isinstance(error, psycopg.Error):
        diag = error.diag
        message = diag.message_primary or str(error).strip() or type(error).__name__
        cut = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and diag.sqlstate is None
        if cut or diag.sqlstate in _ENDED or (diag.sqlstate or "").startswith("08"):
            return ConnectionLost(
                "connection to the server was lost",
                detail=message,
                hint="Look at the server's log; `pglean status` lists what can be gone on with by `pglean resume`.",
            )
        if isinstance(error, psycopg.errors.DiskFull):
            return DiskFull(message, detail=diag.message_detail, hint="Make room on the server's disk.")
        return PgleanError(message, detail=diag.message_detail, hint=diag.message_hint)
    return PgleanError(f"unexpected error: {error!r}")
