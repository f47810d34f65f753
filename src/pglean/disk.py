"""Free space on the server's disks, as its file systems tell; only where pglean runs on the same machine.

No function of the server tells how full its disks are. So the directories are looked at from here, once it is proved
that those seen here are the server's own. A name proves nothing: in a container, and on a standby that was set up
alike, the data directory has the same one. Nor do port and start time, where both were started together. The proof is
that server and client read the same `postmaster.pid`: process id, time of the start, port, directory of the socket,
and the key of the shared memory, which the server makes of the directory's inode.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from psycopg import errors as pg

from pglean.session import Connection
from pglean.sql import query
from pglean.table import quote_name

#: OIDs that every server has for the tablespaces that lie in the data directory itself.
_BUILT_IN = {1663: "base", 1664: "global"}
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Space:
    """Where the run writes, as seen from here."""

    #: What a directory is for, in words -> the directory; one for each file system.
    paths: Mapping[str, Path]

    def free_bytes(self) -> dict[str, int]:
        """What is free for the server, by what it is for. Raises `OSError`."""
        return {purpose: _free_bytes(path) for purpose, path in self.paths.items()}


def find(conn: Connection, tablespace: str | None) -> Space | None:
    """The file system of a tablespace (None: the database's own) and that of the WAL, where it is another one.

    None where they cannot be seen from here: another machine, another container, no right to look.
    """
    try:
        server = conn.execute(query("throttle.server")).fetchone()
        where = conn.execute(query("throttle.tablespace"), {"name": tablespace}).fetchone()
    except pg.InsufficientPrivilege:
        return None
    if server is None or where is None:
        return None
    (directory, pid_file, segment), (oid, name, version) = server, where
    data = Path(directory)
    try:
        if (data / "postmaster.pid").read_bytes() != pid_file:
            return None
        # Links out of a data directory that is shared with a container may lead to something else here than there.
        files, wal = _directory(data, oid, version), data / "pg_wal"
        (wal / segment).stat()
        paths = {purpose_of(name): files}
        if files.stat().st_dev != wal.stat().st_dev:
            paths["pg_wal"] = wal
    except OSError:
        return None
    return Space(paths)


def of_tablespaces(conn: Connection, tablespaces: Iterable[str | None]) -> Space | None:
    """The file systems of several tablespaces and that of the WAL; None where nothing of it can be seen from here."""
    paths: dict[str, Path] = {}
    for tablespace in tablespaces:
        if (space := find(conn, tablespace)) is not None:
            paths |= space.paths
    return Space(paths) if paths else None


def purpose_of(tablespace: str) -> str:
    """How a tablespace is called in `Space.paths`."""
    return f"tablespace {quote_name(tablespace)}"


def _directory(data: Path, oid: int, version: str) -> Path:
    """Where a tablespace keeps its files; a link in the data directory leads there. Raises `OSError`."""
    if oid in _BUILT_IN:
        return data / _BUILT_IN[oid]
    link = data / "pg_tblspc" / str(oid)
    (link / version).stat()
    return link


def _free_bytes(path: Path) -> int:
    # What is reserved for root is of no use to the server.
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def bytes_text(size: float) -> str:
    """``1.2 GB``, ``4 MB``, ``12 MB``: in powers of 1024, with a decimal below ten where it says something."""
    unit = 0
    while abs(size) >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    number = f"{size:.1f}".removesuffix(".0") if unit and abs(size) < 9.95 else f"{size:.0f}"
    return f"{number} {_UNITS[unit]}"
