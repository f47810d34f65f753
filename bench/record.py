"""What was measured and when, kept in a file, so that the next run adds to it and does not begin anew."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from result import Run
from scenario import USUAL, Scenario


@dataclass(frozen=True, slots=True)
class Session:
    """One call of the program, on one server: the circumstances that its measurements share."""

    #: Minutes, in UTC.
    begun: str
    command: str
    #: Of pglean.
    revision: str
    #: Machine and versions.
    facts: dict[str, str]
    settings: dict[str, str]
    #: How the load was driven.
    conditions: str
    #: For whose sake the server was named by the user; empty for the private one.
    peer: str

    @property
    def name(self) -> str:
        """For references to it."""
        return ", ".join(filter(None, [self.begun, self.facts["server"], self.peer and f"named for {self.peer}"]))


@dataclass(frozen=True, slots=True)
class Section:
    """All runs of one scenario on one server, taken by turns."""

    scenario: Scenario
    #: For whose sake the server was named by the user; empty for the private one.
    peer: str
    #: Major version of the server.
    major: int
    #: Name of the session.
    session: str
    #: By tool, in order, as one would type it.
    commands: dict[str, str]
    runs: tuple[Run, ...]
    #: Whether it came to its end.
    complete: bool

    @property
    def key(self) -> tuple[Scenario, str, int]:
        """What a newer measurement of takes its place."""
        return self.scenario, self.peer, self.major

    @property
    def title(self) -> str:
        """The scenario and the server."""
        return f"{self.scenario.name} ({self.server})"

    @property
    def server(self) -> str:
        """Which one it was."""
        return f"PostgreSQL {self.major}" + (f", named for {self.peer}" if self.peer else "")

    @classmethod
    def of(cls, found: dict[str, Any]) -> Self:
        """As read from the file."""
        runs = tuple(Run(**run) for run in found["runs"])
        return cls(**{**found, "scenario": Scenario(**found["scenario"]), "runs": runs})


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the sampling itself costs."""

    session: str
    values: dict[str, float]


@dataclass
class Record:
    """All that the file holds."""

    sessions: list[Session] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    sampling: Sampling | None = None
    #: What was asked for and could not be measured, by tool and server, with the reason.
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Record:
        """The file, or an empty record where there is none."""
        if not path.exists():
            return cls()
        found = json.loads(path.read_text())
        sessions = [Session(**session) for session in found["sessions"]]
        sampling = found["sampling"] and Sampling(**found["sampling"])
        return cls(sessions, [Section.of(section) for section in found["sections"]], sampling, found["skipped"])

    def write(self, path: Path) -> None:
        """Replace the file; sessions to which nothing refers any more are forgotten."""
        used = {section.session for section in self.sections} | ({self.sampling.session} if self.sampling else set())
        self.sessions = [session for session in self.sessions if session.name in used]
        written = path.with_suffix(".new")
        written.write_text(json.dumps(asdict(self), indent=1) + "\n")
        written.replace(path)

    def add(self, section: Section, session: Session) -> None:
        """Take up a section; an incomplete one never takes the place of a complete one."""
        old = next((known for known in self.sections if known.key == section.key), None)
        if old is not None and old.complete and not section.complete:
            return
        self.sections = [known for known in self.sections if known.key != section.key] + [section]
        order = {scenario: number for number, scenario in enumerate(USUAL)}
        self.sections.sort(
            key=lambda known: (known.peer, known.major, order.get(known.scenario, len(order)), known.title)
        )
        for tool in section.commands:
            self.skipped.pop(f"{tool} ({section.server})", None)
        self._refer(session)

    def add_sampling(self, values: dict[str, float], session: Session) -> None:
        """Take up what the sampling costs."""
        self.sampling = Sampling(session.name, values)
        self._refer(session)

    def skip(self, tool: str, server: str, reason: str) -> None:
        """Note that a tool could not be run on a server; forgotten as soon as it could."""
        self.skipped[f"{tool} ({server})"] = reason

    def session(self, name: str) -> Session:
        """The circumstances by their name."""
        return next(session for session in self.sessions if session.name == name)

    def _refer(self, session: Session) -> None:
        self.sessions = [known for known in self.sessions if known.name != session.name] + [session]
