"""The benchmark on a real server: what it sees of it, and that all of it works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from ground import DATABASE, Ground
from pglean.embedded import EmbeddedServer
from record import Record
from run import main
from watch import Watch

pytestmark = pytest.mark.newest


@pytest.fixture
def ground(server: EmbeddedServer) -> Iterator[Ground]:
    """A server with the database that is watched."""
    found = Ground.private(server)
    found.create(DATABASE, "template0")
    yield found
    found.drop(DATABASE)


def test_a_lock_and_the_horizon_are_seen_as_long_as_they_are_held(ground: Ground) -> None:
    ground.execute("CREATE TABLE t ()")
    oid = ground.value("SELECT 't'::regclass::oid")
    with Watch(ground, [oid]) as watch, psycopg.connect(ground.conninfo()) as conn, conn.transaction():
        conn.execute("LOCK TABLE t")
        (held_s,) = conn.execute("SELECT 1000 * extract(epoch FROM clock_timestamp())::float8").fetchone() or (0,)
        conn.execute("SELECT pg_sleep(0.3)")
        (end_s,) = conn.execute("SELECT 1000 * extract(epoch FROM clock_timestamp())::float8").fetchone() or (0,)
    seen = watch.figures()
    slack_ms = 2 * seen["worst_sample_ms"] + 50
    assert seen["lock_ms"] == pytest.approx(end_s - held_s, abs=slack_ms)
    # Looked at less often.
    assert 1000 * seen["xmin_s"] == pytest.approx(300, abs=slack_ms + 50)


def test_a_lock_on_another_table_is_not(ground: Ground) -> None:
    ground.execute("CREATE TABLE t ()")
    ground.execute("CREATE TABLE other ()")
    with Watch(ground, [ground.value("SELECT 't'::regclass::oid")]) as watch:
        ground.execute("BEGIN; LOCK TABLE other; SELECT pg_sleep(0.1); COMMIT")
    assert watch.figures()["lock_ms"] == 0


def test_lazy_vacuum_does_not_hold_the_horizon(ground: Ground) -> None:
    ground.execute("CREATE TABLE t AS SELECT g FROM generate_series(1, 200000) AS g")
    with Watch(ground, []) as watch, ground.connect() as conn:
        conn.execute("SET vacuum_cost_delay = 10; SET vacuum_cost_limit = 100")
        conn.execute("VACUUM (FREEZE) t")
    assert watch.figures()["wal_mb"] > 0
    assert watch.figures()["xmin_s"] < 0.1


def test_processor_time_disk_and_wal_of_the_server(ground: Ground) -> None:
    with Watch(ground, []) as watch:
        ground.execute(
            "CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 20000); SELECT pg_sleep(0.5)"
        )
    seen = watch.figures()
    size_mb = ground.value("SELECT pg_relation_size('t') / 1e6")
    assert seen["disk_mb"] >= size_mb
    assert seen["wal_mb"] >= 20
    assert 0 < seen["server_cpu_s"] < 30
    assert seen["load_cpu_s"] == 0


def test_a_database_that_is_not_ours_stays(server: EmbeddedServer) -> None:
    ground = Ground.private(server)
    ground.execute(f"CREATE DATABASE {DATABASE}", None)
    try:
        with pytest.raises(RuntimeError, match="was not made by this program"):
            ground.create(DATABASE, "template0")
    finally:
        ground.execute(f"DROP DATABASE {DATABASE}", None)


def test_scenarios_end_with_figures(bindir: Path, tmp_path: Path) -> None:
    little = ["--shrink", "200", "--repetitions", "1", "--warmup", "0.2", "--before", "0.5", "--cap", "60"]
    scenarios = ["--workload", "ordered", "--only", "idle,flat-out", "--tools", "pglean,cluster,vacuum-full"]
    assert main([*little, *scenarios, "--bindir", str(bindir), "--output", str(tmp_path)]) == 0
    idle, loaded = Record.read(tmp_path / "results.json").sections
    assert [run.tool for run in idle.runs] == ["pglean", "cluster"]
    assert [run.tool for run in loaded.runs] == ["pglean"]
    ours = idle.runs[0]
    assert ours.values["heap_fetches"] == 0
    assert {"copying", "indexing", "swapping"} <= ours.phases.keys()
    assert loaded.runs[0].values["tps"] > 0
    assert "| time, s |" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["orders", "documents", "many-indexes"])
def test_every_workload_and_access(bindir: Path, tmp_path: Path, workload: str) -> None:
    little = ["--shrink", "100", "--repetitions", "1", "--warmup", "0.2", "--before", "0.5", "--cap", "60"]
    scenarios = ["--workload", workload, "--scale", "1", "--every"]
    options = [*little, *scenarios, "--tools", "pglean,cluster,vacuum-full"]
    assert main([*options, "--bindir", str(bindir), "--output", str(tmp_path)]) == 0
    record = Record.read(tmp_path / "results.json")
    assert len(record.sections) == 1 + 2 * 3
    assert record.sampling is not None
    assert not any(run.failure for section in record.sections for run in section.runs)


def test_a_named_server_without_the_peer_is_said_and_fails(server: EmbeddedServer, tmp_path: Path) -> None:
    named = f"squeeze={server.conninfo()} password=secret"
    assert main(["--quick", "--no-private", "--peer", named, "--output", str(tmp_path)]) == 1
    text = (tmp_path / "RESULTS.md").read_text()
    assert "- squeeze (PostgreSQL" in text
    assert "the extension pg_squeeze is not installed" in text
    assert "secret" not in text + (tmp_path / "results.json").read_text()


@pytest.mark.slow
def test_partitions(bindir: Path, tmp_path: Path) -> None:
    little = ["--quick", "--workload", "partitions", "--only", "idle,steady", "--tools", "pglean,cluster,vacuum-full"]
    assert main([*little, "--bindir", str(bindir), "--output", str(tmp_path)]) == 0
    assert [len(section.runs) for section in Record.read(tmp_path / "results.json").sections] == [3, 1]
