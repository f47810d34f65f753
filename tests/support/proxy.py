"""A TCP proxy before a server, which can cut the connections that go through it, or pose as a pooler."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Literal, Self

#: Which way of the exchange is cut: what the client sends never arrives, or the server's answer does not.
Cut = Literal["request", "answer"]


#: How the message begins in which a server tells its process id: BackendKeyData, of protocol 3.0.
_KEY_DATA = b"K" + (12).to_bytes(4, "big")


class Proxy:
    """Listens on a port of its own; new connections are always accepted.

    `pooling`: clients are told a process id that is not the server's, as by a pooler, whose sessions are not its.
    """

    def __init__(self, port: int, *, pooling: bool = False) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._armed: tuple[bytes, Cut] | None = None
        self._pooling = pooling
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """End all connections, for both sides."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(*pair)

    def cut_at(self, text: bytes, what: Cut) -> None:
        """End the next connection on which the client sends `text`: before it arrives, or before its answer does."""
        with self._lock:
            self._armed = text, what

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            with self._lock:
                self._pairs.add((client, server))
            mute = threading.Event()
            for work in (self._requests, self._answers):
                thread = threading.Thread(target=work, args=(client, server, mute))
                self._threads.append(thread)
                thread.start()

    def _requests(self, client: socket.socket, server: socket.socket, mute: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                cut: Cut | None = None
                with self._lock:
                    if self._armed is not None and self._armed[0] in data:
                        (_, cut), self._armed = self._armed, None
                if cut == "request":
                    break
                if cut == "answer":
                    mute.set()
                server.sendall(data)
        self._end(client, server)

    def _answers(self, client: socket.socket, server: socket.socket, mute: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while (data := server.recv(65536)) and not mute.is_set():
                if self._pooling and (at := data.find(_KEY_DATA)) >= 0:
                    pid = at + len(_KEY_DATA)
                    data = data[:pid] + (1).to_bytes(4, "big") + data[pid + 4 :]
                client.sendall(data)
        self._end(client, server)

    def _end(self, client: socket.socket, server: socket.socket) -> None:
        with self._lock:
            if (client, server) not in self._pairs:
                return
            self._pairs.discard((client, server))
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
