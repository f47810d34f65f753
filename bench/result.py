"""What was measured: single runs, their medians, and the tables of RESULTS.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from tool import PGLEAN

_NOTHING: Final = "-"


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a run, and how it is shown."""

    key: str
    #: With its unit.
    label: str
    decimals: int
    better: Literal["lower", "higher"] = "lower"
    #: Whether it says something about the tool, so that a ratio makes sense.
    compared: bool = True

    def show(self, value: float) -> str:
        """As it stands in a table."""
        return f"{value:,.{self.decimals}f}"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a tool."""

    scenario: str
    tool: str
    #: Of the table, before half were deleted.
    rows: int
    repetition: int
    #: By the key of the metric; empty where the run failed.
    values: dict[str, float]
    failure: str
    #: Whether it was ended because its time was up.
    capped: bool
    note: str
    #: Seconds by phase, where the tool tells.
    phases: dict[str, float] = field(default_factory=dict)

    def summary(self, metrics: Sequence[Metric]) -> str:
        """For the terminal, while it goes on."""
        head = f"{self.scenario}, {self.rows:,} rows, {self.tool}, run {self.repetition}"
        if self.failure:
            return f"{head}: FAILED: {self.failure}"
        return f"{head}: " + "; ".join(
            f"{m.label} {m.show(self.values[m.key])}" for m in metrics if m.key in self.values
        )


class Results:
    """All runs so far."""

    def __init__(self, metrics: dict[str, tuple[Metric, ...]], explanations: dict[str, str], tools: list[str]) -> None:
        self._metrics, self._explanations, self._tools = metrics, explanations, tools
        self.runs: list[Run] = []

    def table(self, scenario: str) -> str:
        """Medians of one scenario and the ratios between the tools."""
        return "\n".join(table(self._of(scenario), self._metrics[scenario], self._tools))

    def markdown(
        self,
        machine: dict[str, str],
        settings: dict[str, str],
        about: dict[str, str],
        *,
        title: str,
        introduction: str,
    ) -> str:
        """The whole of what is written."""
        head = [f"# {title}", "", introduction, ""]
        return "\n".join([*head, *self._markdown(machine, settings, about)]) + "\n"

    def _markdown(self, machine: dict[str, str], settings: dict[str, str], about: dict[str, str]) -> Iterator[str]:
        for facts in (about, machine):
            yield from definition(facts)
        yield "| setting | value |"
        yield "| --- | --- |"
        yield from (line([f"`{name}`", f"`{value}`"]) for name, value in settings.items())
        for scenario in self._scenarios():
            yield from ("", f"## {scenario}", "", self._explanations[scenario], "", self.table(scenario))
        yield from ("", "<details>", "<summary>Every single run</summary>")
        for scenario in self._scenarios():
            yield from ("", f"### {scenario}", "", *details(self._of(scenario), self._metrics[scenario]))
        yield from ("", "</details>")

    def _of(self, scenario: str) -> list[Run]:
        return [run for run in self.runs if run.scenario == scenario]

    def _scenarios(self) -> list[str]:
        return [name for name in self._metrics if any(run.scenario == name for run in self.runs)]


def table(runs: Sequence[Run], metrics: Sequence[Metric], known: Sequence[str]) -> Iterator[str]:
    """Medians of runs by tool, in the order of those known, and the ratio of pglean to each other tool."""
    tools = [tool for tool in known if any(run.tool == tool for run in runs)]
    others = [tool for tool in tools if tool != PGLEAN] if PGLEAN in tools else []
    header = ["median", *tools, *(f"pglean / {tool}" for tool in others)]
    yield line(header)
    yield line(["---", *["---:"] * (len(header) - 1)])
    for metric in metrics:
        values = {tool: median(runs, tool, metric.key) for tool in tools}
        if all(value is None for value in values.values()):
            continue
        cells = [_NOTHING if value is None else metric.show(value) for value in values.values()]
        better = " (higher is better)" if others and metric.better == "higher" else ""
        yield line([metric.label + better, *cells, *(_ratio(metric, values[PGLEAN], values[tool]) for tool in others)])
    finished = [_finished([run for run in runs if run.tool == tool]) for tool in tools]
    yield line(["runs finished", *finished, *[""] * len(others)])


def median(runs: Sequence[Run], tool: str, key: str) -> float | None:
    """Of a tool's runs that have the figure."""
    values = [run.values[key] for run in runs if run.tool == tool and key in run.values]
    return statistics.median(values) if values else None


def details(runs: Sequence[Run], metrics: Sequence[Metric]) -> Iterator[str]:
    """Every single run, and what it had to say."""
    yield line(["rows", "run", "tool", *(metric.label for metric in metrics)])
    yield line(["---:", "---:", "---", *["---:"] * len(metrics)])
    for run in runs:
        shown = [metric.show(run.values[metric.key]) if metric.key in run.values else _NOTHING for metric in metrics]
        yield line([f"{run.rows:,}", str(run.repetition), run.tool, *shown])
    yield ""
    for run in runs:
        if run.failure or run.note:
            words = " ".join(f"{'FAILED: ' if run.failure else ''}{run.failure} {run.note}".split())
            yield f"- {run.tool}, {run.rows:,} rows, run {run.repetition}: {words}"


def _ratio(metric: Metric, ours: float | None, theirs: float | None) -> str:
    if not metric.compared or ours is None or not theirs:
        return ""
    return f"{ours / theirs:.2f}"


def _finished(runs: list[Run]) -> str:
    return f"{sum(not run.failure and not run.capped for run in runs)} of {len(runs)}"


def definition(facts: Mapping[str, str]) -> Iterator[str]:
    """A list of names and values."""
    yield from (f"- {name}: {value}" for name, value in facts.items())
    yield ""


def line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
