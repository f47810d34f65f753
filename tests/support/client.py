"""`pglean` in a process of its own, which stands still at named points until it is told to go on.

The process writes the name of each point that it has come to, and whatever else there is to tell, as a line to one
pipe, and waits for a byte on another; once that is closed, it stops nowhere any more. The point may be reached in any
of its threads, several times, at the same time.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

_TIMEOUT_S = 60.0

#: Told once a request to stop has been noted: until then a signal is merely under way.
CANCELLED = "cancelled"

_DRIVER = """\
import contextlib, os, select, sys
from functools import partial
from pglean import pausepoint
from pglean.cli import main
from pglean.server import Server

told, go_on = int(sys.argv[1]), int(sys.argv[2])
number = int(sys.argv[3])
points, arguments = sys.argv[4:4 + number], sys.argv[4 + number:]

def tell(line):
    os.write(told, (line + chr(10)).encode())

def stop(point):
    tell(point)
    # In short waits: a signal that comes just before a system call does not end that.
    while True:
        select.select([go_on], [], [], 0.02)
        with contextlib.suppress(BlockingIOError):
            os.read(go_on, 1)
            return

cancel = Server.cancel
def note(server, reason):
    cancel(server, reason)
    tell("cancelled")
Server.cancel = note
with contextlib.ExitStack() as stack:
    for point in points:
        stack.enter_context(pausepoint.intercept(point, partial(stop, point)))
    main(arguments)
"""


class Client:
    """The process; killed at the end of the block if it has not ended by then."""

    def __init__(self, arguments: Iterable[str], stop_at: Iterable[str]) -> None:
        told_out, told_in = os.pipe()
        go_out, go_in = os.pipe()
        os.set_blocking(go_out, False)
        points = list(stop_at)
        command = [sys.executable, "-c", _DRIVER, str(told_in), str(go_out), str(len(points)), *points, *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(told_in, go_out),
        )
        os.close(told_in)
        os.close(go_out)
        self._told = told_out
        self._go: int | None = go_in
        self._read = b""
        #: What it had written when it ended.
        self.stdout = self.stderr = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.kill()
        os.close(self._told)
        self._close_go()

    def line(self) -> str | None:
        """The next thing that it tells; None where it has ended."""
        deadline = time.monotonic() + _TIMEOUT_S
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._told], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"nothing told within {_TIMEOUT_S:g} s"
            if not (chunk := os.read(self._told, 4096)):
                return None
            self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def await_line(self, expected: str) -> None:
        """Wait until it tells this; whatever else it tells before is passed over, its points are left."""
        while (line := self.line()) != expected:
            if line is None:
                status = self.wait()
                raise AssertionError(f"ended with status {status} before {expected!r}: {self.stderr}")
            if line != CANCELLED:
                self.step()

    def step(self) -> None:
        """Let one thread that stands at a point go on."""
        assert self._go is not None
        os.write(self._go, b".")

    def go_on(self) -> None:
        """Let it go on, and stop nowhere any more."""
        self._close_go()

    def _close_go(self) -> None:
        if self._go is not None:
            os.close(self._go)
            self._go = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, and wait until it was noted."""
        self._process.send_signal(number)
        while (line := self.line()) != CANCELLED:
            # Meanwhile other threads may come to the point.
            assert line is not None, f"ended with status {self.wait()}: {self.stderr}"

    def freeze(self) -> None:
        """SIGSTOP: all of its threads stand still, wherever they are, until `thaw`."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self.wait()

    def wait(self) -> int:
        """Wait for its end; returns its exit status."""
        self.go_on()
        self.stdout, self.stderr = self._process.communicate(timeout=_TIMEOUT_S)
        return self._process.returncode
