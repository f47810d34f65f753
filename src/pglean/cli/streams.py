"""Standard output and error that never fail: no run ends, or ends wrongly, because nobody could be told of it.

What standard output could not take is remembered, and makes the exit status 1 where it would have been 0: whoever reads
the report must not take a part of it for the whole. What standard error could not take is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


def printable(text: str) -> str:
    """What others have named and written must not steer the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


class Outlet:
    """A text stream whose `write` and `flush` do not raise; after the first failure everything goes to /dev/null.

    A character that the stream's encoding has not is written as an escape, as Python's own standard error does it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # None is what Python makes of a descriptor that was closed before it began.
        self._given = stream is not None
        self._null: TextIO | None = None
        self._stream = self._open_null() if stream is None else stream
        #: Why something was not written; None where all was.
        self.error: str | None = None

    def __getattr__(self, name: str) -> Any:
        # Who would write to the bytes below would be on his own.
        if name in {"buffer", "_stream"}:
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if text and not self._given:
            self.error = os.strerror(errno.EBADF)
        try:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def close(self) -> None:
        """Close what was opened here; the stream itself belongs to whoever opened it."""
        if self._null is not None:
            self._null.close()

    def _give_up(self, error: OSError | ValueError) -> None:
        self.error = self.error or getattr(error, "strerror", None) or str(error)
        null = self._open_null()
        # What the stream still holds back would fail once more when Python ends, and become the exit status.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(null.fileno(), self._stream.fileno())
        self._stream = null

    def _open_null(self) -> TextIO:
        if self._null is None:
            self._null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return self._null


@contextlib.contextmanager
def steady_streams() -> Iterator[Outlet]:
    """Standard output and error of the block; yields the former."""
    before = sys.stdout, sys.stderr
    out, err = Outlet(sys.stdout), Outlet(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
        out.close()
        err.close()
