"""Free space of directories, where a tablespace keeps its files, and how sizes are written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglean.disk import Space, _directory, bytes_text


def test_free_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    free = Space({"the copy": tmp_path}).free_bytes()
    assert list(free) == ["the copy"]
    # Others write to the same disk meanwhile.
    assert free["the copy"] == pytest.approx(shutil.disk_usage(tmp_path).free, abs=1 << 28)


def test_a_directory_that_has_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Space({"pg_wal": tmp_path / "gone"}).free_bytes()


@pytest.mark.parametrize(("oid", "name"), [(1663, "base"), (1664, "global")])
def test_built_in_tablespaces(tmp_path: Path, oid: int, name: str) -> None:
    assert _directory(tmp_path, oid, "PG_15_1") == tmp_path / name


def test_a_link_that_leads_to_something_else_is_none_of_the_server(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "pg_tblspc").mkdir(parents=True)
    elsewhere.mkdir()
    (data / "pg_tblspc" / "16384").symlink_to(elsewhere)
    with pytest.raises(FileNotFoundError):
        _directory(data, 16384, "PG_15_1")
    (elsewhere / "PG_15_1").mkdir()
    assert _directory(data, 16384, "PG_15_1") == data / "pg_tblspc" / "16384"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 kB"),
        (9.94 * 1024, "9.9 kB"),
        (9.96 * 1024, "10 kB"),
        (10 * 1024, "10 kB"),
        (1536 * 1024, "1.5 MB"),
        (2**30, "1 GB"),
        (1.24 * 2**30, "1.2 GB"),
        (2**60, "1024 PB"),
        (-2048, "-2 kB"),
    ],
)
def test_sizes(size: float, text: str) -> None:
    assert bytes_text(size) == text


@given(st.integers(0, 2**55))
def test_sizes_are_short(size: int) -> None:
    number, unit = bytes_text(size).split()
    assert len(number) <= 4
    assert unit in {"bytes", "kB", "MB", "GB", "TB", "PB"}
