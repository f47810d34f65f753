"""`pglean` on a terminal of its own: a pseudo-terminal that is its standard streams and its controlling terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

_TIMEOUT_S = 60.0

_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " os.execv(sys.executable, [sys.executable, '-m', 'pglean', *sys.argv[1:]])"
)


def run(
    arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, answers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run it to its end; returns the exit status and all that it showed.

    `answers` are typed, each once, when the text that asks for it has appeared.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _TAKE_TERMINAL, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40", **(environment or {})},
    )
    os.close(theirs)
    waiting = dict(answers or {})
    shown = b""
    deadline = time.monotonic() + _TIMEOUT_S
    try:
        # Reading fails, rather than ends, when the last to have the terminal open has gone.
        with contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([ours], [], [], max(deadline - time.monotonic(), 0))
                assert ready, f"no end within {_TIMEOUT_S:g} s: {shown.decode(errors='replace')}"
                shown += os.read(ours, 65536)
                for question in [text for text in waiting if text.encode() in shown]:
                    os.write(ours, waiting.pop(question).encode() + b"\n")
        return process.wait(_TIMEOUT_S), shown.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
