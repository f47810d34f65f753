"""`pglean repack --map`: how full a table is along its file, before and after."""

from __future__ import annotations

import json

import pytest

from tests.support.command import Run
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


@pytest.fixture(autouse=True)
def hollow(stage: Stage) -> None:
    """The first half of it is empty."""
    with stage.db.connect() as session:
        session.execute(
            """
            CREATE TABLE hollow (id int PRIMARY KEY) WITH (autovacuum_enabled = off);
            INSERT INTO hollow SELECT generate_series(1, 22600);
            DELETE FROM hollow WHERE id <= 11300;
            """
        )
    stage.db.execute("VACUUM ANALYZE hollow")


def drawn(out: str) -> list[tuple[str, str]]:
    """Titles, and the lines of cells below them."""
    lines = out.splitlines()
    return [
        (line, "".join(cells.strip() for cells in lines[number + 1 : number + 2]))
        for number, line in enumerate(lines)
        if line.endswith((", before", ", after"))
    ]


def test_before_and_after(stage: Stage, run: Run) -> None:
    status, out, err = run("repack", "-t", "hollow", "-t", "items", "--map", "-j", "1")
    assert status == 0, err
    before, after, other, another = drawn(out)
    assert before == ("public.hollow, before", "·" * 50 + "█" * 50)
    # Half as large, each cell for as much.
    assert after == ("public.hollow, after", "█" * 50)
    assert (other[0], another[0]) == ("public.items, before", "public.items, after")
    assert out.index("public.hollow, before") < out.index("heap hollow") < out.index("public.hollow, after")
    stage.check()


def test_dry_run_and_quiet(stage: Stage, run: Run) -> None:
    status, out, _ = run("repack", "-t", "hollow", "--map", "-N")
    assert (status, [title for title, _ in drawn(out)]) == (0, ["public.hollow, before"])
    assert "public.hollow would be repacked" in out
    (plan,) = json.loads(run("repack", "-t", "hollow", "--map", "-N", "--json")[1])
    assert set(plan["map"]) == {"before"}
    assert run("repack", "-q", "-t", "hollow", "--map") == (0, "", "")
    assert "option --map has no effect while repacking indexes" in run("repack", "-x", "-t", "hollow", "--map")[2]


def test_json(run: Run) -> None:
    status, out, err = run("repack", "-q", "-t", "hollow", "-t", "absent", "--map", "--json")
    assert status == 9, err
    hollow, absent = json.loads(out)
    before, after = hollow["map"]["before"], hollow["map"]["after"]
    assert (len(before["fill"]), len(after["fill"])) == (100, 50)
    assert before["bytes"] == 2 * after["bytes"]
    assert (before["source"], before["why"]) == ("sample", "")
    assert before["fill"][0] == 0
    assert "map" not in absent
    assert "map" not in json.loads(run("repack", "-q", "-t", "hollow", "--json")[1])[0]


def test_several_at_once(run: Run) -> None:
    status, out, err = run("repack", "-c", "public", "--map", "--tables-at-once", "2", "-j", "1")
    assert status == 0, err
    titles = [title for title, _ in drawn(out)]
    assert len(titles) == 6
    assert all(title.endswith("before") for title in titles[:3])


def test_what_has_no_map_is_repacked(stage: Stage, run: Run) -> None:
    stage.db.execute("CREATE ROLE mapped_by_nobody; ALTER TABLE hollow OWNER TO mapped_by_nobody")
    try:
        stage.db.execute("CREATE INDEX ON hollow ((id + 1))")
        status, out, err = run("repack", "-t", "hollow", "--map")
        assert status == 0, err
        assert drawn(out)[0][1].startswith("no map: it has an index on an expression")
        assert "public.hollow, after" in out
        assert run("repack", "-t", "absent", "--map")[0] == 2
    finally:
        stage.db.execute("ALTER TABLE hollow OWNER TO postgres; DROP ROLE mapped_by_nobody")
