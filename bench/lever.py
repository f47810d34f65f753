"""Levers: a question, several ways, what each of them costs, and what was decided."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from result import Metric
from workbench import Workbench

#: By the key of the metric.
Figures = dict[str, float]

SECONDS = Metric("seconds", "time, s", 2)
WAL = Metric("wal_mb", "WAL, MB", 1)


@dataclass(frozen=True, slots=True)
class Way:
    """One of those that are compared."""

    name: str
    #: Brings the database into the state that it needs, and measures.
    measure: Callable[[Workbench], Figures]
    #: Ways are compared with the first one of their case.
    case: str = ""


@dataclass(frozen=True, slots=True)
class Lever:
    """What could be done otherwise."""

    name: str
    question: str
    metrics: tuple[Metric, ...]
    ways: tuple[Way, ...]
    #: What pglean does, and why: also where it is no gain.
    decision: str


@dataclass(slots=True)
class Finding:
    """What was measured of a way, run by run."""

    runs: list[Figures] = field(default_factory=list)
    #: Why it could not be measured.
    failure: str = ""

    def median(self, metric: Metric) -> float | None:
        """None where it has no such figure."""
        values = [figures[metric.key] for figures in self.runs if metric.key in figures]
        return statistics.median(values) if values else None


class Findings:
    """All that was measured."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], Finding] = {}

    def of(self, lever: Lever, way: Way) -> Finding:
        """What was found of one way, so far."""
        return self._found.setdefault((lever.name, way.case, way.name), Finding())

    def table(self, lever: Lever) -> str:
        """Medians and their ratios to the first way of each case."""
        cased = any(way.case for way in lever.ways)
        several = {metric.key for metric in lever.metrics}
        head = [*(["case"] if cased else []), "way"]
        for metric in lever.metrics:
            head += [metric.label, "ratio"]
        lines = [_line(head), _line(["---"] * (1 + cased) + ["---:"] * (2 * len(several)))]
        for way in lever.ways:
            found = self.of(lever, way)
            first = self.of(lever, next(other for other in lever.ways if other.case == way.case))
            cells = [*([way.case] if cased else []), way.name]
            for metric in lever.metrics:
                cells += _cells(metric, found, first)
            lines.append(_line(cells))
            if found.failure:
                lines[-1] = _line([*cells[: 1 + cased], found.failure, *[""] * (2 * len(lever.metrics) - 1)])
        return "\n".join(lines)

    def details(self, levers: Sequence[Lever]) -> Iterator[str]:
        """Every single run, a line for each figure of each way."""
        yield _line(["lever", "way", "figure", "runs"])
        yield _line(["---", "---", "---", "---"])
        for lever in levers:
            for way in lever.ways:
                for metric in lever.metrics:
                    runs = [figures[metric.key] for figures in self.of(lever, way).runs if metric.key in figures]
                    if runs:
                        name = f"{way.case}: {way.name}" if way.case else way.name
                        yield _line([lever.name, name, metric.label, ", ".join(map(metric.show, runs))])


def _cells(metric: Metric, found: Finding, first: Finding) -> list[str]:
    value, reference = found.median(metric), first.median(metric)
    if value is None:
        return ["-", ""]
    if found is first or not metric.compared or not reference:
        return [metric.show(value), ""]
    return [metric.show(value), f"{value / reference:.2f}"]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
