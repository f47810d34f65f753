"""One run of a tool on a fresh copy of a table, with what happens around it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from load import Latency, Load, Transactions
from result import Run
from scenario import STEADY, TIMES, Scenario
from template import Template
from tool import PGLEAN, VACUUM_FULL, Finished, Tool, told
from watch import Watch
from workload import INSERT

_TAIL_S: Final = 1.0
_SETTLE_S: Final = 1.0

# Where the load alone is behind its schedule, its latency says nothing about the tools.
_KEPT_UP: Final = 0.95
_BACKLOG_MS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """How the load is driven, and for how long."""

    #: Transactions per second of the steady load.
    rate: int
    #: Of the load, left out of the figures.
    warmup_s: float
    #: Of the load before the tool is started.
    before_s: float
    #: After so long a run ends, finished or not.
    cap_s: float
    #: Of each tool.
    repetitions: int


@dataclass(frozen=True, slots=True)
class _Course:
    """What was seen of a run."""

    finished: Finished
    values: dict[str, float]
    problems: str
    #: Rows that a load inserted; None where it did not, or it is not known.
    inserted: int | None = None


def trial(template: Template, scenario: Scenario, tool: Tool, conditions: Conditions, repetition: int) -> Run:
    """One run; what went wrong is in its note, and a run that failed has no values.

    The first of several is sampled, which takes its share of the processors: its times are not counted.
    """
    sampled = repetition == 1
    template.refresh()
    time.sleep(_SETTLE_S)
    filenodes = template.filenodes()
    course = (_loaded if scenario.loaded else _idle)(template, scenario, tool, conditions, sampled)
    finished, values, problems = course.finished, course.values, course.problems
    failure = ""
    if not values:
        failure = f"nothing was measured: {problems}{finished.errors}"
    elif finished.capped:
        problems = f"not finished after {finished.elapsed_s:.0f} s; {problems}"
    elif finished.exit_status != 0:
        failure = f"exit status {finished.exit_status}: {finished.errors or finished.output}"
    else:
        values |= {
            "before_mb": template.total_bytes / 1e6,
            "after_mb": template.copy_bytes() / 1e6,
            "heap_fetches": template.heap_fetches(),
        }
        updated = scenario.loaded and scenario.access != INSERT
        failure = template.damage(filenodes, updated=updated, inserted=course.inserted)
    values |= {
        "elapsed_s": finished.elapsed_s,
        "peak_rss_mb": finished.peak_rss_bytes / 1e6,
        "cpu_s": finished.cpu_s,
    }
    said = told(finished) if tool.name == PGLEAN else {}
    counted = not sampled or conditions.repetitions == 1
    if not counted:
        values = {key: value for key, value in values.items() if key not in TIMES}
    return Run(
        scenario=scenario.name,
        tool=tool.name,
        rows=template.rows,
        repetition=repetition,
        values={} if failure else values,
        failure=failure,
        capped=finished.capped,
        note="; ".join(filter(None, [problems.rstrip("; "), *_own_words(tool, finished)])),
        phases=said.get("phases", {}) if counted else {},
    )


def sampling_cost(template: Template, conditions: Conditions, repetitions: int) -> dict[str, float]:
    """What the sampling takes from applications that do all they can: with and without it, by turns."""
    template.refresh()
    stretches: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    server_s, client_s, gaps = 0.0, 0.0, []
    with Load(template.ground, template.workload, template.rows, "uniform", rate=None) as load:
        time.sleep(conditions.warmup_s)
        for number in range(4 * repetitions):
            # There and back again, for what changes with time to be shared alike.
            watched = number % 4 in {1, 2}
            start = time.time()
            if watched:
                with Watch(template.ground, template.oids()) as watch:
                    time.sleep(conditions.before_s)
                server_s, client_s = server_s + watch.own_server_s, client_s + watch.own_client_s
                gaps.append(watch.figures()["sample_ms"])
            else:
                time.sleep(conditions.before_s)
            stretches[watched].append((start, time.time()))
        transactions, problems = load.stop()
    if problems:
        raise RuntimeError(problems)
    seconds = 2 * repetitions * conditions.before_s
    return {
        "without_tps": _middle(transactions, stretches[False]),
        "with_tps": _middle(transactions, stretches[True]),
        "server_share": server_s / seconds,
        "client_share": client_s / seconds,
        "sample_ms": sorted(gaps)[len(gaps) // 2],
        "stretches": float(2 * repetitions),
        "stretch_s": conditions.before_s,
    }


def _middle(transactions: Transactions, stretches: list[tuple[float, float]]) -> float:
    found = sorted(transactions.during(start, end).per_second for start, end in stretches)
    return found[len(found) // 2]


def _idle(template: Template, _: Scenario, tool: Tool, conditions: Conditions, sampled: bool) -> _Course:
    with Watch(template.ground, template.oids(), samples=sampled) as watch:
        finished = tool.run(conditions.cap_s)
    return _Course(finished, watch.figures(), "")


def _loaded(template: Template, scenario: Scenario, tool: Tool, conditions: Conditions, sampled: bool) -> _Course:
    rate = conditions.rate if scenario.load == STEADY else None
    oids = template.oids()
    with Load(template.ground, template.workload, template.rows, scenario.access, rate=rate) as load:
        time.sleep(conditions.warmup_s)
        start = time.time()
        # Watched as well, so that there is no difference but the tool.
        with Watch(template.ground, oids, samples=sampled):
            time.sleep(conditions.before_s)
        with Watch(template.ground, oids, samples=sampled) as watch:
            finished = tool.run(conditions.cap_s)
        time.sleep(_TAIL_S)
        transactions, problems = load.stop()
    inserted = len(transactions) if scenario.access == INSERT and not problems else None
    try:
        before = transactions.during(start, finished.started)
        during = transactions.during(finished.started, finished.ended)
    except ValueError as error:
        return _Course(finished, {}, f"{error}; {problems}")
    values = {f"before_{name}": value for name, value in _values(before).items()} | _values(during) | watch.figures()
    values["tps_share"] = during.per_second / before.per_second * 100
    if rate and (before.per_second < _KEPT_UP * rate or before.p50_ms > _BACKLOG_MS):
        problems = f"the server did not keep up with the rate even before; {problems}"
    return _Course(finished, values, problems, inserted)


def _values(latency: Latency) -> dict[str, float]:
    return {
        "tps": latency.per_second,
        "p50_ms": latency.p50_ms,
        "p99_ms": latency.p99_ms,
        "worst_ms": latency.worst_ms,
        "silence_ms": latency.silence_ms,
    }


def _own_words(tool: Tool, finished: Finished) -> Iterator[str]:
    """What pglean says of its run itself, and what any tool warned of."""
    said = told(finished) if tool.name == PGLEAN else {}
    if said:
        phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in said["phases"].items())
        yield f"{phases}; exclusive lock {said['exclusive_lock_ms']:.1f} ms; {said['changes_applied']} changes applied"
    warnings = [line for line in finished.errors.splitlines() if "warning" in line.lower()]
    if warnings and tool.name != VACUUM_FULL:
        yield " / ".join(warnings)
