"""The benchmark's bookkeeping: what samples tell, what is kept, and when a target is reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from record import Record, Section, Session
from report import markdown
from result import Run
from run import main, parse, told
from scenario import IDLE, LOADS, SCALES, USUAL, Scenario, chosen
from target import Outcome, outcomes
from watch import Stretches
from workload import ACCESSES, WORKLOADS

SESSION = Session(
    "2026-01-01 00:00 UTC", "bench/run.py", "commit 1", {"server": "PostgreSQL 15.1"}, {"fsync": "on"}, "none", ""
)
ORDERS = Scenario("orders", IDLE, "uniform", 4)
COMMANDS = {"pglean": "pglean repack", "pg_repack": "pg_repack", "vacuum-full": "psql"}


def section(scenario: Scenario = ORDERS, *, complete: bool = True, session: Session = SESSION, **s: float) -> Section:
    """One run of each tool that took so many seconds."""
    runs = tuple(
        Run(
            scenario.name,
            tool.replace("_", "-") if tool == "vacuum_full" else tool,
            8,
            1,
            {"elapsed_s": t},
            "",
            False,
            "",
        )
        for tool, t in s.items()
    )
    return Section(scenario, "", 15, session.name, COMMANDS, runs, complete)


def test_a_stretch_lasts_from_half_way_before_to_half_way_after() -> None:
    stretches = Stretches()
    for at, there in ((0.0, ()), (1.0, ("a",)), (2.0, ("a",)), (4.0, ()), (5.0, ())):
        stretches.see(at, there)
    stretches.end()
    assert stretches.longest_s == 2.5


def test_stretches_of_different_transactions_are_not_added_up() -> None:
    stretches = Stretches()
    for at, there in ((0.0, "a"), (1.0, "a"), (2.0, "b"), (3.0, "b"), (4.0, "c")):
        stretches.see(at, (there,))
    stretches.end()
    assert stretches.longest_s == 2.0


def test_what_is_there_at_the_end_counts_until_then() -> None:
    stretches = Stretches()
    for at in (0.0, 1.0, 7.0):
        stretches.see(at, ("a", "b"))
    stretches.end()
    assert stretches.longest_s == 7.0


def test_the_record_comes_back_from_its_file(tmp_path: Path) -> None:
    record = Record()
    record.add(section(pglean=2.0, pg_repack=1.0), SESSION)
    record.add_sampling({"with_tps": 1.0}, SESSION)
    record.skip("squeeze", "PostgreSQL 15", "it is not installed")
    record.write(tmp_path / "results.json")
    assert Record.read(tmp_path / "results.json") == record
    assert Record.read(tmp_path / "nothing.json") == Record()


def test_a_measurement_takes_the_place_of_its_own_scenario_only() -> None:
    record = Record()
    other = section(replace(ORDERS, scale=1), pglean=1.0)
    record.add(other, SESSION)
    record.add(section(pglean=2.0), SESSION)
    record.add(section(pglean=3.0), SESSION)
    assert [found.runs[0].values["elapsed_s"] for found in record.sections] == [1.0, 3.0]
    record.add(section(complete=False, pglean=9.0), SESSION)
    assert [found.runs[0].values["elapsed_s"] for found in record.sections] == [1.0, 3.0]
    record.add(replace(section(pglean=4.0), major=18), SESSION)
    assert [found.major for found in record.sections] == [15, 15, 18]


def test_circumstances_to_which_nothing_refers_are_forgotten(tmp_path: Path) -> None:
    later = replace(SESSION, begun="2026-02-01 00:00 UTC")
    record = Record()
    record.add(section(pglean=2.0), SESSION)
    record.add(section(session=later, pglean=2.0), later)
    record.write(tmp_path / "results.json")
    assert record.sessions == [later]


def test_what_was_skipped_is_said_until_it_is_measured(tmp_path: Path) -> None:
    record = Record()
    record.skip("pg_repack", "PostgreSQL 15", "it is not installed")
    assert "- pg_repack (PostgreSQL 15): it is not installed\n" in markdown(record, tmp_path / "none")
    record.add(section(pglean=2.0, pg_repack=1.0), SESSION)
    text = markdown(record, tmp_path / "none")
    assert "it is not installed" not in text
    assert "- repack19: no server was named" in text


def test_targets_say_by_how_much() -> None:
    record = Record()
    record.add(section(pglean=2.0, pg_repack=1.0, vacuum_full=4.0), SESSION)
    full, repack, *_ = outcomes(record)
    assert isinstance(full, Outcome)
    assert isinstance(repack, Outcome)
    assert (full.reached, full.verdict) == (0.5, "reached, 50% to spare")
    assert (repack.reached, repack.verdict) == (2.0, "**not reached**, by 150%")


def test_a_target_without_figures_is_not_measured(tmp_path: Path) -> None:
    assert all(isinstance(outcome, str) for outcome in outcomes(Record()))
    assert markdown(Record(), tmp_path / "none").count("not measured |") == len(list(outcomes(Record())))


def test_notes_are_part_of_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("## What was tried\n\nMuch.\n")
    assert main(["--render", "--output", str(tmp_path)]) == 0
    assert "## What was tried\n\nMuch.\n" in (tmp_path / "RESULTS.md").read_text()


def test_options_shorten_the_list_or_ask_for_all_combinations() -> None:
    everything = (list(WORKLOADS), LOADS, ACCESSES, SCALES)
    assert chosen(*everything, every=False) == list(USUAL)
    assert {found.scale for found in chosen(["orders"], [IDLE], ACCESSES, [1, 16], every=False)} == {1, 16}
    # Five tables at three sizes: idle, and two loads that write in three ways.
    assert len(chosen(*everything, every=True)) == 5 * 3 * (1 + 2 * 3)


def test_small_tables_are_not_added_to_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--shrink", "10"])
    assert "name another directory" in capsys.readouterr().err
    assert parse(["--quick"]).output is None


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--quick"], ["--quick"]),
        (["--peer=squeeze=postgresql://me:secret@db/x"], ["--peer=squeeze=…"]),
        (["--peer", "repack19=host=db password=secret", "--quick"], ["--peer=repack19=…", "--quick"]),
        (["--output", "/home/me/bench", "--only", "idle"], ["--only", "idle"]),
        (["--output=/home/me/bench", "--only=idle"], ["--only=idle"]),
    ],
)
def test_the_command_is_told_without_passwords_and_places(words: list[str], shown: list[str]) -> None:
    assert list(told(words)) == shown
