"""RESULTS.md, written from the record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from record import Record, Section
from result import definition, details, line, median, table
from scenario import MEASURED
from target import Outcome, outcomes
from tool import PEERS, PGLEAN
from workload import WORKLOADS

_INTRODUCTION: Final = """\
Written by `bench/run.py` from `results.json` beside it. In each section the tools took turns on one server, each run
on a fresh copy of the same table, of which one of every two rows was deleted; figures are medians. A ratio below 1 is
in favour of pglean, save where a higher figure is better. Sections may be of different days and commits, and say so;
within one, everything was measured together."""
#: Text by hand that belongs to the results, appended as it is.
NOTES: Final = "notes.md"


def markdown(record: Record, notes: Path) -> str:
    """The whole of what is written."""
    return "\n".join(_lines(record, notes)) + "\n"


def section_table(section: Section) -> str:
    """Medians, ratios, and where pglean's time went."""
    return "\n".join([*table(section.runs, section.scenario.metrics, list(section.commands)), *_phases(section)])


def _lines(record: Record, notes: Path) -> Iterator[str]:
    yield from ("# pglean and its peers side by side", "", _INTRODUCTION, "", "## Targets", "")
    yield from _targets(record)
    yield from _growth(record)
    yield from _skipped(record)
    for section in record.sections:
        yield from ("", f"## {section.title}", "", section.scenario.about, "")
        yield from _circumstances(record, section)
        yield from ("", section_table(section))
    yield from ("", "## How it is measured", "", *(f"- {paragraph}" for paragraph in MEASURED))
    yield from _sampling(record)
    yield from ("", "## Where and when")
    for session in record.sessions:
        yield from ("", f"### {session.name}", "")
        yield from definition(
            {"command": f"`{session.command}`", "pglean": session.revision, **session.facts, "load": session.conditions}
        )
        yield "| setting | value |"
        yield "| --- | --- |"
        yield from (line([f"`{name}`", f"`{value}`"]) for name, value in session.settings.items())
    if notes.exists():
        yield from ("", notes.read_text().rstrip())
    yield from ("", "<details>", "<summary>Every single run</summary>")
    for section in record.sections:
        yield from ("", f"### Runs of {section.title}", "", *details(section.runs, section.scenario.metrics))
    yield from ("", "</details>")


def _targets(record: Record) -> Iterator[str]:
    yield line(["target", "decided by", "wanted", "measured", ""])
    yield line(["---", "---", "---", "---:", "---:", "---"])
    for outcome in outcomes(record):
        if isinstance(outcome, Outcome):
            wanted = f"{'≥' if outcome.at_least else '≤'} {outcome.show(outcome.wanted)}"
            yield line([outcome.label, outcome.where, wanted, outcome.show(outcome.reached), outcome.verdict])
        else:
            yield line([outcome, "", "", "", "not measured"])


def _growth(record: Record) -> Iterator[str]:
    """How cost grows with the table, where one was measured at several sizes."""
    families: dict[tuple[str, str, str, str], list[Section]] = {}
    for section in record.sections:
        scenario = section.scenario
        family = (scenario.workload, scenario.load, scenario.access, section.server)
        families.setdefault(family, []).append(section)
    grown = [sections for sections in families.values() if len(sections) > 1]
    if not grown:
        return
    yield from ("", "## How time grows with the table", "")
    yield line(
        ["scenario", "server", "tool", "sizes", "time, s", "times that of the smallest", "client, peak memory, MB"]
    )
    yield line(["---", "---", "---", "---:", "---:", "---:", "---:"])
    for sections in grown:
        sections.sort(key=lambda section: section.scenario.scale)
        scenario = sections[0].scenario
        for tool in sections[0].commands:
            measured = [
                (section.scenario.scale, time, median(section.runs, tool, "peak_rss_mb") or 0.0)
                for section in sections
                if (time := median(section.runs, tool, "elapsed_s")) is not None
            ]
            yield line(
                [
                    ", ".join([scenario.workload, scenario.load, *([scenario.access] if scenario.loaded else [])]),
                    sections[0].server,
                    tool,
                    " / ".join(f"{scale}x" for scale, _, _ in measured),
                    " / ".join(f"{time:.2f}" for _, time, _ in measured),
                    " / ".join(f"{time / measured[0][1]:.1f}" for _, time, _ in measured),
                    " / ".join(f"{memory:.1f}" for _, _, memory in measured),
                ]
            )


def _skipped(record: Record) -> Iterator[str]:
    measured = {tool for section in record.sections for tool in section.commands}
    unnamed = {
        name: f"no server was named (`--peer {name}=DSN`)"
        for name in PEERS
        if name not in measured and not any(key.startswith(f"{name} ") for key in record.skipped)
    }
    if skipped := record.skipped | unnamed:
        yield from ("", "## What was left out", "")
        yield from definition(skipped)


def _circumstances(record: Record, section: Section) -> Iterator[str]:
    session = record.session(section.session)
    rows = f"{section.runs[0].rows:,} rows before every other one was deleted" if section.runs else ""
    incomplete = "" if section.complete else "; **the measurement did not come to its end**"
    yield f"- table: {WORKLOADS[section.scenario.workload].about}; {rows}"
    yield f"- measured: {session.name}, with {session.revision}{incomplete}"
    yield from (f"- {tool} is run as: `{command}`" for tool, command in section.commands.items())


def _phases(section: Section) -> Iterator[str]:
    """Medians of the seconds that pglean says it spent in each phase."""
    runs = [run.phases for run in section.runs if run.tool == PGLEAN and run.phases]
    if not runs:
        return
    names = list(dict.fromkeys(name for phases in runs for name in phases))
    yield ""
    yield line(["pglean's phases, s", *names])
    yield line(["---", *["---:"] * len(names)])
    medians = [sorted(found)[len(found) // 2] for name in names if (found := [p[name] for p in runs if name in p])]
    yield line(["median", *(f"{seconds:.2f}" for seconds in medians)])


def _sampling(record: Record) -> Iterator[str]:
    if record.sampling is None:
        yield "- What the sampling costs was not measured."
        return
    values = record.sampling.values
    yield (
        f"- What the sampling costs, on {record.sampling.session}: applications that did all they could made"
        f" {values['without_tps']:,.0f} transactions/s without it and {values['with_tps']:,.0f} with it"
        f" ({values['with_tps'] / values['without_tps'] - 1:+.1%}; medians of {values['stretches']:.0f} stretches of"
        f" {values['stretch_s']:g} s each, by turns). Its session took {values['server_share']:.1%} of a processor, its"
        f" program {values['client_share']:.1%}; {values['sample_ms']:.1f} ms lay between two samples."
    )
