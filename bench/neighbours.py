"""The lever that is none: what a load feels of a neighbour that has nothing to do with the server.

Whatever runs beside an application takes processors and the disk from it. What it feels of a program that only
computes, or only writes a file as large as the new table, is what no rewrite on that machine can be below.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

from lever import Figures, Lever, Way
from load import Load
from result import Metric
from workbench import DELETED, Workbench
from workload import WORKLOADS

_RATE: Final = 4000
_WARMUP_S, _SECONDS, _TAIL_S = 2.0, 5.0, 0.5
#: Of the file, as large as what `orders` is rewritten to at 4x.
_MEGABYTES: Final = 350

_COMPUTES: Final = f"""
import time
end = time.monotonic() + {_SECONDS}
while time.monotonic() < end:
    pass
"""
#: By 1 MB at a time, not faster than a copy of a table is; then it is brought to the disk, and removed.
_WRITES: Final = f"""
import os, tempfile, time
page = os.urandom(1 << 20)
began = time.monotonic()
with tempfile.TemporaryFile(dir={{directory!r}}, buffering=0) as file:
    for number in range({_MEGABYTES}):
        file.write(page)
        time.sleep(max(began + {_SECONDS} / 2 * number / {_MEGABYTES} - time.monotonic(), 0))
    os.fsync(file.fileno())
"""


def _beside(bench: Workbench, *programs: str) -> Figures:
    """What the load felt while the programs ran, or for as long as they would have."""
    bench.fresh(DELETED)
    with Load(bench.ground, WORKLOADS["orders"], 2 * bench.rows, "uniform", rate=_RATE) as load:
        time.sleep(_WARMUP_S)
        start = time.time()
        with contextlib.ExitStack() as stack:
            for program in programs:
                stack.enter_context(subprocess.Popen([sys.executable, "-c", program]))
            if not programs:
                time.sleep(_SECONDS)
        end = time.time()
        time.sleep(_TAIL_S)
        transactions, problems = load.stop()
    if problems:
        raise RuntimeError(problems)
    felt = transactions.during(start, end)
    return {"worst_ms": felt.worst_ms, "p99_ms": felt.p99_ms, "silence_ms": felt.silence_ms}


def _computing(bench: Workbench) -> Figures:
    return _beside(bench, _COMPUTES)


def _writing(bench: Workbench, *, and_computing: bool) -> Figures:
    writes = _WRITES.format(directory=str(Path(bench.directory)))
    return _beside(bench, writes, *([_COMPUTES] if and_computing else []))


NEIGHBOURS: Final = Lever(
    "neighbours",
    f"What does a load of {_RATE:,} transactions a second feel of a program that has nothing to do with the server?",
    (
        Metric("worst_ms", "longest stall of a client, ms", 1),
        Metric("p99_ms", "p99, ms", 2),
        Metric("silence_ms", "longest time without a commit, ms", 1),
    ),
    (
        Way("nothing runs beside it", _beside),
        Way("one processor is kept busy", _computing),
        Way(f"a file of {_MEGABYTES} MB is written, synchronized, removed", partial(_writing, and_computing=False)),
        Way("both", partial(_writing, and_computing=True)),
    ),
    "Nothing to decide: it is what any rewrite is to be compared with. A tool that uses a processor, writes the new"
    " table and removes the old one takes from the application what these programs do, unless it takes its time.",
)
