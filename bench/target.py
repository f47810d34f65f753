"""What is to be reached, and whether the figures say that it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from record import Record, Section
from result import median
from scenario import FLAT_OUT, IDLE, Scenario
from tool import PG_REPACK, PGLEAN, VACUUM_FULL
from workload import UNIFORM

_IDLE: Final = Scenario("orders", IDLE, UNIFORM, 4)
_FLAT_OUT: Final = Scenario("orders", FLAT_OUT, UNIFORM, 4)
_XMIN_S: Final = 2.0
_CLIENT_SHARE: Final = 3.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A target, and what was measured of it."""

    label: str
    #: The scenario that decides.
    where: str
    reached: float
    wanted: float
    decimals: int = 2
    #: Whether more is better.
    at_least: bool = False
    #: After the figures.
    unit: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is reached."""
        return self.reached >= self.wanted if self.at_least else self.reached <= self.wanted

    @property
    def verdict(self) -> str:
        """In words, with what is missing, or to spare."""
        if not self.wanted:
            return "reached" if self.ok else f"**not reached**, by {self.show(self.reached)}"
        distance = abs(self.reached / self.wanted - 1)
        return f"reached, {distance:.0%} to spare" if self.ok else f"**not reached**, by {distance:.0%}"

    def show(self, value: float) -> str:
        """A figure as it stands in the table."""
        return f"{value:,.{self.decimals}f}{self.unit}"


def outcomes(record: Record) -> Iterator[Outcome | str]:
    """All targets in order; of one that cannot be told, only what it is."""
    sections = [section for section in record.sections if not section.peer]
    yield from _against(sections, _IDLE, VACUUM_FULL, "elapsed_s", "idle: time / VACUUM FULL's", 1.0)
    yield from _against(sections, _IDLE, PG_REPACK, "elapsed_s", "idle: time / pg_repack's", 0.8)
    yield from _against(sections, _FLAT_OUT, PG_REPACK, "elapsed_s", "flat-out: time / pg_repack's", 1.0)
    label = "flat-out: transactions/s meanwhile / those with pg_repack"
    yield from _against(sections, _FLAT_OUT, PG_REPACK, "tps", label, 2.0, at_least=True)
    label = "flat-out: longest stall of a client"
    flat_out = [section for section in [_section(sections, _FLAT_OUT)] if section]
    yield _worst(label, flat_out, lambda section: _median(section, PGLEAN, "worst_ms"), 250, decimals=0, unit=" ms")
    label = "xmin held / 2 s or, if that is longer, the longest build of one index; at worst"
    yield _worst(label, sections, _xmin, 1.0)
    label = "idle: heap fetches of an index-only scan afterwards, at most"
    idle = [section for section in sections if section.scenario.load == IDLE]
    yield _worst(label, idle, lambda section: _median(section, PGLEAN, "heap_fetches"), 0, decimals=0)
    yield from _against(sections, _IDLE, PG_REPACK, "wal_mb", "idle: WAL / pg_repack's", 1.0)
    label = "idle: time at 16x / time at 1x"
    small, large = (_section(sections, Scenario("orders", IDLE, UNIFORM, scale)) for scale in (1, 16))
    ratio = _ratio(_median(large, PGLEAN, "elapsed_s"), _median(small, PGLEAN, "elapsed_s"))
    yield label if ratio is None else Outcome(label, "orders, idle", ratio, 18, 1)
    label = "client's processor time / the server's without that of applications, at worst"
    yield _worst(label, [s for s in sections if s.scenario in {_IDLE, _FLAT_OUT}], _client, _CLIENT_SHARE, unit=" %")


def _against(
    sections: list[Section],
    scenario: Scenario,
    peer: str,
    key: str,
    label: str,
    wanted: float,
    *,
    at_least: bool = False,
) -> Iterator[Outcome | str]:
    section = _section(sections, scenario)
    ratio = _ratio(_median(section, PGLEAN, key), _median(section, peer, key))
    yield label if ratio is None or section is None else Outcome(label, section.title, ratio, wanted, at_least=at_least)


def _worst(
    label: str,
    sections: list[Section],
    value: Callable[[Section], float | None],
    wanted: float,
    *,
    decimals: int = 2,
    unit: str = "",
) -> Outcome | str:
    found = [(reached, section.title) for section in sections if (reached := value(section)) is not None]
    if not found:
        return label
    reached, title = max(found)
    return Outcome(label, title, reached, wanted, decimals, unit=unit)


def _xmin(section: Section) -> float | None:
    shares = [
        run.values["xmin_s"] / max(_XMIN_S, run.values.get("index_s", 0.0))
        for run in section.runs
        if run.tool == PGLEAN and "xmin_s" in run.values
    ]
    return sorted(shares)[len(shares) // 2] if shares else None


def _client(section: Section) -> float | None:
    ratio = _ratio(_median(section, PGLEAN, "cpu_s"), _median(section, PGLEAN, "server_cpu_s"))
    return None if ratio is None else ratio * 100


def _section(sections: list[Section], scenario: Scenario) -> Section | None:
    """The one that decides: with pg_repack where there is one."""
    found = [section for section in sections if section.scenario == scenario]
    return max(found, key=lambda section: PG_REPACK in section.commands, default=None)


def _median(section: Section | None, tool: str, key: str) -> float | None:
    return None if section is None else median(section.runs, tool, key)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else ours / theirs
