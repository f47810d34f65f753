"""`pglean bloat`: options, exit statuses, what is said on which stream."""

from __future__ import annotations

import csv
import io
import json
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support import terminal
from tests.support.command import Run
from tests.support.oracle import until
from tests.support.stage import Stage

pytestmark = pytest.mark.newest


@pytest.fixture(autouse=True)
def tables(stage: Stage) -> None:
    stage.db.execute("DROP EXTENSION IF EXISTS pgstattuple")
    with stage.db.connect() as session:
        session.execute(
            """
            CREATE TABLE "[red] Table" (id int) WITH (autovacuum_enabled = off);
            INSERT INTO "[red] Table" SELECT generate_series(1, 50000);
            DELETE FROM "[red] Table" WHERE id % 10 > 0;
            CREATE TABLE fine (id int);
            INSERT INTO fine SELECT generate_series(1, 1000);
            CREATE TABLE unknown (id int) WITH (autovacuum_enabled = off);
            """
        )
    stage.db.execute('VACUUM ANALYZE "[red] Table"')
    counted = "SELECT last_analyze IS NOT NULL FROM pg_stat_user_tables WHERE relname = '[red] Table'"
    until(lambda: stage.db.scalar(counted), "ANALYZE has told what it has counted")
    for table in ("items", "fine"):
        stage.db.execute(f"ANALYZE {table}")


def test_a_table_for_people(run: Run) -> None:
    status, out, err = run("bloat", "--method", "estimate")
    assert (status, err) == (0, "")
    lines = [line for line in out.splitlines() if line.startswith(" public.")]
    assert lines[0].startswith(' public."[red] Table"')
    assert "90%" in lines[0]
    assert "estimate" in lines[0]
    assert {line.split()[0] for line in lines[1:]} == {"public.items", 'public."model', "public.fine", "public.unknown"}
    assert "public.unknown: no statistics: neither VACUUM nor ANALYZE has counted its rows" in out
    assert "a repack would give back" in out
    assert "of 2 nothing is known" in out
    assert "\x1b" not in out


def test_relations(run: Run) -> None:
    status, out, _ = run("bloat", "-t", "items", "--method", "estimate")
    assert status == 0
    for part in ("heap items", "toast", "index items_pkey", "index items_amount_idx"):
        assert f"   {part} " in out
    assert "index items_pkey" not in run("bloat", "--method", "estimate")[1]
    assert "index items_pkey" in run("bloat", "--method", "estimate", "--relations")[1]


def test_json_and_csv(stage: Stage, run: Run) -> None:
    status, out, _ = run("bloat", "--json")
    assert status == 0
    said = json.loads(out)
    assert said["database"] == stage.db.name
    assert [warning["code"] for warning in said["warnings"]] == ["no-extension"]
    by_name = {table["table"]: table for table in said["tables"]}
    red = by_name['public."[red] Table"']
    assert red["bloat"] == pytest.approx(0.9, abs=0.02)
    assert red["bytes"] == red["after_bytes"] + red["gain_bytes"]
    (heap,) = (part for part in red["relations"] if part["kind"] == "heap")
    assert heap["bytes"] == heap["live_bytes"] + heap["dead_bytes"] + heap["free_bytes"]
    assert by_name["public.unknown"]["after_bytes"] is None
    status, out, _ = run("bloat", "--csv", "-t", "items", "-t", "unknown")
    assert status == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {(row["table"], row["kind"]) for row in rows} >= {("items", "heap"), ("items", "toast"), ("unknown", "heap")}
    assert all(int(row["bytes"]) >= 0 for row in rows)


def test_what_is_left_out(run: Run) -> None:
    def names(*arguments: str) -> list[str]:
        status, out, err = run("bloat", "--json", "--method", "estimate", *arguments)
        assert status == 0, err
        return [table["table"] for table in json.loads(out)["tables"] if "model" not in table["table"]]

    assert names("--top", "1") == ['public."[red] Table"']
    assert names("--min-bloat", "50%") == ['public."[red] Table"']
    assert set(names("--min-size", "500kB")) == {'public."[red] Table"', "public.items"}
    assert names("--min-size", "1TB") == []
    assert "no table is so large and so bloated" in run("bloat", "--min-size", "1TB")[1]
    assert "4 are not listed here, --top N lists more" in run("bloat", "--top", "1", "--method", "estimate")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-t", "absent"), 'relation "absent" does not exist'),
        (("-t", "items_pkey"), "items_pkey: there is no table that holds rows"),
        (("-c", "absent"), "no schema matches absent"),
        (("--min-bloat", "much"), "invalid value for option --min-bloat: much"),
        (("--min-bloat", "130%"), "invalid value for option --min-bloat: 130%"),
        (("--min-size", "big"), "invalid value for option --min-size: big"),
        (("--json", "--csv"), "--json and --csv exclude each other"),
        (("-t", "items", "-c", "public"), "--schema (-c) and the names of tables (-t, -I) exclude each other"),
    ],
)
def test_usage(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = run("bloat", *arguments)
    assert (status, out) == (2, "")
    assert f"pglean: error: {message}" in err


def test_methods(stage: Stage, run: Run) -> None:
    status, out, err = run("bloat", "--method", "exact")
    assert (status, out) == (3, "")
    assert "method exact is not to be had: the extension pgstattuple is not installed" in err
    assert "HINT:  CREATE EXTENSION pgstattuple" in err
    status, out, err = run("bloat", "-t", "items")
    assert status == 0
    assert " sample" in out
    assert "what is looked at closer is sampled" in err
    stage.db.execute("CREATE EXTENSION pgstattuple")
    for method in ("approx", "exact"):
        status, out, err = run("bloat", "-t", "items", "--method", method)
        assert (status, err) == (0, "")
        assert f" {method}" in out


def test_a_map(stage: Stage, run: Run) -> None:
    status, out, _ = run("bloat", "-t", '"[red] Table"', "-t", "unknown", "--map")
    assert status == 0
    lines = out.splitlines()
    begin = lines.index('public."[red] Table"')
    assert set(lines[begin + 1].strip()) == {"·"}
    assert "% full, 1.7 MB, a cell for 8 kB" in out
    assert "(from the sample); from empty to full: · ░ ▒ ▓ █" in out
    assert lines[lines.index("public.unknown") + 1] == "it is empty"
    assert run("bloat", "--map", "--json")[0] == 2


def test_control_characters_in_names(stage: Stage, run: Run) -> None:
    """They do not reach the terminal."""
    name = '"evil\x1b[2J\x07"'
    stage.db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)")
    stage.db.execute(f'ALTER TABLE {name} RENAME CONSTRAINT "evil\x1b[2J\x07_pkey" TO "key\x1b[31m"')
    stage.db.execute(f"INSERT INTO {name} SELECT generate_series(1, 1000)")
    try:
        for arguments in (
            ("bloat", "--relations"),
            ("bloat", "--map"),
            ("advise",),
            ("check",),
            ("repack", "--dry-run"),
        ):
            status, out, err = run(*arguments, "-t", name)
            assert status in (0, 3), err
            assert "evil" in out, arguments
            assert not {"\x1b", "\x07"} & set(out + err), arguments
    finally:
        stage.db.execute(f"DROP TABLE {name}")


class _Page(HTMLParser):
    """What a page consists of, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.fetched += [str(value) for name, value in attrs if name in {"src", "href", "data", "action"}]


@pytest.fixture
def page(stage: Stage, run: Run, tmp_path: Path) -> Path:
    stage.db.execute('CREATE TABLE "<script>alert(1)</script>" (id int); ANALYZE "<script>alert(1)</script>"')
    path = tmp_path / "bloat.html"
    status, out, err = run("bloat", "--html", str(path))
    assert status == 0, err
    assert "public.items" in out
    return path


def test_a_page(page: Path, run: Run) -> None:
    text = page.read_text(encoding="utf-8")
    parsed = _Page()
    parsed.feed(text)
    assert parsed.fetched == []
    assert "url(" not in text
    assert "@import" not in text
    assert parsed.tags["script"] == 0
    assert "&lt;script&gt;alert(1)" in text
    # The treemap, and a map of each table that is not empty.
    assert parsed.tags["svg"] == 1 + text.count("<figure>") - text.count("No map:")
    assert parsed.tags["svg"] >= 4
    assert "prefers-color-scheme: dark" in text
    status, _, err = run("bloat", "--html", str(page / "no" / "such"))
    assert status == 1
    assert "could not write to" in err


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_in_a_browser(page: Path, tmp_path: Path, scheme: str) -> None:
    shot = tmp_path / "shot.png"
    subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=600,900", f"--screenshot={shot}", page.as_uri(),
        ],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    colours = Counter(_pixels(shot))
    # The ground, and the colour of what is nearly all bloat.
    assert colours.most_common(1)[0][0] == {"light": (0xFB, 0xFB, 0xFA), "dark": (0x14, 0x18, 0x1F)}[scheme]
    assert colours[{"light": (0xD7, 0x6C, 0x55), "dark": (0xA9, 0x4B, 0x3F)}[scheme]] > 500


def _pixels(path: Path) -> Iterator[tuple[int, int, int]]:
    """The colours of a PNG picture with 8 bits a channel, as Chromium writes it."""
    data = path.read_bytes()
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert depth == 8
    channels = {2: 3, 6: 4}[kind]
    place, packed = 8, b""
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            packed += data[place + 8 : place + 8 + length]
        place += length + 12
    raw, stride = zlib.decompress(packed), width * channels
    before = bytearray(stride)
    for number in range(height):
        begin = number * (stride + 1)
        line = _unfiltered(raw[begin], bytearray(raw[begin + 1 : begin + 1 + stride]), before, channels)
        for at in range(0, stride, channels):
            yield line[at], line[at + 1], line[at + 2]
        before = line


def _unfiltered(method: int, line: bytearray, before: bytearray, step: int) -> bytearray:
    for at in range(len(line)):
        left = line[at - step] if at >= step else 0
        above = before[at]
        corner = before[at - step] if at >= step else 0
        if method == 4:
            guess = left + above - corner
            nearest = min((left, above, corner), key=lambda value: abs(guess - value))
        else:
            nearest = (0, left, above, (left + above) // 2)[method]
        line[at] = (line[at] + nearest) & 255
    return line


def test_on_a_terminal(stage: Stage) -> None:
    status, shown = terminal.run(["bloat", "-d", stage.db.conninfo])
    assert status == 0
    assert "[red] Table" in shown
    assert "\x1b[31m" in shown
