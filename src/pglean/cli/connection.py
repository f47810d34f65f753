"""Connection options as psql has them, and the way from them to a `Database`."""

from __future__ import annotations

import contextlib
import getpass
import os
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

import click
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pglean.api import Database
from pglean.cli.sections import Section
from pglean.conninfo import invalid_conninfo
from pglean.errors import ConnectionLost, UsageError
from pglean.server import Server

F = TypeVar("F", bound=Callable[..., Any])

_NO_PASSWORD = "no password supplied"
_SECTION = Section("Connection")
_OPTIONS = (
    click.argument("dbname", required=False),
    _SECTION.option("-d", "--dbname", "dbname_option", metavar="DBNAME", help="Database, connection string or URI."),
    _SECTION.option("-h", "--host", help="Server's host name or socket directory."),
    _SECTION.option("-p", "--port", help="Server's port."),
    _SECTION.option("-U", "--username", help="Role to connect as."),
    _SECTION.option("-w", "--no-password", is_flag=True, help="Never ask for a password."),
    _SECTION.option("-W", "--password", "ask_password", is_flag=True, help="Ask for a password before connecting."),
)


def connection_options(command: F) -> F:
    """Add -h -p -U -d -w -W and the positional DBNAME."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_database(
    dbname: str | None,
    dbname_option: str | None,
    host: str | None,
    port: str | None,
    username: str | None,
    no_password: bool,
    ask_password: bool,
    *,
    whole_server: bool = False,
) -> Database:
    """Connect as psql would: PG* environment, service and password files; a password is asked for on a terminal.

    With `whole_server` and no database named, to `postgres`, or `template1` where there is no such, as vacuumdb --all.
    Raises `UsageError`, `ConnectionLost`.
    """
    if dbname and dbname_option:
        # Not which: either may be a URI with a password.
        raise UsageError("two databases were named", hint="Name one, by -d or without.")
    target = as_utf8("database name", dbname or dbname_option or "")
    given = {"host": host, "port": port, "user": username}
    parameters = {name: as_utf8(name, value) for name, value in given.items() if value is not None}
    try:
        if "=" in target or target.startswith(("postgresql://", "postgres://")):
            conninfo = make_conninfo(target, **parameters)
        else:
            conninfo = make_conninfo(dbname=target or None, **parameters)
    except Exception as error:
        raise invalid_conninfo(error, target) from error
    connect = _to_any_database if whole_server and "dbname" not in conninfo_to_dict(conninfo) else Server
    if ask_password:
        return Database(connect(_with_password(conninfo)))
    try:
        return Database(connect(conninfo))
    except ConnectionLost as error:
        wanted = _NO_PASSWORD in error.message
        if not wanted or no_password or not sys.stdin.isatty():
            raise
    return Database(connect(_with_password(conninfo)))


def _to_any_database(conninfo: str) -> Server:
    try:
        return Server(make_conninfo(conninfo, dbname="postgres"))
    except ConnectionLost as error:
        if _NO_PASSWORD in error.message:
            raise
        try:
            return Server(make_conninfo(conninfo, dbname="template1"))
        except ConnectionLost:
            raise error from None


def _with_password(conninfo: str) -> str:
    """The same with a password from the terminal; where there is none, from standard input."""
    try:
        with warnings.catch_warnings():
            # That a pipe does not hide what is typed into it.
            warnings.simplefilter("ignore", getpass.GetPassWarning)
            return make_conninfo(conninfo, password=getpass.getpass())
    except (EOFError, OSError, ValueError, AttributeError) as error:
        # AttributeError: standard input is closed, so that Python has none.
        raise UsageError(
            "no password was given",
            detail="It was asked for on the terminal, or where there is none on standard input, which has ended.",
            hint="Put it into a password file (~/.pgpass).",
        ) from error


def as_utf8(what: str, text: str) -> str:
    """An argument as the server takes it, also where Python, by the locale, took it for something else.

    Raises `UsageError` where its bytes are no UTF-8.
    """
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError as error:
        shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
        raise UsageError(f"invalid {what}: {shown}", detail="It is not valid UTF-8.") from error


@contextlib.contextmanager
def interruptible(database: Database) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end a run, which is then undone. A further one waits for that."""
    # The handler may interrupt this very thread while it holds a lock of threading's or ours, so it takes none: a
    # SimpleQueue is made for that. What it asks for is done by another thread.
    asked: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def stop(number: int, _: FrameType | None) -> None:
        asked.put(signal.Signals(number).name)

    def watch() -> None:
        while (name := asked.get()) is not None:
            database.server.cancel(name)

    watcher = threading.Thread(target=watch, name="pglean signals", daemon=True)
    watcher.start()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked.put(None)
        watcher.join()
