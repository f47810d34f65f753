"""The command line, in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import IO, TypeAlias

import pytest

from pglean import cli
from tests.support.stage import Stage

#: Status, standard output, standard error.
Outcome: TypeAlias = tuple[int, str, str]
Run: TypeAlias = Callable[..., Outcome]


@pytest.fixture
def run(stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process, connected by the environment to the stage's database."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PGHOST", str(stage.db.server.socket_dir))
    monkeypatch.setenv("PGPORT", str(stage.db.server.port))
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGDATABASE", stage.db.name)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        status = cli.run(arguments)
        return status, *capsys.readouterr()

    return run


def in_process(
    *arguments: str | bytes,
    stdin: str | None = None,
    stdout: IO[bytes] | int = subprocess.PIPE,
    stderr: IO[bytes] | int = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """The command line in a process of its own, which has no terminal; `stdin` is what can be read there."""
    done = subprocess.run(
        [sys.executable, "-m", "pglean", *arguments],
        input=(stdin or "").encode(),
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        check=False,
        timeout=60,
    )
    return done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode()


def table(stage: Stage, name: str) -> None:
    """One more table, with a key."""
    stage.db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY); INSERT INTO {name} SELECT generate_series(1, 100)")
