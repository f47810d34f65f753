"""The changes of one table as a logical replication slot sends them: a session of the replication protocol.

The session decodes each byte of the WAL once. (Reading the slot by SQL functions would begin at the slot's restart
point each time, hence read again all that was written since the oldest transaction began that is still open.) It sends
as fast as is read here; what has not been sent yet waits in the WAL.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Iterator

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus

from pglean.session import Connection
from pglean.sql import fragment

#: Microseconds between 1970 and 2000.
_EPOCH_US = 946_684_800_000_000
#: Kind, beginning, end of the WAL, time; then the message of the plugin.
_HEADER = struct.Struct(">cQQq")
_KEEPALIVE = struct.Struct(">cQqB")
_STATUS = struct.Struct(">cQQQqB")


class Stream:
    """The messages of a slot. Used by one thread."""

    def __init__(self, conn: Connection) -> None:
        """`conn`: a session of the replication protocol in which nothing is streamed yet."""
        self._conn = conn
        #: Up to here everything that there is to be told was told.
        self.told_lsn = 0
        #: Whether the server waits for `confirm`.
        self.asked = False
        #: When it was last heard of, by the monotonic clock.
        self.heard_at = time.monotonic()

    def start(self, slot: str, publication: str, lsn: str) -> None:
        """Begin with what was committed after `lsn`. Raises psycopg's errors, ObjectInUse where the slot is active."""
        statement = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {}, messages 'true')"
        ).format(sql.Identifier(slot), fragment(lsn), sql.Literal(publication))
        result = self._conn.pgconn.exec_(statement.as_bytes(self._conn))
        if result.status != ExecStatus.COPY_BOTH:
            raise psycopg.errors.error_from_result(result)

    def messages(self, wait_s: float) -> Iterator[bytes]:
        """What has arrived; where nothing has, what does within `wait_s`.

        Raises psycopg's errors at the end of the stream.
        """
        pgconn = self._conn.pgconn
        select.select([pgconn.socket], [], [], wait_s)
        # In any case: what came over TLS may lie decrypted in libpq already, with the socket silent.
        pgconn.consume_input()
        while True:
            length, data = pgconn.get_copy_data(1)
            if length == 0:
                return
            if length < 0:
                raise self._end(length)
            self.heard_at = time.monotonic()
            message = bytes(data)
            if message[0] == 0x77:
                yield message[_HEADER.size :]
            elif message[0] == 0x6B:
                _, self.told_lsn, _, reply = _KEEPALIVE.unpack_from(message)
                self.asked = self.asked or bool(reply)

    def _end(self, length: int) -> Exception:
        pgconn = self._conn.pgconn
        if length == -1 and (result := pgconn.get_result()) is not None and result.error_message:
            return psycopg.errors.error_from_result(result)
        return psycopg.OperationalError(pgconn.get_error_message() or "the server has ended the stream")

    def confirm(self, lsn: int) -> None:
        """What was committed before `lsn` need not be sent again, its WAL need not be kept."""
        self.asked = False
        now = int(time.time() * 1_000_000) - _EPOCH_US
        pgconn = self._conn.pgconn
        pgconn.put_copy_data(_STATUS.pack(b"r", lsn, lsn, lsn, now, 0))
        pgconn.flush()
