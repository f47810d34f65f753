"""-o, -n and the clustering index, as a user of pg_repack has them."""

from __future__ import annotations

import json

import pytest

from tests.support.command import Run
from tests.support.sorted import correlation, out_of_place
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


def test_order_by(stage: Stage, run: Run) -> None:
    status, _, err = run("repack", "-t", "items", "-o", "amount DESC, lower(code)")
    assert status == 0, err
    assert "the rows are sorted in one statement, which holds its snapshot for as long as it takes: " in err
    assert out_of_place(stage.db, "items", "amount DESC, lower(code)") == 0
    assert correlation(stage.db, "items", "amount") < -0.99
    stage.check()


def test_clustering_index_and_no_order(stage: Stage, run: Run) -> None:
    stage.db.execute("ALTER TABLE items CLUSTER ON items_amount_idx")
    assert run("repack", "-q", "-t", "items", "-n")[0] == 0
    assert out_of_place(stage.db, "items", "id") == 0
    # As with pg_repack, it wins over an order too.
    assert run("repack", "-q", "-t", "items", "-n", "-o", "code DESC")[0] == 0
    assert out_of_place(stage.db, "items", "id") == 0
    assert run("repack", "-q", "-t", "items")[0] == 0
    assert out_of_place(stage.db, "items", "amount") == 0
    assert run("repack", "-q", "-t", "items", "-o", "id")[0] == 0
    assert out_of_place(stage.db, "items", "id") == 0
    stage.check()


def test_dry_run_says_which_way_and_why(stage: Stage, run: Run) -> None:
    stage.db.execute("ANALYZE items")
    status, out, _ = run("repack", "--dry-run", "-t", "items", "-o", "id DESC")
    assert status == 0
    assert "2. copy the rows sorted by id DESC (-o) by ranges of id in chunks of about 500 ms, 1 at a time:" in out
    assert "nearly sorted already (correlation of id: 1.000)" in out
    status, out, _ = run("repack", "--dry-run", "--json", "-t", "items", "-o", "id DESC")
    assert json.loads(out)[0]["order"] == {
        "order_by": "id DESC",
        "index": None,
        "way": "key ranges",
        "reason": "the rows lie nearly sorted already (correlation of id: 1.000)",
    }
    stage.db.execute("ALTER TABLE items CLUSTER ON items_amount_idx")
    status, out, _ = run("repack", "--dry-run", "--json", "-t", "items")
    (found,) = json.loads(out)
    assert (found["order"]["order_by"], found["order"]["index"]) == ("amount", "items_amount_idx")
    assert found["order"]["way"] == "one statement"
    assert found["order"]["reason"].startswith("the rows lie scattered (correlation of amount: 0.")
    assert json.loads(run("repack", "--dry-run", "--json", "-t", "items", "-n")[1])[0]["order"] is None


def test_what_is_no_order_is_an_error_of_usage(stage: Stage, run: Run) -> None:
    status, _, err = run("repack", "-t", "items", "-o", "id LIMIT 5")
    assert status == 2
    assert err == (
        "pglean: error: invalid value for option --order-by: id LIMIT 5\n"
        'DETAIL:  Syntax error at or near "LIMIT".\n'
        "HINT:  Give what can stand behind ORDER BY: columns and expressions, with ASC or DESC,"
        " NULLS FIRST or NULLS LAST.\n"
    )
    status, out, _ = run("repack", "--json", "-t", "items", "-o", "id; DROP TABLE items")
    assert status == 2
    assert json.loads(out)[0]["exit_status"] == 2
    stage.check()
