"""SERIALIZABLE: what a transaction has read is remembered by its place in a file, and the swap changes files."""

from __future__ import annotations

import psycopg
import pytest

import pglean
from tests.support.play import Play, at


def test_write_skew_across_the_swap(play: Play) -> None:
    """Two transactions, each of which has read what the other writes; the row read by one is written after the swap.

    The server knows of the read as long as a transaction beside it is open, by page and tuple of the old file. Were the
    files exchanged meanwhile, the write would meet nothing of it, and both would commit. So the swap waits.
    """
    play.db.execute("CREATE TABLE o (id int PRIMARY KEY, v int); INSERT INTO o VALUES (1, 0)")
    first, second = play.db.connect(), play.db.connect()
    for conn in (first, second):
        conn.execute(
            "SET default_transaction_isolation = serializable; SET enable_seqscan = off; SET enable_bitmapscan = off"
        )
    told: list[str] = []
    ended: list[BaseException] = []

    def read() -> None:
        second.execute("BEGIN")
        second.execute("SELECT v FROM o WHERE id = 1")
        first.execute("BEGIN")
        first.execute("SELECT v FROM t WHERE id = 1499")
        first.execute("UPDATE o SET v = 1 WHERE id = 1")
        first.execute("COMMIT")

    def write(progress: pglean.Progress) -> None:
        if not progress.waiting_for or ended:
            return
        told.append(progress.waiting_for)
        with pytest.raises(psycopg.errors.SerializationFailure) as caught:
            second.execute("UPDATE t SET v = 'skewed' WHERE id = 1499; COMMIT")
        ended.append(caught.value)
        second.execute("ROLLBACK")

    with at("swap: before the lock", read):
        play.repack(on_progress=write)
    assert "Serializable transactions" in told[0]
    assert ended
    play.check()


def test_whole_relation_read(play: Play) -> None:
    """A lock on the relation as a whole knows no file: nothing is waited for, and the conflict is found afterwards."""
    play.db.execute("CREATE TABLE o (id int PRIMARY KEY, v int); INSERT INTO o VALUES (1, 0)")
    first, second = play.db.connect(), play.db.connect()
    for conn in (first, second):
        conn.execute(
            "SET default_transaction_isolation = serializable; SET enable_indexscan = off; SET enable_bitmapscan = off;"
            "SET enable_indexonlyscan = off"
        )

    def read() -> None:
        second.execute("BEGIN")
        second.execute("SELECT v FROM o WHERE id = 1")
        first.execute("BEGIN")
        first.execute("SELECT count(*) FROM t WHERE v = 'v1499!'")
        first.execute("UPDATE o SET v = 1 WHERE id = 1")
        first.execute("COMMIT")

    told: list[str] = []
    with at("swap: before the lock", read):
        play.repack(on_progress=lambda progress: told.append(progress.waiting_for))
    assert not [text for text in told if text]
    with pytest.raises(psycopg.errors.SerializationFailure):
        second.execute("UPDATE t SET v = 'skewed' WHERE id = 1499; COMMIT")
    second.execute("ROLLBACK")
    play.check()
