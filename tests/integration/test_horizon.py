"""Who holds the vacuum horizon: preflight warns of him, says what ends that, and goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pglean
from pglean import cli, horizon
from pglean.embedded import EmbeddedServer
from pglean.errors import Finding
from tests.servers import SETTINGS, Database, create_database
from tests.support.oracle import assert_nothing_left, name, until

pytestmark = pytest.mark.in_turn

TABLE = "CREATE TABLE t (id int PRIMARY KEY)"
PREFIX = "End it first, if you can: "


def holders(db: Database) -> list[Finding]:
    """What preflight warns of; each of it with the right code, and with no refusal."""
    with pglean.connect(db.conninfo) as database:
        found = [finding for finding in database.plan("t").warnings if finding.code == "horizon"]
    for finding in found:
        assert not finding.fatal
        assert finding.message.startswith("the vacuum horizon is held by ")
        assert finding.detail
        assert finding.hint
        assert finding.hint.startswith(PREFIX)
    return found


def end(finding: Finding) -> str:
    """What the hint says."""
    return (finding.hint or "").removeprefix(PREFIX)


def test_open_transaction(db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    db.execute(TABLE)
    session = db.connect(autocommit=False, application_name="old report")
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT")
    # Five minutes have not passed.
    assert holders(db) == []
    monkeypatch.setattr(horizon, "LONG_S", 0.2)
    until(lambda: holders(db) != [], "it has been open for long")
    (finding,) = holders(db)
    who = rf"pid {session.info.backend_pid} \(postgres, old report, idle in transaction, transaction open for [\d:]+\)"
    assert re.fullmatch(f"the vacuum horizon is held by {who}", finding.message)
    assert end(finding) == f"SELECT pg_terminate_backend({session.info.backend_pid});"
    # It is told of, and the run done: nothing that it has locked is needed.
    assert cli.run(["repack", "-N", "-t", "t", db.conninfo]) == 0
    assert re.search(f"WARNING: the vacuum horizon is held by {who}", " ".join(capsys.readouterr().out.split()))
    assert cli.run(["repack", "-t", "t", db.conninfo]) == 0
    told = capsys.readouterr().err
    assert re.search(f"^pglean: public.t: warning: the vacuum horizon is held by {who}\n", told, re.MULTILINE)
    assert f"HINT:  {finding.hint}" in told
    db.fetchall(name(end(finding)))
    until(lambda: holders(db) == [], "it has ended")
    assert_nothing_left(db)


def test_other_databases_count_where_they_write(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who merely reads in another database keeps none of this one's rows from being removed."""
    monkeypatch.setattr(horizon, "LONG_S", 0.1)
    db.execute(TABLE)
    with create_database(db.server) as other:
        reader, writer = other.connect(autocommit=False), other.connect(autocommit=False)
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT")
        writer.execute("SELECT pg_current_xact_id()")
        until(lambda: holders(db) != [], "it has been open for long")
        (finding,) = holders(db)
        # Whose it is can be told there.
        assert f"pid {writer.info.backend_pid} " in finding.message
        caution = "look first whose it is: what was not committed is lost"
        assert end(finding) == f"end its transaction in database {other.name}; {caution}"


def test_prepared_transaction(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "LONG_S", 0.1)
    db.execute(TABLE)
    db.execute("BEGIN; CREATE TABLE made (); PREPARE TRANSACTION 'it''s old'")
    until(lambda: holders(db) != [], "it was prepared long ago")
    (finding,) = holders(db)
    who = r"prepared transaction 'it''s old' of postgres, prepared [\d:]+ ago"
    assert re.fullmatch(f"the vacuum horizon is held by {who}", finding.message)
    choices, _, caution = end(finding).partition("; ")
    assert choices == "COMMIT PREPARED 'it''s old' or ROLLBACK PREPARED 'it''s old'"
    assert caution.startswith("ask the transaction manager first whether it commits: ")
    with create_database(db.server) as other:
        other.execute(TABLE)
        assert [end(elsewhere) for elsewhere in holders(other)] == [f"{choices} in database {db.name}; {caution}"]
    db.execute(name(choices.rpartition(" or ")[2]))
    assert holders(db) == []


def test_replication_slot(bindir: Path) -> None:
    """Of a standby that has told its oldest snapshot, and then was shut down."""
    xmin = "SELECT xmin::text FROM pg_replication_slots"
    with EmbeddedServer(bindir, settings=SETTINGS) as primary, create_database(primary) as db:
        db.execute(f"{TABLE}; SELECT pg_create_physical_replication_slot('follower')")
        settings = {"primary_slot_name": "follower", "hot_standby_feedback": "on"}
        with primary.standby(settings=settings) as standby:
            standby.start()
            until(lambda: db.scalar(xmin) is not None, "the standby has told its oldest snapshot")
        until(lambda: not db.scalar("SELECT active FROM pg_replication_slots"), "the standby is gone")
        assert holders(db) == []
        db.execute("SET synchronous_commit = off")
        db.execute("DO 'BEGIN FOR i IN 1..100001 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END'")
        (finding,) = holders(db)
        assert re.fullmatch(
            r"the vacuum horizon is held by replication slot follower \(10\d{4} transactions behind\)", finding.message
        )
        statement = "SELECT pg_drop_replication_slot('follower')"
        caution = "the standby of a slot that is dropped has to be built anew"
        assert end(finding) == f"start the standby that uses it, or {statement}; {caution}"
        db.fetchall(name(statement))
        assert holders(db) == []
