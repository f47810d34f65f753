"""The lever of the old file: what its removal does to whoever commits meanwhile."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Final

from lever import Figures, Lever, Way
from result import Metric
from workbench import Workbench

#: Of the file; of what is cut off at once, where it goes in steps; the pause after each.
_MEGABYTES, _STEP, _PAUSE_S = 450, 16, 0.01
_MB: Final = 1 << 20
_WAL: Final = 16 * _MB
_WITHOUT_S: Final = 0.5


class Commits:
    """A durable write of 8 kB after the other, as commits are; how long each takes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._started = threading.Event()
        self.milliseconds: list[float] = []

    def __enter__(self) -> Commits:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
            file.write(bytes(_WAL))
            os.fsync(file.fileno())
            self._started.set()
            page, place = bytes(range(256)) * 32, 0
            while not self._stop.is_set():
                began = time.perf_counter()
                os.pwrite(file.fileno(), page, place)
                os.fdatasync(file.fileno())
                self.milliseconds.append(1000 * (time.perf_counter() - began))
                place = (place + len(page)) % _WAL


def _sizes(step_mb: int) -> range:
    return range(_MEGABYTES - step_mb, -step_mb, -step_mb) if step_mb else range(0)


def _removed(bench: Workbench, *, step_mb: int) -> Figures:
    with tempfile.NamedTemporaryFile(dir=bench.directory, buffering=0) as file:
        chunk = os.urandom(_MB)
        for _ in range(_MEGABYTES):
            file.write(chunk)
        os.fsync(file.fileno())
        with Commits(bench.directory) as commits:
            began = time.perf_counter()
            for size in _sizes(step_mb):
                os.ftruncate(file.fileno(), max(size, 0) * _MB)
                if size > 0:
                    time.sleep(_PAUSE_S)
            seconds = time.perf_counter() - began
            if not step_mb:
                time.sleep(_WITHOUT_S)
    return {
        "worst_ms": max(commits.milliseconds),
        "median_ms": sorted(commits.milliseconds)[len(commits.milliseconds) // 2],
        **({"seconds": seconds} if step_mb else {}),
    }


REMOVAL: Final = Lever(
    "removal",
    f"What does whoever commits feel of a file of {_MEGABYTES} MB being truncated, as the server does it with the old"
    " ones?",
    (
        Metric("worst_ms", "a durable write, worst, ms", 1),
        Metric("median_ms", "median, ms", 2),
        Metric("seconds", "the truncation, s", 2),
    ),
    (
        Way("no file is removed", partial(_removed, step_mb=0)),
        Way("truncated at once (the server)", partial(_removed, step_mb=_MEGABYTES)),
        Way(f"truncated by {_STEP} MB, with pauses of {1000 * _PAUSE_S:.0f} ms", partial(_removed, step_mb=_STEP)),
    ),
    "Left to the server, which truncates each file at once when a transaction that dropped it commits. The file"
    " system frees the blocks in the same journal that a durable write waits for: no tool that gives the old file"
    " back can avoid this moment, since no statement truncates in steps. It comes after the swap, with no lock on"
    " the table.",
)
