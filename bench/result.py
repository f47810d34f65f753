"""What was measured: single runs, their medians, and the tables of RESULTS.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tool import PG_REPACK, PGLEAN

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

    def summary(self, metrics: Sequence[Metric]) -> str:
        """For the terminal, while it goes on."""
        head = f"{self.scenario}, {self.rows:,} rows, {self.tool}, run {self.repetition}"
        if self.failure:
            return f"{head}: FAILED: {self.failure}"
        return f"{head}: " + "; ".join(f"{m.label} {m.show(self.values[m.key])}" for m in metrics)


class Results:
    """All runs so far."""

    def __init__(self, metrics: dict[str, tuple[Metric, ...]], explanations: dict[str, str], tools: list[str]) -> None:
        self._metrics, self._explanations, self._tools = metrics, explanations, tools
        self.runs: list[Run] = []

    def table(self, scenario: str) -> str:
        """Medians of one scenario and the ratios between the tools."""
        runs = [run for run in self.runs if run.scenario == scenario]
        tools = [tool for tool in self._tools if any(run.tool == tool for run in runs)]
        compared = PGLEAN in tools and PG_REPACK in tools
        sizes = sorted({run.rows for run in runs})
        header = ["median", *tools, *(["pglean / pg_repack"] if compared else [])]
        lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
        for metric in self._metrics[scenario]:
            for rows in sizes:
                label = metric.label + (f", {rows:,} rows" if len(sizes) > 1 else "")
                values = {tool: self._median(runs, tool, rows, metric.key) for tool in tools}
                cells = [label, *(_NOTHING if value is None else metric.show(value) for value in values.values())]
                if compared:
                    cells.append(_ratio(metric, values[PGLEAN], values[PG_REPACK]))
                lines.append(_line(cells))
        finished = [_finished([run for run in runs if run.tool == tool]) for tool in tools]
        lines.append(_line(["runs finished", *finished, *([""] if compared else [])]))
        return "\n".join(lines)

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
            yield from _definition(facts)
        yield "| setting | value |"
        yield "| --- | --- |"
        yield from (_line([f"`{name}`", f"`{value}`"]) for name, value in settings.items())
        for scenario in self._scenarios():
            yield from ("", f"## {scenario}", "", self._explanations[scenario], "", self.table(scenario))
        yield from ("", "<details>", "<summary>Every single run</summary>")
        for scenario in self._scenarios():
            yield from ("", f"### {scenario}", "", *self._details(scenario))
        yield from ("", "</details>")

    def _details(self, scenario: str) -> Iterator[str]:
        metrics = self._metrics[scenario]
        header = ["rows", "run", "tool", *(metric.label for metric in metrics)]
        runs = [run for run in self.runs if run.scenario == scenario]
        yield _line(header)
        yield _line(["---:", "---:", "---", *["---:"] * len(metrics)])
        for run in runs:
            shown = [
                metric.show(run.values[metric.key]) if metric.key in run.values else _NOTHING for metric in metrics
            ]
            yield _line([f"{run.rows:,}", str(run.repetition), run.tool, *shown])
        yield ""
        for run in runs:
            if run.failure or run.note:
                words = " ".join(f"{'FAILED: ' if run.failure else ''}{run.failure} {run.note}".split())
                yield f"- {run.tool}, {run.rows:,} rows, run {run.repetition}: {words}"

    def _scenarios(self) -> list[str]:
        return [name for name in self._metrics if any(run.scenario == name for run in self.runs)]

    @staticmethod
    def _median(runs: list[Run], tool: str, rows: int, key: str) -> float | None:
        values = [run.values[key] for run in runs if run.tool == tool and run.rows == rows and key in run.values]
        return statistics.median(values) if values else None


def _ratio(metric: Metric, ours: float | None, theirs: float | None) -> str:
    if not metric.compared or ours is None or not theirs:
        return ""
    return f"{ours / theirs:.2f}" + (" (higher is better)" if metric.better == "higher" else "")


def _finished(runs: list[Run]) -> str:
    return f"{sum(not run.failure and not run.capped for run in runs)} of {len(runs)}"


def _definition(facts: dict[str, str]) -> Iterator[str]:
    yield from (f"- {name}: {value}" for name, value in facts.items())
    yield ""


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
